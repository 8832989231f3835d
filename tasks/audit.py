"""Stage `audit`: finds problems of the dataset before anything is trained on it.

    artifacts/audit/counts.csv     images and usable images per half, split and class, with published counts
    artifacts/audit/problems.csv   image id and problem
    artifacts/audit/pairs.csv      duplicate and near-duplicate images; `first` is from the earlier split
    artifacts/audit/dropped.csv    image id and reason, for images dropped from training and validation
    artifacts/audit/audit.json     summary counts
    artifacts/audit/folds/         TRAINING.csv with id and fold of the Train and Val images, if it is a
                                   training of a cross-validation, see `tasks.packed.folds`

Two images are duplicates if all their pixels are equal, and near-duplicates if the correlation of their
thumbnails reaches `audit.correlation`. All images are compared, across splits and across the dataset's two
halves.

Only a pair within one half can leak. Pairs across the halves are counted, but flatter no score: a network's
Train, Val and Test images are all from the half of its plan, and an experiment that sees only the lungs that
another one predicts must have the same half as that one (`tasks.settings.schema.Settings`).
"""

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.common.files import replacing, write_table
from tasks.common.raw import CLASSES, GROUP_OF, MANIFEST, SPLITS, read_manifest
from tasks.packed.folds import draw_folds, drawn_images, groups_of
from tasks.settings.params import load_params
from tasks.settings.schema import Audit
from tasks.support.cli import InputError, stage_main
from tasks.support.progress import progress

#: Images per block; blocks are compared with each other, so memory does not grow with the dataset.
BLOCK = 2048
#: Largest shortfall of a correlation in single precision below the exact one.
SLACK = 1e-4
#: The audit fails above this number of pairs.
MAX_PAIRS = 1_000_000

#: Largest share of an infection mask outside the lung mask that is not reported: edges drawn by hand or
#: resized differ by a few pixels.
OUTSIDE = 0.01
#: Lungs count as bright if the image and its lung mask correlate by more than this. In the infection half of
#: COVID-QU-Ex, 2 of 5,826 do: one image is inverted, and one is upside down, so its mask does not fit. Of the
#: same images with black and white swapped, 5,822 do.
BRIGHT = 0.1
#: A lung area is unusual if its log odds differ from the median by more than this number of standard
#: deviations, which are estimated from the median deviation. In the infection half of COVID-QU-Ex, 1 of 5,826
#: is: a correct mask, of small lungs.
UNUSUAL = 5
#: Standard deviation of normally distributed values, divided by their median absolute deviation.
MAD_TO_SD = 1.4826
#: Smallest standard deviation assumed for the log odds; in COVID-QU-Ex it is 0.37. Without it, a few masks of
#: nearly equal areas would make all others unusual.
LEAST_SD = 0.3

#: The column without any value of which a fault cannot be found.
NEEDED = {
    "controls_with_infection": "infection_area",
    "covid_without_infection": "infection_area",
    "empty_lung_masks": "lung_area",
    "infection_outside_lung": "infection_outside_lung",
    "unusual_lung_areas": "lung_area",
    "bright_lungs": "lung_area",
}

#: Name of the totals in counts.csv.
ALL = "all"
#: Published counts of COVID-QU-Ex: half -> (split, class) -> images. Of the lung half only totals are known.
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
Pairs = NDArray[np.int64]  # (P, 2), row numbers in images.csv, the lower first
Faults = dict[str, "pd.Series[str]"]  # name in audit.json -> image id -> problem


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
        InputError: there are more than `MAX_PAIRS` pairs; or a fold would have no image of some class.
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
    touched = {second for second in leaking["second"] if _part(second, SPLIT) == "Test"}
    across_halves = _differ(others, HALF)
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


# Positions in an image id.
HALF, SPLIT = 0, 1


def _part(image_id: str, place: int) -> str:
    return image_id.split("/")[place]


def _differ(pairs: pd.DataFrame, place: int) -> "pd.Series[bool]":
    """Whether the two images of each pair have different halves or splits."""
    first, second = (pairs[column].map(lambda i: _part(i, place)) for column in ("first", "second"))
    return first != second


