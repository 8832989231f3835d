"""The fingerprint of training images: statistics that tell whether a new image is like them.

It holds no image. Thumbnails are described by their mean and principal components, so that the nearest
training thumbnail cannot be shown.
"""

import csv
import io
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.support.cli import InputError

Floats = NDArray[np.float64]

#: Pixels per side of a thumbnail; the stage preprocess makes them.
SIDE = 32
COMPONENTS = 48
#: Share of the training images whose values count as usual, between two quantiles.
USUAL = 0.998
#: How far beyond these quantiles a value may lie, as a share of their distance.
MARGIN = 0.25

ARRAYS = ("mean", "components", "deviations", "low", "high")
#: What is measured of an image.
MEASURES = ("distance", "residual", "brightness", "contrast", "lung_area")


class Fingerprint(NamedTuple):
    """Statistics of the thumbnails (N, 32, 32) of the training images, as vectors of 1024 grey values."""

    mean: Floats
    components: Floats
    """(K, 1024) principal components."""
    deviations: Floats
    """(K,) standard deviation along each component."""
    low: Floats
    high: Floats
    """The usual range of each of `MEASURES`."""

    def unusual(self, thumbnail: NDArray[np.uint8], lung_area: float | None) -> list[str]:
        """The measures of an image that lie outside the usual range; empty if it is like the training images.

        Args:
            thumbnail: (32, 32), as `thumbnail` makes it.
            lung_area: share of the image that the predicted lungs cover; None if no lungs are predicted.
        """
        measured = self._measured(thumbnail[None].astype(float))[0]
        values = dict(zip(MEASURES, (*measured, lung_area), strict=True))
        return [
            name
            for name, low, high in zip(MEASURES, self.low, self.high, strict=True)
            if (value := values[name]) is not None and not low <= value <= high
        ]

    def _measured(self, thumbnails: Floats) -> Floats:
        """All of `MEASURES` but the lung area, (N, 4)."""
        vectors = thumbnails.reshape(len(thumbnails), -1)
        centred = vectors - self.mean
        along = centred @ self.components.T
        distance = np.sqrt(np.mean((along / self.deviations) ** 2, axis=1))
        residual = np.sqrt(np.mean((centred - along @ self.components) ** 2, axis=1))
        return np.stack([distance, residual, vectors.mean(axis=1), vectors.std(axis=1)], axis=1)

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, **{name: getattr(self, name).astype("<f4") for name in ARRAYS})
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises: InputError: the file is not a fingerprint."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = cls(*(arrays[name].astype(float) for name in ARRAYS))
        except (ValueError, KeyError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise InputError(f"{path}: not a fingerprint of training images") from None
        return found


def thumbnail(picture: Image.Image) -> NDArray[np.uint8]:
    """The thumbnail of an 8-bit grey picture, as the stage preprocess makes it."""
    small = picture if picture.size == (SIDE, SIDE) else picture.resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small)


def take_fingerprint(packed: Path, half: str, classes: tuple[str, ...]) -> Fingerprint:
    """The fingerprint of the Train images of some classes, from `images.csv` and `thumbnails.npy`."""
    thumbnails = np.load(packed / "thumbnails.npy", mmap_mode="r", allow_pickle=False)
    with (packed / "images.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    places = [
        place
        for place, row in enumerate(rows)
        if (row["half"], row["split"]) == (half, "Train") and row["class"] in classes
    ]
    areas = np.array([float(rows[place]["lung_area"] or "nan") for place in places])
    return fingerprint_of(np.asarray(thumbnails[places], dtype=float), areas)


def fingerprint_of(thumbnails: Floats, lung_areas: Floats) -> Fingerprint:
    """The fingerprint of thumbnails (N, 32, 32) with grey values 0..255, and of lung areas (N,)."""
    vectors = thumbnails.reshape(len(thumbnails), -1)
    mean = vectors.mean(axis=0)
    values, directions = np.linalg.eigh(np.cov(vectors - mean, rowvar=False, bias=True))
    kept = min(COMPONENTS, len(vectors) - 1)
    components = directions[:, ::-1][:, :kept].T
    # The sign of an eigenvector is arbitrary; fixing it makes the bytes independent of the algorithm's path.
    signs = np.sign(components[np.arange(kept), np.abs(components).argmax(axis=1)])
    deviations = np.sqrt(np.maximum(values[::-1][:kept], 1e-6))
    empty = np.zeros(len(MEASURES))
    plain = Fingerprint(mean, components * signs[:, None], deviations, empty, empty)
    measured = np.column_stack([plain._measured(thumbnails), lung_areas])
    low, high = np.nanquantile(measured, [(1 - USUAL) / 2, (1 + USUAL) / 2], axis=0)
    margin = MARGIN * (high - low)
    return plain._replace(low=low - margin, high=high + margin)
