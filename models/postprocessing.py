"""What is done to a predicted mask: boolean arrays (H, W) in, new ones of the same shape out.

Components are 8-connected: pixels that touch, if only at a corner, belong together. Background is then
4-connected, so that a diagonal line of pixels closes a hole.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def remove_small(mask: Mask, min_pixels: float) -> Mask:
    """The mask without its components of fewer than `min_pixels` pixels."""
    components, _ = ndimage.label(mask, structure=EIGHT_NEIGHBOURS)
    kept = np.bincount(components.ravel()) >= min_pixels
    kept[0] = False  # the background
    return np.asarray(kept[components])


def fill_holes(mask: Mask) -> Mask:
    """The mask with every background region that doesn't reach the image's edge."""
    return np.asarray(ndimage.binary_fill_holes(mask))