# Counts and problems


def count(manifest: pd.DataFrame, images: pd.DataFrame, published: bool) -> pd.DataFrame:
    """One row per half, split and class, totals included; `published` is empty if unknown."""
    rows = []
    for half in sorted(set(manifest["half"])):
        expected = PUBLISHED[half] if published else {}
        for split, image_class in itertools.product((*SPLITS, ALL), (*CLASSES, ALL)):
            found, usable = (_count(table, half, split, image_class) for table in (manifest, images))
            rows.append((half, split, image_class, found, usable, expected.get((split, image_class))))
    table = pd.DataFrame(rows, columns=["half", "split", "class", "images", "usable", "published"])
    return table.astype({"published": "Int64"})


def _count(table: pd.DataFrame, half: str, split: str, image_class: str) -> int:
    wanted = table["half"] == half
    if split != ALL:
        wanted &= table["split"] == split
    if image_class != ALL:
        wanted &= table["class"] == image_class
    return int(wanted.sum())


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


def find_faults(images: pd.DataFrame) -> Faults:
    """Masks that contradict their class or each other, unusual lung areas, and images that look inverted.

    Faults that nothing can tell, because the dataset lacks lung masks or infection masks, are not among them.
    """
    covid, infection, lung = images["class"] == "COVID-19", images["infection_area"], images["lung_area"]
    outside = images["infection_outside_lung"]
    least, most = usual_lung_areas(images)

    def found(wanted: "pd.Series[bool]", problem: str, *values: "pd.Series[float]") -> "pd.Series[str]":
        rows = pd.concat([images["id"], *(100 * value for value in values)], axis=1)[wanted]
        return pd.Series({row[0]: problem.format(*row[1:]) for row in rows.to_numpy()}, dtype=object)

    faults = {
        "controls_with_infection": found(
            ~covid & (infection > 0), "a control, but {:.3g}% of the image is marked as infection", infection
        ),
        "covid_without_infection": found(
            covid & (infection == 0), "a COVID-19 image, but its infection mask is empty"
        ),
        "empty_lung_masks": found(lung == 0, "the lung mask is empty"),
        "infection_outside_lung": found(
            outside > OUTSIDE, "{:.3g}% of the infection lies outside the lung", outside
        ),
        "unusual_lung_areas": found(
            (lung > 0) & ~lung.between(least, most),
            "the lung mask covers {:.3g}% of the image; {:.3g}% to {:.3g}% is usual",
            *(lung, least, most),
        ),
        "bright_lungs": found(
            images["lung_correlation"] > BRIGHT,
            "the lungs are brighter than the rest of the chest: black and white are swapped, or the lung "
            "mask does not fit the image",
        ),
    }
    return {name: problems for name, problems in faults.items() if not images[NEEDED[name]].isna().all()}


def usual_lung_areas(images: pd.DataFrame) -> tuple["pd.Series[float]", "pd.Series[float]"]:
    """The smallest and the largest usual lung area in each image's half, see `UNUSUAL`.

    Log odds are compared, not areas, because they are about symmetric around their median. Empty masks are
    not considered.
    """
    area = images["lung_area"].where(images["lung_area"] > 0).clip(upper=1 - 1e-6)  # 1 has no log odds
    log_odds = (area / (1 - area)).map(math.log)
    median = log_odds.groupby(images["half"]).transform("median")
    deviation = (log_odds - median).abs().groupby(images["half"]).transform("median")
    reach = UNUSUAL * (MAD_TO_SD * deviation).clip(lower=LEAST_SD)
    least, most = (1 / (1 + (-limit).map(math.exp)) for limit in (median - reach, median + reach))
    return least, most


# Pairs


