"""The fingerprint of training images: statistics that tell whether a new image is like them.

It holds no image: an average over all of them, a few principal components, and ranges. The similarity to the
nearest training thumbnail finds few more odd images, and would put all thumbnails into every bundle.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.support.cli import InputError

Floats = NDArray[np.float64]

#: Pixels per side of a thumbnail; the stage preprocess makes them.
SIDE = 32
COMPONENTS = 16

#: What is measured of an image, with the shares of the training images that lie below and above the usual
#: range. Likeness finds most odd images: inverted, rotated, of something else.
MEASURES = {
    "likeness": (0.006, 0.0),
    "residual": (0.0, 0.006),
    "brightness": (0.001, 0.001),
    "contrast": (0.001, 0.001),
    "lung_area": (0.001, 0.001),
}
ARRAYS = ("mean", "components", "low", "high")


class Fingerprint(NamedTuple):
    """Statistics of the thumbnails of the training images, as vectors of 1024 grey values.

    Vectors are normalised to mean 0 and standard deviation 1.
    """

    mean: Floats
    """(1024,), the average training image."""
    components: Floats
    """(K, 1024) principal components around it."""
    low: Floats
    high: Floats
    """The usual range of each of `MEASURES`."""

    def unusual(self, thumbnail: NDArray[np.uint8], lung_area: float | None) -> list[str]:
        """The measures of an image that lie outside the usual range; empty if it is like the training images.

        Args:
            thumbnail: (32, 32), as `thumbnail` makes it.
            lung_area: share of the image that the predicted lungs cover; None if no lungs are predicted.
        """
        return self.outside(self.measures(thumbnail, lung_area))

    def measures(self, thumbnail: NDArray[np.uint8], lung_area: float | None) -> dict[str, float]:
        """All of `MEASURES` of an image, without the lung area if that is None."""
        found = dict(zip(MEASURES, map(float, self.measure(thumbnail[None].astype(float))[0]), strict=False))
        return found if lung_area is None else found | {"lung_area": lung_area}

    def outside(self, measures: Mapping[str, float]) -> list[str]:
        """The measures of an image that lie outside the usual range."""
        return [
            name
            for name, low, high in zip(MEASURES, self.low, self.high, strict=True)
            if name in measures and not low <= measures[name] <= high
        ]

    def measure(self, thumbnails: Floats) -> Floats:
        """All of `MEASURES` but the lung area, (N, 4), of thumbnails (N, 32, 32).

        Likeness is the correlation with the average training image. The residual is what the components do
        not explain of an image, as a share of its standard deviation.
        """
        vectors = thumbnails.reshape(len(thumbnails), -1)
        normal = normalised(vectors)
        centred = normal - self.mean
        explained = centred @ self.components.T @ self.components
        likeness = normal @ self.mean / (len(self.mean) * self.mean.std())
        residual = np.sqrt(np.mean((centred - explained) ** 2, axis=1))
        return np.stack([likeness, residual, vectors.mean(axis=1), vectors.std(axis=1)], axis=1)

    def to_bytes(self, more: Mapping[str, Floats] | None = None) -> bytes:
        """The content of `fingerprint.npz`, with further arrays."""
        arrays = {name: getattr(self, name) for name in ARRAYS} | dict(more or {})
        buffer = io.BytesIO()
        np.savez(buffer, **{name: values.astype("<f4") for name, values in arrays.items()})
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises: InputError: the file is not a fingerprint."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = cls(*(arrays[name].astype(float) for name in ARRAYS))
            # Fails if the shapes do not fit, or the arrays have no numbers.
            measured = found.measures(np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE), 0.0)
            found.outside(measured)
            if np.isnan([*measured.values(), *found.low, *found.high]).any():
                raise ValueError
            return found
        except (OSError, MemoryError):
            raise
        except Exception:  # other files cause many kinds of errors
            raise InputError(f"{path}: not a fingerprint of training images") from None


def normalised(vectors: Floats) -> Floats:
    """Vectors (N, D) with mean 0 and standard deviation 1; of one grey alone, 0."""
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    found: Floats = centred / np.maximum(centred.std(axis=1, keepdims=True), 1.0)
    return found


def thumbnail(picture: Image.Image) -> NDArray[np.uint8]:
    """The thumbnail of an 8-bit grey picture, as the stage preprocess makes it."""
    small = picture if picture.size == (SIDE, SIDE) else picture.resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small)


def take_fingerprint(packed: Path, half: str, classes: tuple[str, ...]) -> Fingerprint:
    """The fingerprint of the Train images of some classes, from `images.csv` and `thumbnails.npy`."""
    return fingerprint_of(*thumbnails_of(packed, half, "Train", classes))


def thumbnails_of(packed: Path, half: str, split: str, classes: tuple[str, ...]) -> tuple[Floats, Floats]:
    """The thumbnails (N, 32, 32) and lung areas (N,) of the images of a split and some classes."""
    thumbnails = np.load(packed / "thumbnails.npy", mmap_mode="r", allow_pickle=False)
    with (packed / "images.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    places = [
        place
        for place, row in enumerate(rows)
        if (row["half"], row["split"]) == (half, split) and row["class"] in classes
    ]
    areas = np.array([float(rows[place]["lung_area"] or "nan") for place in places])
    return np.asarray(thumbnails[places], dtype=float), areas


def fingerprint_of(thumbnails: Floats, lung_areas: Floats) -> Fingerprint:
    """The fingerprint of thumbnails (N, 32, 32) with grey values 0..255, and of lung areas (N,)."""
    vectors = normalised(thumbnails.reshape(len(thumbnails), -1))
    mean = vectors.mean(axis=0)
    _, directions = np.linalg.eigh(np.cov(vectors - mean, rowvar=False, bias=True))
    components = directions[:, ::-1][:, : min(COMPONENTS, len(vectors) - 1)].T
    everything = np.zeros(len(MEASURES))
    plain = Fingerprint(mean, components, everything, everything)
    measured = np.column_stack([plain.measure(thumbnails), lung_areas])
    shares = zip(measured.T, MEASURES.values(), strict=True)
    ranges = np.array([_usual(values, below, above) for values, (below, above) in shares])
    return plain._replace(low=ranges[:, 0], high=ranges[:, 1])


def _usual(values: Floats, below: float, above: float) -> tuple[float, float]:
    """The range that leaves these shares of the values out."""
    if np.isnan(values).all():  # lung areas of a dataset without lung masks
        return -np.inf, np.inf
    low = float(np.nanquantile(values, below)) if below else -np.inf
    return low, float(np.nanquantile(values, 1 - above)) if above else np.inf
