"""How far the outlines of two masks lie apart, in pixels: HD95 and normalised surface Dice.

An outline is a mask's boundary pixels: those with a background pixel among their four neighbours, or at
the image's edge. Distances are Euclidean, between pixel centres. Libraries differ in both, and so in
their figures (Podobnik and Vrtovec 2024, arXiv 2410.02630); these are, where no mask is empty, those of
MONAI's `compute_hausdorff_distance(percentile=95)` and `compute_surface_dice(use_subvoxels=False)`.

Rules for empty masks: both empty score HD95 0 and surface Dice 1. From one mask to an empty one the
distance is the image's diagonal, so HD95 is the diagonal and surface Dice 0: a missed lesion counts.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Mask = NDArray[np.bool_]


class SurfaceDistances(NamedTuple):
    """Of each boundary pixel, the distance to the other mask's boundary, in pixels."""

    from_predicted: NDArray[np.float64]
    from_truth: NDArray[np.float64]


def surface_distances(predicted: Mask, truth: Mask) -> SurfaceDistances:
    """Both directions' distances for two boolean masks (H, W)."""
    ours, theirs = (np.argwhere(_boundary(mask)) for mask in (predicted, truth))
    diagonal = float(np.hypot(*truth.shape))
    return SurfaceDistances(_nearest(ours, theirs, diagonal), _nearest(theirs, ours, diagonal))


def hausdorff95(distances: SurfaceDistances) -> float:
    """The larger of the two directions' 95th percentiles, in pixels, >= 0; 0 is best.

    Percentiles are interpolated linearly. Huttenlocher et al. 1993, doi 10.1109/34.232073; Metrics
    Reloaded, Maier-Hein et al. 2024, doi 10.1038/s41592-023-02151-z.
    """
    return max((float(np.percentile(d, 95)) for d in distances if d.size), default=0.0)


def surface_dice(distances: SurfaceDistances, tolerance: float) -> float:
    """The share of both boundaries' pixels within `tolerance` pixels of the other one, in [0, 1].

    Normalised surface distance (NSD), Nikolov et al. 2021, doi 10.2196/26151, with a boundary's length
    taken as its number of pixels. `tolerance` is less than the image's diagonal.
    """
    both = np.concatenate(distances)
    return float(np.mean(both <= tolerance)) if both.size else 1.0


def _boundary(mask: Mask) -> Mask:
    padded = np.pad(mask, 1)
    vertical, horizontal = padded[:-2, 1:-1] & padded[2:, 1:-1], padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~(vertical & horizontal)


def _nearest(points: NDArray[np.intp], others: NDArray[np.intp], unreachable: float) -> NDArray[np.float64]:
    """Distance of each of the points (P, 2) to the nearest other (Q, 2); `unreachable` where Q is 0."""
    if not len(points) or not len(others):
        return np.full(len(points), unreachable)
    # On pixels this tree is built faster than the balanced one, and several times faster than the
    # distance transform of a whole image.
    tree = cKDTree(others, leafsize=32, balanced_tree=False, compact_nodes=False)
    return np.asarray(tree.query(points)[0])
