"""95 % confidence intervals by the percentile bootstrap over images.

Images are drawn with replacement 2,000 times, and the score is computed for each resample. The interval
covers the middle 95 % of the results (Efron and Tibshirani 1993, An Introduction to the Bootstrap,
chapter 13, doi 10.1201/9780429246593). It shows how much the score depends on the choice of test images,
not on the training seed. With few images it is too narrow; with a single image both bounds are NaN.

The resamples come from a fixed seed and are identical for all scores over the same number of images.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

RESAMPLES = 2000
SEED = 0
COVERED = 0.95
CHUNK = 250  # resamples converted to float64 at a time: 14 MB for 6,788 images


class Interval(NamedTuple):
    """A score with the bounds of its 95 % interval; for a single image the bounds are NaN."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval is above zero, or the whole interval below."""
        return self.low > 0 or self.high < 0


def mean_intervals(values: Values) -> list[Interval]:
    """The mean of each column of `values` (N, M), one row per image."""
    images = len(values)
    means = _resampled_sums(values) / images
    return [_interval(values[:, m].mean(), means[:, m], images) for m in range(values.shape[1])]


def ratio_interval(part: Values, whole: Values) -> Interval:
    """sum(part) / sum(whole), both (N,), as for pooled scores; 1 if the whole is 0."""
    sums = _resampled_sums(np.stack([part, whole], axis=1))
    value = _ratio(part.sum(keepdims=True), whole.sum(keepdims=True))[0]
    return _interval(value, _ratio(sums[:, 0], sums[:, 1]), len(part))


def _interval(value: float, resampled: Values, images: int) -> Interval:
    tail = (1 - COVERED) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail]) if images > 1 else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high))


def _ratio(part: Values, whole: Values) -> Values:
    return np.divide(part, whole, out=np.ones(whole.shape), where=whole != 0)


def _resampled_sums(values: Values) -> Values:
    """The sum of each resample's rows of `values` (N, M); (RESAMPLES, M)."""
    draws = _draws(len(values))
    starts = range(0, RESAMPLES, CHUNK)
    return np.concatenate([draws[start : start + CHUNK].astype(np.float64) @ values for start in starts])


@lru_cache(maxsize=4)  # one entry per image set of a report; 27 MB for 6,788 images
def _draws(images: int) -> NDArray[np.uint16]:
    """How often each resample draws each image: (RESAMPLES, images)."""
    random = np.random.default_rng(SEED)
    even = np.full(images, 1 / images)
    chunks = [random.multinomial(images, even, CHUNK).astype(np.uint16) for _ in range(0, RESAMPLES, CHUNK)]
    return np.concatenate(chunks)
