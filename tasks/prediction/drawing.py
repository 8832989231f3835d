"""Draws predicted masks over an X-ray."""

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.inference.masks import Mask
from tasks.reporting.charts import outline
from tasks.settings.schema import Target

#: Longest side of an overlay in pixels; larger images are downscaled.
LONGEST_SIDE = 1024
#: Colour (RGB) and opacity of the fill. Blue and vermilion differ for colour-blind readers too.
COLOURS: dict[Target, tuple[tuple[int, int, int], float]] = {
    "lung": ((86, 180, 233), 0.0),
    "infection": ((213, 94, 0), 0.35),
}


def overlay(pixels: NDArray[np.uint8], masks: Mapping[Target, Mask]) -> bytes:
    """The X-ray (H, W) with the outline of each mask, and infection filled, as a JPEG file."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX)
    canvas = np.repeat(np.asarray(picture, dtype=np.float32)[:, :, None], 3, axis=2)
    for target, (colour, opacity) in COLOURS.items():
        if target in masks:
            mask = np.asarray(Image.fromarray(masks[target]).resize(picture.size, Image.Resampling.NEAREST))
            _paint(canvas, mask, colour, opacity)
            _paint(canvas, outline(mask), colour, 1.0)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(canvas).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _paint(canvas: NDArray[np.float32], mask: Mask, colour: tuple[int, int, int], opacity: float) -> None:
    canvas[mask] += np.float32(opacity) * (np.array(colour, np.float32) - canvas[mask])