def find_pairs(images: pd.DataFrame, thumbnails: Thumbnails, least: float) -> pd.DataFrame:
    """All pairs of duplicate images, and pairs whose thumbnails have a correlation of at least `least`.

    One row per pair, duplicates first, then by decreasing correlation. `first` is the image from the earlier
    split (Train, then Val, then Test); `across` is true for a leak: different splits of the same half.

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
        }
    )
    table["across"] = _differ(table, SPLIT) & ~_differ(table, HALF)
    return table.sort_values(
        ["exact", "correlation", "first", "second"], ascending=[False, False, True, True]
    )


def _same_pixels(digests: pd.Series) -> Pairs:
    """Pairs of images with equal digests."""
    repeated = digests[digests.duplicated(keep=False)]
    groups = [rows.index.to_numpy() for _, rows in repeated.groupby(repeated)]
    _refuse_too_many(sum(len(group) * (len(group) - 1) // 2 for group in groups), "have identical pixels")
    found = [pair for group in groups for pair in itertools.combinations(group, 2)]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _near(thumbnails: Thumbnails, least: float) -> Pairs:
    """Pairs of images whose thumbnails have a correlation of at least `least`, block by block."""
    starts = range(0, len(thumbnails), BLOCK)
    blocks = [(i, j) for i in starts for j in starts if i <= j]
    found, total = [np.empty((0, 2), dtype=np.int64)], 0
    for i, j in progress(blocks, len(blocks), "audit blocks"):
        alike = normalised(thumbnails, i) @ normalised(thumbnails, j).T >= least - SLACK
        pairs = np.argwhere(np.triu(alike, 1) if i == j else alike) + np.array([i, j])
        pairs = pairs[correlations(thumbnails, pairs) >= least]
        total += len(pairs)
        _refuse_too_many(total, f"have a correlation of at least audit.correlation = {least:g}")
        found.append(pairs)
    return np.concatenate(found)


def _refuse_too_many(count: int, what: str) -> None:
    if count > MAX_PAIRS:
        raise InputError(f"the dataset has more than {MAX_PAIRS:,} pairs of images that {what}")


def normalised(thumbnails: Thumbnails, start: int) -> NDArray[np.float32]:
    """A block of thumbnails (n, 1024), each with mean 0 and length 1; all 0 if it has a single grey value."""
    flat = thumbnails[start : start + BLOCK].reshape(-1, thumbnails[0].size).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    normalised: NDArray[np.float32] = np.divide(flat, length, out=np.zeros_like(flat), where=length > 0)
    return normalised


def correlations(thumbnails: Thumbnails, pairs: Pairs) -> NDArray[np.float64]:
    """Pearson correlation of each pair, identical on every machine; 0 if an image has only one grey value."""
    parts = [_correlations(thumbnails, pairs[i : i + BLOCK]) for i in range(0, len(pairs), BLOCK)]
    return np.concatenate([np.empty(0), *parts])


def _correlations(thumbnails: Thumbnails, pairs: Pairs) -> NDArray[np.float64]:
    # Integers up to the last step, because floating-point sums depend on their order.
    a, b = (thumbnails[places].reshape(len(pairs), -1).astype(np.int64) for places in pairs.T)
    n = a.shape[1]
    covariance = n * (a * b).sum(axis=1) - a.sum(axis=1) * b.sum(axis=1)
    variances = [n * (x * x).sum(axis=1) - x.sum(axis=1) ** 2 for x in (a, b)]
    scale = np.sqrt(variances[0].astype(np.float64)) * np.sqrt(variances[1].astype(np.float64))
    found: NDArray[np.float64] = np.divide(covariance, scale, out=np.zeros(len(pairs)), where=scale > 0)
    return found


def to_drop(pairs: pd.DataFrame) -> pd.DataFrame:
    """Images to drop: of each leaking pair the one from the earlier split, so never a Test image."""
    leaking = pairs[pairs["across"]].drop_duplicates("first")
    reasons = [
        f"identical to {pair.second}"
        if pair.exact
        else f"correlation of {pair.correlation:.4f} with {pair.second}"
        for pair in leaking.itertuples()
    ]
    return pd.DataFrame({"id": leaking["first"].to_numpy(), "reason": reasons}).sort_values("id")


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
