"""A grey picture, as read from any file format."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.inference.masks import Floats

#: A grey value this close to a multiple of 1/255 is one.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Picture:
    """A grey picture, with what its file says about it.

    `pixels` is (H, W), 0 for black: uint8 up to 255, or float32 up to 1 if 8 bits cannot hold the values.
    """

    pixels: NDArray[np.uint8] | Floats
    format: str
    """PNG, JPEG, TIFF, BMP or DICOM."""
    grey: str
    """How grey values were made from stored values, in words."""
    spacing: tuple[float, float] | None = None
    """Distance of rows and of columns in mm."""
    warnings: tuple[str, ...] = ()
    facts: dict[str, str | int] = field(default_factory=dict)
    """Facts from a DICOM file, none of them about a person."""
    shows_text: bool = False
    """Whether text about the patient may be burned into the pixels."""

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.pixels.shape
        return height, width

    def eight_bit(self) -> NDArray[np.uint8]:
        """The pixels for the eye, rounded to 8 bits."""
        if self.pixels.dtype == np.uint8:
            return self.pixels  # type: ignore[return-value]
        return np.rint(self.pixels * 255).astype(np.uint8)

    def network_input(self, size: int) -> Floats:
        """The picture as float32 (S, S) in [0, 1], resized as the stage preprocess resizes it."""
        picture = Image.fromarray(self.pixels)
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture)
        if pixels.dtype == np.uint8:
            return pixels.astype(np.float32) / np.float32(255)
        clipped: Floats = np.clip(pixels, 0, 1)
        return clipped


def grey_pixels(values: NDArray[np.float64]) -> NDArray[np.uint8] | Floats:
    """Grey values in [0, 1] as uint8 if all of them are multiples of 1/255, else as float32.

    An 8-bit picture gives the same prediction whatever file format it comes in.
    """
    levels = np.rint(values * 255)
    if np.abs(values * 255 - levels).max(initial=0) <= 255 * ROUNDING:
        return levels.astype(np.uint8)
    return values.astype(np.float32)
