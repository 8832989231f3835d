"""Stage `audit`: finds problems of the dataset before anything is trained on it.

    artifacts/audit/counts.csv     images and usable images per half, split and class, with published counts
    artifacts/audit/problems.csv   image id and problem
    artifacts/audit/pairs.csv      duplicate and near-duplicate images; `first` is from the earlier split
    artifacts/audit/dropped.csv    image id and reason, for images dropped from training and validation
    artifacts/audit/audit.json     summary counts
    artifacts/audit/folds/         TRAINING.csv with id and fold of the Train and Val images, if it is a
                                   training of a cross-validation, see `tasks.packed.folds`

All images are compared, across splits and across the dataset's two halves, by the rules of
`tasks.auditing.pairs`. Only a pair within one half can leak. Pairs across the halves are counted, but flatter
no score: a network's Train, Val and Test images are all from the half of its plan, and an experiment that
sees only the lungs that another one predicts must have the same half as that one
(`tasks.settings.schema.Settings`).
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from tasks.auditing.counts import ALL, count
from tasks.auditing.faults import Faults, find_faults
from tasks.auditing.pairs import HALF, SPLIT, Thumbnails, differ, find_pairs, part_of, to_drop
from tasks.common.files import replacing, write_table
from tasks.common.raw import GROUP_OF, MANIFEST, read_manifest
from tasks.packed.folds import draw_folds, drawn_images, groups_of
from tasks.settings.params import load_params
from tasks.settings.schema import Audit
from tasks.support.cli import InputError, stage_main


def audit(
    raw: Path, packed: Path, out: Path, params: Audit, published: bool, folds: Path | None = None
) -> None:
    """Find the dataset's problems and write them under `out`; draw folds.

    Reads `packed/{images.csv,rejected.csv,thumbnails.npy}`, `raw/manifest.csv` and, if the dataset has it,
    `raw/groups.csv`. The counts of COVID-QU-Ex are shown beside those of the dataset if it should have them
    (`published`).

    Args:
        folds: the table `folds.csv` of the stage plan; without it, no folds are written.

    Raises:
        InputError: there are more than `pairs.MAX_PAIRS` pairs; or a fold would have no image of some class.
    """
    manifest = read_manifest(raw / MANIFEST)
    images = pd.read_csv(packed / "images.csv")
    rejected = pd.read_csv(packed / "rejected.csv", dtype=str, keep_default_na=False)
    thumbnails = np.load(packed / "thumbnails.npy", mmap_mode="r")
    counts = count(manifest, images, published)
    pairs = find_pairs(images, thumbnails, params.correlation)
    dropped = to_drop(pairs) if params.duplicates == "drop" else to_drop(pairs[:0])
    faults = find_faults(images)
    with replacing(out) as partial:
        partial.mkdir()
        write_table(counts, partial / "counts.csv")
        write_table(find_problems(images, rejected, thumbnails, faults), partial / "problems.csv")
        write_table(pairs, partial / "pairs.csv")
        write_table(dropped, partial / "dropped.csv")
        figures = summarise(counts, faults, pairs, dropped)
        if folds:
            (partial / "folds").mkdir()
            for training, table in _folds(folds, images, dropped, _together(pairs, raw)):
                write_table(table, partial / "folds" / f"{training}.csv")
        found = {"params": json.loads(params.to_json()), "figures": figures}
        (partial / "audit.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name, value in figures.items():
        print(f"{name.replace('_', ' ')}: {value:,}", flush=True)


def _together(pairs: pd.DataFrame, raw: Path) -> list[tuple[str, ...]]:
    """Images that must be in one fold: alike, or in one group of the dataset, such as a patient."""
    found: list[tuple[str, ...]] = list(zip(pairs["first"], pairs["second"], strict=True))
    if (raw / GROUP_OF).exists():
        groups = pd.read_csv(raw / GROUP_OF, dtype=str).groupby("group")["id"]
        found += [tuple(members) for _, members in groups]
    return found


def _folds(
    wanted: Path, images: pd.DataFrame, dropped: pd.DataFrame, together: list[tuple[str, ...]]
) -> Iterator[tuple[str, pd.DataFrame]]:
    """The folds of each training, those of equal settings drawn once; an empty table if it has none."""
    drawn: dict[tuple[str, int, int], pd.DataFrame] = {}
    rows = pd.read_csv(wanted, dtype=str, keep_default_na=False)
    for training, half, folds, seed in rows.itertuples(index=False):
        if folds == "1":
            yield training, pd.DataFrame(columns=["id", "fold"])
            continue
        key = half, int(folds), int(seed)
        if key not in drawn:
            of_half = images[images["half"] == half]
            chosen = drawn_images(of_half, dropped["id"])
            try:
                drawn[key] = draw_folds(chosen, groups_of(of_half["id"], together), *key[1:])
            except InputError as error:
                raise InputError(f"{training}: {error}") from None
        yield training, drawn[key]


def summarise(
    counts: pd.DataFrame, faults: Faults, pairs: pd.DataFrame, dropped: pd.DataFrame
) -> dict[str, int]:
    """The dataset's counts in metrics.json; `missing_from_published` only if published counts are known."""
    totals = counts[(counts["split"] == ALL) & (counts["class"] == ALL)]
    found, published = int(totals["images"].sum()), totals["published"]
    leaking, others = pairs[pairs["across"]], pairs[~pairs["across"]]
    touched = {second for second in leaking["second"] if part_of(second, SPLIT) == "Test"}
    across_halves = differ(others, HALF)
    missing = {} if published.isna().any() else {"missing_from_published": int(published.sum()) - found}
    return {
        "images": found,
        "unusable": found - int(totals["usable"].sum()),
        **missing,
        **{name: len(problems) for name, problems in faults.items()},
        "exact_pairs_across_splits": int(leaking["exact"].sum()),
        "near_pairs_across_splits": int((~leaking["exact"]).sum()),
        "test_images_touched": len(touched),
        "pairs_within_splits": int((~across_halves).sum()),
        "pairs_across_halves": int(across_halves.sum()),
        "dropped": len(dropped),
    }


def find_problems(
    images: pd.DataFrame, rejected: pd.DataFrame, thumbnails: Thumbnails, faults: Faults
) -> pd.DataFrame:
    """Excluded images with their reasons, faults of images and masks, and images of a single grey value."""
    flat = thumbnails.reshape(len(thumbnails), -1)
    blank = images.loc[flat.min(axis=1) == flat.max(axis=1), "id"]
    rows = [
        *zip(rejected["id"], "excluded: " + rejected["reason"], strict=True),
        *(row for problems in faults.values() for row in problems.items()),
        *((i, "all pixels of the image have the same value") for i in blank),
    ]
    return pd.DataFrame(rows, columns=["id", "problem"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Find problems of the dataset.")
    parser.add_argument("params", type=Path)
    parser.add_argument("raw", type=Path, help="data/raw")
    parser.add_argument("packed", type=Path, help="data/packed")
    parser.add_argument("out", type=Path, help="folder to create")
    parser.add_argument("--folds", type=Path, help="artifacts/plans/folds.csv: folds to draw")
    args = parser.parse_args()
    params = load_params(args.params)
    audit(args.raw, args.packed, args.out, params.audit, params.data.published, args.folds)


if __name__ == "__main__":
    stage_main(main)
