"""How sure a figure is: 95 % intervals by the percentile bootstrap over images.

Images are drawn with replacement and the figure is computed again, 2,000 times; the interval spans the
middle 95 % of what came out (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13,
doi 10.1201/9780429246593). It says how much the figure depends on which images the test set holds, not
on the training's seed. With few images it is too narrow; of a single one nothing can be said, and both
bounds are NaN.

The draws come from a fixed seed and are the same for every figure of as many images.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

RESAMPLES = 2000
SEED = 0
COVERED = 0.95
CHUNK = 250  # resamples in float64 at a time: 14 MB for 6,788 images


class Interval(NamedTuple):
    """A figure and the bounds of its 95 % interval; the bounds of a single image are NaN."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the figure is surely above, or surely below, zero."""
        return self.low > 0 or self.high < 0


def mean_intervals(values: Values) -> list[Interval]:
    """The mean of each column of `values` (N, M), one row an image."""
    images = len(values)
    means = _resampled_sums(values) / images
    return [_interval(values[:, m].mean(), means[:, m], images) for m in range(values.shape[1])]


def ratio_interval(part: Values, whole: Values) -> Interval:
    """sum(part) / sum(whole), both (N,), as pooled scores are; 1 where the whole is 0."""
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
    """The sums of each resample's rows of `values` (N, M); (RESAMPLES, M)."""
    draws = _draws(len(values))
    starts = range(0, RESAMPLES, CHUNK)
    return np.concatenate([draws[start : start + CHUNK].astype(np.float64) @ values for start in starts])


@lru_cache(maxsize=4)  # the image sets of a report; 27 MB for 6,788 images
def _draws(images: int) -> NDArray[np.uint16]:
    """How often each image is drawn, for each resample: (RESAMPLES, images)."""
    random = np.random.default_rng(SEED)
    even = np.full(images, 1 / images)
    chunks = [random.multinomial(images, even, CHUNK).astype(np.uint16) for _ in range(0, RESAMPLES, CHUNK)]
    return np.concatenate(chunks)
