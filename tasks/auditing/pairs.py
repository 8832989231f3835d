"""Duplicate and nearly duplicate images.

Two images are duplicates if all their pixels are equal, and near-duplicates if the correlation of their
thumbnails reaches `audit.correlation`.
"""

import itertools

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.common.raw import SPLITS
from tasks.support.cli import InputError
from tasks.support.progress import progress

#: Images per block; blocks are compared with each other, so memory does not grow with the dataset.
BLOCK = 2048
#: Largest shortfall of a correlation in single precision below the exact one.
SLACK = 1e-4
#: The audit fails above this number of pairs.
MAX_PAIRS = 1_000_000

Thumbnails = NDArray[np.uint8]  # (N, 32, 32)
Pairs = NDArray[np.int64]  # (P, 2), row numbers in images.csv, the lower first

#: Positions in an image id.
HALF, SPLIT = 0, 1


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
    table["across"] = differ(table, SPLIT) & ~differ(table, HALF)
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


def part_of(image_id: str, place: int) -> str:
    return image_id.split("/")[place]


def differ(pairs: pd.DataFrame, place: int) -> "pd.Series[bool]":
    """Whether the two images of each pair have different halves or splits."""
    first, second = (pairs[column].map(lambda i: part_of(i, place)) for column in ("first", "second"))
    return first != second
