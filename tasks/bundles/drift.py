"""Drift: whether the last images of an inbox still look like the Val images of a bundle.

For each measure of `tasks.bundles.fingerprint`, the distribution over the last images is compared with that
over Val by the Kolmogorov-Smirnov distance, the largest difference of two cumulative distributions, 0 to 1.
The statistic of a batch is the largest distance of all measures.

The threshold is calibrated on Val by a bootstrap of both sides (Efron and Tibshirani 1993, An Introduction to
the Bootstrap), because Val itself is a sample: a pseudo-Val of the same size and pseudo-batches are drawn
from Val with replacement. For each pseudo-Val, 97% of its batches stay below a distance; the threshold is
the distance that suffices for 95% of the pseudo-Vals. So at most 1 of 20 batches of images like Val exceed
it, unless Val happens to represent its source very badly. On phantoms, 1 of 100 batches did on average, and
more than 1 of 20 for 1 of 40 small Vals.

The lung area is no such measure. It is known of Val from masks, but of new images from predictions.
"""

from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tasks.bundles.fingerprint import MEASURES, Fingerprint, Floats, thumbnails_of
from tasks.support.cli import InputError

#: What is compared: `Fingerprint.measure` of thumbnails.
COMPARED = tuple(MEASURES)[:4]

#: Share of the batches of images like Val that exceed the threshold. At most 5% may; the rest is a margin
#: for the error of the calibration, which draws 400 batches.
FALSE_ALARMS = 0.03

#: Share of the pseudo-Vals whose batches do.
CONFIDENCE = 0.95

#: Fewest Val images of a reference, and most; of more, a random part is kept.
FEWEST_VAL, MOST_VAL = 30, 1000

#: Numbers of images for which thresholds are calibrated. For others they are interpolated.
SIZES = (10, 20, 50, 100, 200, 500)

#: Distances are multiples of 1 / images, so many are equal. Rounding must not lift them over the threshold.
ROUNDING = 1e-5

#: Pseudo-Vals, and pseudo-batches for each of them.
_REFERENCES, _BATCHES = 100, 400

_ARRAYS = ("drift_values", "drift_thresholds")


class Row(NamedTuple):
    """A measure in the drift table."""

    measure: str
    val_median: float
    last_median: float
    distance: float
    """Kolmogorov-Smirnov distance, 0 to 1."""
    threshold: float
    drifted: bool


class Reference(NamedTuple):
    """What the last images are compared with."""

    values: Floats
    """(4, V), the measures of Val images, each sorted."""
    thresholds: Floats
    """For batches of `SIZES` images."""

    def compare(self, measured: Floats) -> list[Row]:
        """The drift table of the last images. Images have drifted if any of its rows has.

        Args:
            measured: (N, 4), the measures of N >= 10 images.
        """
        limit = self.threshold(len(measured))
        rows = []
        for name, val, last in zip(COMPARED, self.values, measured.T, strict=True):
            far = distance(val, last)
            drifted = far > limit + ROUNDING
            rows.append(Row(name, float(np.median(val)), float(np.median(last)), far, limit, drifted))
        return rows

    def threshold(self, images: int) -> float:
        """The threshold for a number of images. It falls about as 1 / sqrt(images)."""
        roots = [size**-0.5 for size in reversed(SIZES)]
        return float(np.interp(images**-0.5, roots, self.thresholds[::-1]))

    def arrays(self) -> dict[str, Floats]:
        """The arrays that `fingerprint.npz` keeps."""
        return dict(zip(_ARRAYS, self, strict=True))

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The reference in a bundle's `fingerprint.npz`; None if it has none.

        Raises:
            InputError: the file is not a fingerprint.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                if not set(_ARRAYS) <= set(arrays.files):
                    return None
                return cls(*(arrays[name].astype(float) for name in _ARRAYS))
        except (OSError, MemoryError):
            raise
        except Exception:  # other files cause many kinds of errors
            raise InputError(f"{path}: not a fingerprint of training images") from None


def distance(one: Floats, other: Floats) -> float:
    """The two-sample Kolmogorov-Smirnov distance of values (N,) and (M,), 0 to 1."""
    one, other = np.sort(one), np.sort(other)
    everywhere = np.concatenate([one, other])
    below = [np.searchsorted(values, everywhere, side="right") / len(values) for values in (one, other)]
    return float(np.abs(below[0] - below[1]).max())


def take_reference(
    packed: Path, half: str, classes: tuple[str, ...], fingerprint: Fingerprint
) -> Reference | None:
    """The reference from the Val images of some classes; None if they are fewer than 30."""
    thumbnails, _ = thumbnails_of(packed, half, "Val", classes)
    if len(thumbnails) < FEWEST_VAL:
        return None
    return reference_of(fingerprint.measure(thumbnails))


def reference_of(measured: Floats) -> Reference:
    """The reference of measures (V, 4) of Val images, with calibrated thresholds. The same each time."""
    rng = np.random.default_rng(0)
    if len(measured) > MOST_VAL:
        measured = measured[rng.choice(len(measured), MOST_VAL, replace=False)]
    thresholds = [_calibrated(measured, size, rng) for size in SIZES]
    return Reference(np.sort(measured.T, axis=1), np.array(thresholds))


def _calibrated(measured: Floats, size: int, rng: np.random.Generator) -> float:
    vals = rng.integers(len(measured), size=(_REFERENCES, len(measured)))
    batches = rng.integers(len(measured), size=(_BATCHES, size))
    largest = np.zeros((_REFERENCES, _BATCHES))
    for values in measured.T:
        _, ranks = np.unique(values, return_inverse=True)
        of_batches = _cumulative(ranks[batches], len(measured))
        for index, of_val in enumerate(_cumulative(ranks[vals], len(measured))):
            np.maximum(largest[index], np.abs(of_batches - of_val).max(axis=1), out=largest[index])
    return float(np.quantile(np.quantile(largest, 1 - FALSE_ALARMS, axis=1), CONFIDENCE))


def _cumulative(ranks: NDArray[np.intp], levels: int) -> NDArray[np.float32]:
    """The cumulative distribution of each row of ranks (B, N) in 0..levels - 1, as (B, levels)."""
    rows = np.arange(len(ranks))[:, None]
    counts = np.bincount((rows * levels + ranks).ravel(), minlength=len(ranks) * levels)
    shares: NDArray[np.float32] = counts.reshape(len(ranks), levels).cumsum(axis=1, dtype=np.float32)
    return shares / np.float32(ranks.shape[1])
