"""Stage `audit`: what is wrong with the dataset, before anything is trained on it.

    artifacts/audit/counts.csv     images and usable ones per half, split and class, and as published
    artifacts/audit/problems.csv   id and problem
    artifacts/audit/pairs.csv      two images that are the same or nearly so, the training side first
    artifacts/audit/dropped.csv    id and reason of each image that training and validation leave out
    artifacts/audit/audit.json     the figures

Two images are the same where all their pixels are, nearly so where their thumbnails correlate. Both are
looked for among all images, across splits and across the dataset's two halves.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.common.files import replacing, write_table
from tasks.common.raw import CLASSES, MANIFEST, SPLITS, read_manifest
from tasks.settings.schema import Audit, load_params
from tasks.support.cli import InputError, stage_main
from tasks.support.progress import progress

#: Images that are compared with as many others at a time; bounds memory whatever the dataset's size.
BLOCK = 2048
#: How far a correlation in single precision may lie below the exact one.
SLACK = 1e-4
#: More pairs than this are no list for anybody.
MAX_PAIRS = 1_000_000

#: The row or column of sums in counts.csv.
ALL = "all"
#: COVID-QU-Ex as its authors counted it: half -> split, class -> images. Of the lung half we know sums alone.
PUBLISHED = {
    "infection": {
        ("Train", "COVID-19"): 1864, ("Train", "Non-COVID"): 932, ("Train", "Normal"): 932,
        ("Val", "COVID-19"): 466, ("Val", "Non-COVID"): 233, ("Val", "Normal"): 233,
        ("Test", "COVID-19"): 583, ("Test", "Non-COVID"): 292, ("Test", "Normal"): 291,
        ("Train", ALL): 3728, ("Val", ALL): 932, ("Test", ALL): 1166,
        (ALL, "COVID-19"): 2913, (ALL, "Non-COVID"): 1457, (ALL, "Normal"): 1456,
        (ALL, ALL): 5826,
    },
    "lung": {
        ("Train", ALL): 21715, ("Val", ALL): 5417, ("Test", ALL): 6788,
        (ALL, "COVID-19"): 11956, (ALL, "Non-COVID"): 11263, (ALL, "Normal"): 10701,
        (ALL, ALL): 33920,
    },
}  # fmt: skip

Thumbnails = NDArray[np.uint8]  # (N, 32, 32)
Pairs = NDArray[np.int64]  # (P, 2), places in images.csv, the lower first


def audit(raw: Path, packed: Path, out: Path, params: Audit, phantoms: bool) -> None:
    """Look for what is wrong and write it down.

    Reads `raw/manifest.csv` and `packed/{images.csv,rejected.csv,thumbnails.npy}`. Nobody published how many
    `phantoms` there are.

    Raises:
        InputError: there are more than `MAX_PAIRS` pairs.
    """
    manifest = read_manifest(raw / MANIFEST)
    images = pd.read_csv(packed / "images.csv")
    rejected = pd.read_csv(packed / "rejected.csv", dtype=str, keep_default_na=False)
    thumbnails = np.load(packed / "thumbnails.npy", mmap_mode="r")
    counts = count(manifest, images, phantoms)
    pairs = find_pairs(images, thumbnails, params.correlation)
    dropped = to_drop(pairs) if params.duplicates == "drop" else to_drop(pairs[:0])
    with replacing(out) as partial:
        partial.mkdir()
        write_table(counts, partial / "counts.csv")
        write_table(find_problems(images, rejected, thumbnails), partial / "problems.csv")
        write_table(pairs, partial / "pairs.csv")
        write_table(dropped, partial / "dropped.csv")
        figures = summarise(counts, images, pairs, dropped)
        found = {"params": json.loads(params.to_json()), "figures": figures}
        (partial / "audit.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name, value in figures.items():
        print(f"{name.replace('_', ' ')}: {value:,}", flush=True)


def summarise(
    counts: pd.DataFrame, images: pd.DataFrame, pairs: pd.DataFrame, dropped: pd.DataFrame
) -> dict[str, int]:
    """What metrics.json says of the dataset; `missing_from_published` only where something was published."""
    totals = counts[(counts["split"] == ALL) & (counts["class"] == ALL)]
    found, published = int(totals["images"].sum()), totals["published"]
    leaking, others = pairs[pairs["across"]], pairs[~pairs["across"]]
    touched = {second for second in leaking["second"] if _part(second, SPLIT) == "Test"}
    across_halves = _parts(others["first"], HALF) != _parts(others["second"], HALF)
    missing = {} if published.isna().any() else {"missing_from_published": int(published.sum()) - found}
    return {
        "images": found,
        "unusable": found - int(totals["usable"].sum()),
        **missing,
        "infection_outside_lung": int((images["infection_outside_lung"] > 0).sum()),
        "exact_pairs_across_splits": int(leaking["exact"].sum()),
        "near_pairs_across_splits": int((~leaking["exact"]).sum()),
        "test_images_touched": len(touched),
        "pairs_within_splits": int((~across_halves).sum()),
        "pairs_across_halves": int(across_halves.sum()),
        "dropped": len(dropped),
    }


# Places in an id.
HALF, SPLIT = 0, 1


def _part(image_id: str, place: int) -> str:
    return image_id.split("/")[place]


def _parts(ids: "pd.Series[str]", place: int) -> "pd.Series[str]":
    return ids.map(lambda image_id: _part(image_id, place))


# Counts and problems


def count(manifest: pd.DataFrame, images: pd.DataFrame, phantoms: bool) -> pd.DataFrame:
    """A row a half, split and class, sums included; `published` is empty where it is not known."""
    rows = []
    for half in sorted(set(manifest["half"])):
        published = {} if phantoms else PUBLISHED[half]
        for split, image_class in itertools.product((*SPLITS, ALL), (*CLASSES, ALL)):
            found, usable = (_count(table, half, split, image_class) for table in (manifest, images))
            rows.append((half, split, image_class, found, usable, published.get((split, image_class))))
    table = pd.DataFrame(rows, columns=["half", "split", "class", "images", "usable", "published"])
    return table.astype({"published": "Int64"})


def _count(table: pd.DataFrame, half: str, split: str, image_class: str) -> int:
    wanted = table["half"] == half
    if split != ALL:
        wanted &= table["split"] == split
    if image_class != ALL:
        wanted &= table["class"] == image_class
    return int(wanted.sum())


def find_problems(images: pd.DataFrame, rejected: pd.DataFrame, thumbnails: Thumbnails) -> pd.DataFrame:
    """What was set aside, with its reason; infection outside the lungs; images that show nothing."""
    outside = images[images["infection_outside_lung"] > 0]
    share = 100 * outside["infection_outside_lung"]
    flat = thumbnails.reshape(len(thumbnails), -1)
    blank = images.loc[flat.min(axis=1) == flat.max(axis=1), "id"]
    rows = [
        *zip(rejected["id"], "set aside: " + rejected["reason"], strict=True),
        *(
            (i, f"{s:.3g} % of the infection lies outside the lung")
            for i, s in zip(outside["id"], share, strict=True)
        ),
        *((i, "the image is one grey") for i in blank),
    ]
    return pd.DataFrame(rows, columns=["id", "problem"])


# Pairs


def find_pairs(images: pd.DataFrame, thumbnails: Thumbnails, least: float) -> pd.DataFrame:
    """All pairs of the same image, and those whose thumbnails correlate by at least `least`.

    A row a pair, by falling correlation, the same images first; `across` says that the two stand in different
    splits. Of a pair the image of the earlier split stands first: Train before Val before Test.

    Raises:
        InputError: there are more than `MAX_PAIRS` pairs.
    """
    exact = _same_pixels(images["sha256"])
    near = _near(thumbnails, least)
    pairs = np.unique(np.concatenate([exact, near]), axis=0)
    correlation = correlations(thumbnails, pairs)
    order = images["split"].map(SPLITS.index).to_numpy()
    swapped = order[pairs[:, 0]] > order[pairs[:, 1]]
    pairs[swapped] = pairs[swapped, ::-1]
    digests, ids = images["sha256"].to_numpy(), images["id"].to_numpy()
    same = digests[pairs[:, 0]] == digests[pairs[:, 1]]
    table = pd.DataFrame(
        {
            "first": ids[pairs[:, 0]],
            "second": ids[pairs[:, 1]],
            "correlation": np.where(same, 1.0, correlation.round(6)),
            "exact": same,
            "across": order[pairs[:, 0]] != order[pairs[:, 1]],
        }
    )
    return table.sort_values(
        ["exact", "correlation", "first", "second"], ascending=[False, False, True, True]
    )


def _same_pixels(digests: pd.Series) -> Pairs:
    """Pairs of images with one digest."""
    repeated = digests[digests.duplicated(keep=False)]
    groups = [rows.index.to_numpy() for _, rows in repeated.groupby(repeated)]
    _refuse_too_many(sum(len(group) * (len(group) - 1) // 2 for group in groups), "share all their pixels")
    found = [pair for group in groups for pair in itertools.combinations(group, 2)]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _near(thumbnails: Thumbnails, least: float) -> Pairs:
    """Pairs of images whose thumbnails correlate by at least `least`, block against block."""
    starts = range(0, len(thumbnails), BLOCK)
    blocks = [(i, j) for i in starts for j in starts if i <= j]
    found, total = [np.empty((0, 2), dtype=np.int64)], 0
    for i, j in progress(blocks, len(blocks), "audit blocks"):
        alike = _normalised(thumbnails, i) @ _normalised(thumbnails, j).T >= least - SLACK
        pairs = np.argwhere(np.triu(alike, 1) if i == j else alike) + np.array([i, j])
        pairs = pairs[correlations(thumbnails, pairs) >= least]
        total += len(pairs)
        _refuse_too_many(total, f"correlate by audit.correlation = {least:g} or more")
        found.append(pairs)
    return np.concatenate(found)


def _refuse_too_many(count: int, what: str) -> None:
    if count > MAX_PAIRS:
        raise InputError(f"the dataset holds more than {MAX_PAIRS:,} pairs of images that {what}")


def _normalised(thumbnails: Thumbnails, start: int) -> NDArray[np.float32]:
    """A block of thumbnails (n, 1024), each of mean 0 and length 1; of one grey all 0, so like no other."""
    flat = thumbnails[start : start + BLOCK].reshape(-1, thumbnails[0].size).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    normalised: NDArray[np.float32] = np.divide(flat, length, out=np.zeros_like(flat), where=length > 0)
    return normalised


def correlations(thumbnails: Thumbnails, pairs: Pairs) -> NDArray[np.float64]:
    """Pearson's correlation of each pair, alike on every machine; 0 where one of the two is one grey."""
    parts = [_correlations(thumbnails, pairs[i : i + BLOCK]) for i in range(0, len(pairs), BLOCK)]
    return np.concatenate([np.empty(0), *parts])


