"""Stage `audit_external`: finds images of an external dataset that are also in the dataset of the trainings.

A network may have been trained on such an image, or its thresholds chosen on it, so the stage compare leaves
it out of the scores. Two images are the same if they are duplicates or near-duplicates by the rules of
`tasks.auditing.pairs`. Images of all splits and halves are compared.

    overlap.csv    one row per external image that is also in the dataset: its `id`, the image of the dataset
                   that is most similar to it (`also`), their `correlation`, and whether all pixels are the
                   same (`exact`)
    counts.json    images, and how many of them are unusable
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from tasks.auditing.pairs import BLOCK, SLACK, Pairs, Thumbnails, correlations, normalised
from tasks.common.files import replacing, write_table
from tasks.settings.params import load_params
from tasks.support.cli import stage_main
from tasks.support.progress import progress

COLUMNS = ["id", "also", "correlation", "exact"]


def audit_external(packed: Path, external: Path, out: Path, correlation: float) -> None:
    """Compare the packed images under `external` with those under `packed`, and write the result under `out`.

    Reads `images.csv` and `thumbnails.npy` of both, and `external/rejected.csv`.
    """
    dataset, images = (pd.read_csv(folder / "images.csv") for folder in (packed, external))
    own, others = (np.load(folder / "thumbnails.npy") for folder in (packed, external))
    found = find_overlap(dataset, images, own, others, correlation)
    rejected = pd.read_csv(external / "rejected.csv", dtype=str)
    counts = {"images": len(images) + len(rejected), "unusable": len(rejected)}
    with replacing(out) as partial:
        partial.mkdir()
        write_table(found, partial / "overlap.csv")
        (partial / "counts.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    print(f"{len(images)} usable images, {len(found)} of them also in the dataset", flush=True)


def find_overlap(
    dataset: pd.DataFrame,
    external: pd.DataFrame,
    dataset_thumbnails: Thumbnails,
    external_thumbnails: Thumbnails,
    least: float,
) -> pd.DataFrame:
    """The external images that are also in the dataset, each with the most similar image there.

    An image with equal pixels is the most similar; then the correlation decides, then the order of the table.
    """
    thumbnails = np.concatenate([dataset_thumbnails, external_thumbnails])
    pairs = np.concatenate(
        [
            _same_pixels(dataset["sha256"], external["sha256"]),
            *_near(dataset_thumbnails, external_thumbnails, least),
        ]
    )
    first, second = pairs.T
    exact = dataset["sha256"].to_numpy()[first] == external["sha256"].to_numpy()[second]
    correlation = correlations(thumbnails, pairs + np.array([0, len(dataset)]))
    found = pd.DataFrame(
        {
            "id": external["id"].to_numpy()[second],
            "also": dataset["id"].to_numpy()[first],
            "correlation": np.where(exact, 1.0, correlation.round(6)),
            "exact": exact,
            "row": first,
        }
    )
    order = found.sort_values(["id", "exact", "correlation", "row"], ascending=[True, False, False, True])
    return order.drop_duplicates("id")[COLUMNS]


def _same_pixels(dataset: "pd.Series[str]", external: "pd.Series[str]") -> Pairs:
    """Pairs of row numbers, dataset first, of images with equal digests."""
    rows = {digest: row for row, digest in reversed(list(enumerate(dataset)))}  # the first of equal ones
    found = [(rows[digest], row) for row, digest in enumerate(external) if digest in rows]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _near(dataset: Thumbnails, external: Thumbnails, least: float) -> Iterator[Pairs]:
    """Pairs of row numbers, dataset first, of images whose thumbnails correlate by at least `least`."""
    both = np.concatenate([dataset, external])
    blocks = [(i, j) for i in range(0, len(dataset), BLOCK) for j in range(0, len(external), BLOCK)]
    for i, j in progress(blocks, len(blocks), "audit blocks"):
        alike = normalised(dataset, i) @ normalised(external, j).T >= least - SLACK
        pairs = np.argwhere(alike) + np.array([i, j])
        yield pairs[correlations(both, pairs + np.array([0, len(dataset)])) >= least]


def main() -> None:
    parser = argparse.ArgumentParser(description="Find external images that are also in the dataset.")
    parser.add_argument("params", type=Path)
    parser.add_argument("packed", type=Path, help="data/packed/SIZE")
    parser.add_argument("external", type=Path, help="data/external/DATASET/packed/SIZE")
    parser.add_argument("out", type=Path, help="folder to create")
    args = parser.parse_args()
    audit_external(args.packed, args.external, args.out, load_params(args.params).audit.correlation)


if __name__ == "__main__":
    stage_main(main)
