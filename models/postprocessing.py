"""Post-processing of predicted masks: functions from boolean arrays (H, W) to new ones of the same shape.

Components are 8-connected: pixels that touch only at a corner belong together. The background is therefore
4-connected, so a diagonal line of pixels closes a hole.

SciPy is imported on first use: it takes a third of a second, and most experiments do not post-process masks.
"""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def remove_small(mask: Mask, min_pixels: float) -> Mask:
    """The mask without components of fewer than `min_pixels` pixels."""
    from scipy import ndimage

    kept, box = mask.copy(), _bounding_box(mask)
    components, _ = ndimage.label(mask[box], structure=EIGHT_NEIGHBOURS)
    large = np.bincount(components.ravel()) >= min_pixels
    large[:1] = False  # the background
    if not large[1:].all():
        kept[box] = large[components]
    return kept


def fill_holes(mask: Mask) -> Mask:
    """The mask with every background region filled that does not touch the image's border."""
    from scipy import ndimage

    # All is background outside the box, so a region at the border of the box reaches the border of the image.
    filled, box = mask.copy(), _bounding_box(mask)
    regions, count = ndimage.label(~mask[box])
    hole = np.ones(count + 1, dtype=bool)
    for edge in (regions[:1], regions[-1:], regions[:, :1], regions[:, -1:]):
        hole[edge] = False
    hole[0] = False  # the mask itself
    if hole.any():
        filled[box] |= hole[regions]
    return filled


def _bounding_box(mask: Mask) -> tuple[slice, slice]:
    """The smallest box that contains the mask, as row and column slices; empty for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return slice(0), slice(0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
