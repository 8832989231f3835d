"""Distances between the outlines of two masks, in pixels: HD95 and normalised surface Dice.

The outline of a mask is its boundary pixels: those at the image's border or with a background pixel among
their four neighbours. Distances are Euclidean, between pixel centres. Libraries differ in both definitions
and therefore in their scores (Podobnik and Vrtovec 2024, arXiv 2410.02630). For non-empty masks, these
functions equal MONAI's `compute_hausdorff_distance(percentile=95)` and
`compute_surface_dice(use_subvoxels=False)`.

Rules for empty masks: HD95 is NaN if either mask is empty, because there is no distance. Surface Dice is NaN
if the reference is empty, and 0 if only the prediction is.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

#: Up to this number of pairs of boundary pixels, computing all pairs is faster than building trees.
FEW_PAIRS = 2_000_000

#: Pairs computed at a time, few enough for the cache of a core.
PAIRS_IN_CACHE = 2**16

#: Largest side, in pixels, for which float32 represents squared distances and intermediate results exactly.
EXACT_UP_TO = 2048


class SurfaceDistances(NamedTuple):
    """For each boundary pixel of a mask, the distance to the other mask's boundary, in pixels."""

    from_predicted: NDArray[np.float64]
    from_reference: NDArray[np.float64]


def surface_distances(predicted: Mask, reference: Mask) -> SurfaceDistances:
    """Distances in both directions for two boolean masks (H, W); infinite if one is empty."""
    ours, theirs = _boundary_points(predicted), _boundary_points(reference)
    if not len(ours) or not len(theirs):
        return SurfaceDistances(np.full(len(ours), np.inf), np.full(len(theirs), np.inf))
    if len(ours) * len(theirs) <= FEW_PAIRS and max(reference.shape) <= EXACT_UP_TO:
        return _from_all_pairs(ours, theirs)
    return SurfaceDistances(_from_tree(ours, theirs), _from_tree(theirs, ours))


def hausdorff95(distances: SurfaceDistances) -> float:
    """The larger of the two directions' 95th percentiles, in pixels, >= 0; 0 is best. NaN for an empty mask.

    Percentiles are interpolated linearly. Huttenlocher et al. 1993, doi 10.1109/34.232073; Metrics
    Reloaded, Maier-Hein et al. 2024, doi 10.1038/s41592-023-02151-z.
    """
    return max(_percentile(d, 0.95) for d in distances) if all(d.size for d in distances) else np.nan


def surface_dice(distances: SurfaceDistances, tolerance: float) -> float:
    """The share of both boundaries' pixels within `tolerance` pixels of the other boundary, in [0, 1].

    NaN if the reference is empty; 0 if only the prediction is.
    Normalised surface distance (NSD), Nikolov et al. 2021, doi 10.2196/26151, where the length of a boundary
    is its number of pixels.
    """
    pixels = sum(d.size for d in distances)
    near = sum(int(np.count_nonzero(d <= tolerance)) for d in distances)
    return near / pixels if distances.from_reference.size else np.nan


def _percentile(values: NDArray[np.float64], share: float) -> float:
    """Equals `numpy.quantile` to the last digit, without its checks, which take longer than the rest."""
    ordered = np.sort(values)
    position = (len(ordered) - 1) * share
    below = int(position)
    low, high = (float(ordered[min(index, len(ordered) - 1)]) for index in (below, below + 1))
    part = position - below
    # Interpolate from the nearer value, as NumPy does.
    return low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)


def _boundary_points(mask: Mask) -> NDArray[np.float32]:
    """Row and column of each boundary pixel (P, 2), row by row."""
    width = mask.shape[1]
    pixels, inner = mask.ravel(), np.zeros_like(mask)
    # Treating the mask as one row of pixels is much faster, but is wrong at the left and right border.
    middle = inner.ravel()[width:-width]
    np.logical_and(pixels[2 * width :], pixels[: -2 * width], out=middle)
    middle &= pixels[width - 1 : -width - 1]
    middle &= pixels[width + 1 : len(pixels) - width + 1]
    inner[:, 0] = inner[:, -1] = False
    rows_and_columns = np.divmod(np.flatnonzero(mask > inner), width)
    return np.stack(rows_and_columns, axis=1).astype(np.float32)


def _from_all_pairs(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> SurfaceDistances:
    """Uses |p - q|^2 = |p|^2 + |q|^2 - 2pq, whose terms are integers that float32 represents exactly."""
    left = np.column_stack([ours, np.square(ours).sum(axis=1), np.ones(len(ours), np.float32)])
    right = np.stack([*(-2 * theirs.T), np.ones(len(theirs), np.float32), np.square(theirs).sum(axis=1)])
    from_ours, from_theirs = np.empty(len(ours), np.float32), np.full(len(theirs), np.inf, np.float32)
    step = max(1, PAIRS_IN_CACHE // len(theirs))
    for start in range(0, len(ours), step):
        squares = left[start : start + step] @ right
        squares.min(axis=1, out=from_ours[start : start + step])
        np.minimum(from_theirs, squares.min(axis=0), out=from_theirs)
    return SurfaceDistances(*(np.sqrt(squares, dtype=np.float64) for squares in (from_ours, from_theirs)))


def _from_tree(points: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """The distance of each point (P, 2) to the nearest of the others (Q, 2)."""
    from scipy.spatial import cKDTree  # rarely needed, and takes half a second to import

    # For pixels, this tree is faster to build than a balanced one, and several times faster than the distance
    # transform of a whole image.
    tree = cKDTree(others, leafsize=32, balanced_tree=False, compact_nodes=False)
    return np.asarray(tree.query(points)[0])