def _correlations(thumbnails: Thumbnails, pairs: Pairs) -> NDArray[np.float64]:
    # Whole numbers up to the last step: sums in floating point depend on their order.
    a, b = (thumbnails[places].reshape(len(pairs), -1).astype(np.int64) for places in pairs.T)
    n = a.shape[1]
    covariance = n * (a * b).sum(axis=1) - a.sum(axis=1) * b.sum(axis=1)
    variances = [n * (x * x).sum(axis=1) - x.sum(axis=1) ** 2 for x in (a, b)]
    scale = np.sqrt(variances[0].astype(np.float64)) * np.sqrt(variances[1].astype(np.float64))
    found: NDArray[np.float64] = np.divide(covariance, scale, out=np.zeros(len(pairs)), where=scale > 0)
    return found


def to_drop(pairs: pd.DataFrame) -> pd.DataFrame:
    """The training side of each pair across splits, once; a Test image never is."""
    leaking = pairs[pairs["across"]].drop_duplicates("first")
    reasons = [
        f"the same as {pair.second}"
        if pair.exact
        else f"correlates by {pair.correlation:.4f} with {pair.second}"
        for pair in leaking.itertuples()
    ]
    return pd.DataFrame({"id": leaking["first"].to_numpy(), "reason": reasons}).sort_values("id")


def main() -> None:
    parser = argparse.ArgumentParser(description="Look for what is wrong with the dataset.")
    parser.add_argument("params", type=Path)
    parser.add_argument("raw", type=Path, help="data/raw")
    parser.add_argument("packed", type=Path, help="data/packed")
    parser.add_argument("out", type=Path, help="the folder to make")
    args = parser.parse_args()
    params = load_params(args.params)
    audit(args.raw, args.packed, args.out, params.audit, params.data.phantoms)


if __name__ == "__main__":
    stage_main(main)
