"""Draws predicted masks over an X-ray."""

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.inference.masks import Mask
from tasks.reporting.charts import outline
from tasks.settings.training import Target

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
    canvas = picture.convert("RGB")
    for target, (colour, opacity) in COLOURS.items():
        if target in masks:
            mask = np.asarray(Image.fromarray(masks[target]).resize(picture.size, Image.Resampling.NEAREST))
            covered = np.where(outline(mask), 255, mask * np.uint8(round(255 * opacity)))
            canvas.paste(colour, mask=Image.fromarray(covered.astype(np.uint8)))
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
