"""95% confidence intervals of scores and of differences between predictors, over images and trainings.

A predictor has one score per seed and image, (S, N). Its score is the mean of all. Two things make a mean
uncertain, and each has its part in the interval:

- The choice of test images. Images are drawn with replacement within each class, because the dataset fixes
  how many images each class has. All predictors share the resamples, which keeps them paired. The errors are
  studentised: each resample is divided by its own standard error. Symmetric intervals of this kind keep their
  coverage with few images and skewed scores (Hall 1988, doi 10.1214/aos/1176350933).
- The luck of training. The variance of the seeds' means is pooled over all trained predictors of a family,
  and is divided by the number of seeds. A predictor with one seed gets the same pooled variance. Its error is
  drawn as `s * t`, with Student's t of the pooled degrees of freedom, because few seeds estimate `s` badly.
  If no predictor has several seeds, this part is missing, and `covers_training` is False. Noise of single
  images that differs between seeds counts in both parts, which makes intervals slightly too wide.

Differences are simultaneous: with 95% confidence, ALL intervals of a family contain their true differences.
The critical value is the 95% quantile of the family's largest |error| / standard error over the resamples
(max-T; Romano and Wolf 2005, doi 10.1198/016214504000000539).

The images count as independent: the dataset has no patient ids, so images of one patient make the intervals
too narrow. All draws come from a fixed seed, so equal inputs give equal intervals. For a single image, bounds
are NaN.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from statistics import NormalDist
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Drawn = NDArray[np.float32]
Strata = NDArray[np.integer]
Pair = tuple[str, str]

COVERED = 0.95
QUANTILE = (1 + COVERED) / 2  # of a distribution, for a two-sided interval
NORMAL = NormalDist().inv_cdf(QUANTILE)  # 1.96
SEED = 0
SEEDS_STREAM = 2**31  # of the draws, unlike those of the classes of images, which are 0, 1, 2 ...
DRAWS = 4000  # the quantile of a maximum over 105 pairs then varies by 1% with the seed
CHUNK = 500  # resamples converted to float32 at a time: 14 MB for 6,788 images
ROUNDING = 1e-12  # differences below this share of the largest score come from rounding

#: The standard error of a resample is at least this share of the sample's. A resample that by chance leaves
#: out the few images that differ has a standard error near zero, and would make the interval infinite.
LEAST_SHARE = 0.5


class Interval(NamedTuple):
    """A score with the bounds of its 95% interval; for a single image the bounds are NaN."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval is above zero, or the whole interval below."""
        return self.low > 0 or self.high < 0

    @property
    def reversed(self) -> "Interval":
        """The interval of the opposite difference, second minus first."""
        return Interval(-self.value, -self.high, -self.low)

    def clipped(self, least: float, most: float) -> "Interval":
        """The interval with its bounds limited to the range of the score."""
        low, high = np.clip([self.low, self.high], least, most)
        return Interval(self.value, float(low), float(high))


def student(df: float) -> float:
    """The quantile of Student's t distribution for a 95% interval; with many degrees of freedom `NORMAL`."""
    from scipy.special import stdtrit  # takes a third of a second to import

    return float(stdtrit(df, QUANTILE))


class Predictor(NamedTuple):
    """The scores of an experiment or of a trivial predictor, without NaN."""

    values: Values
    """(S, N): one row per seed, one column per image. All predictors have the same images in one order."""
    trained: bool = True
    """False for a trivial predictor, which would give the same scores again."""


class SeedVariance(NamedTuple):
    """The variance of the mean score between trainings that differ only in their seed."""

    value: float
    df: int
    """Degrees of freedom of the estimate."""


class ScoreIntervals(NamedTuple):
    """The interval of each predictor's score."""

    intervals: dict[str, Interval]
    covers_training: bool
    """Whether the intervals include the variation between trainings, not only between images."""


class DifferenceIntervals(NamedTuple):
    """Simultaneous intervals of the differences of a family, each first minus second."""

    intervals: dict[Pair, Interval]
    covers_training: bool
    """Whether the intervals include the variation between trainings, not only between images."""

    def between(self, first: str, second: str) -> Interval:
        """First minus second, in whichever order the family has the pair."""
        if (first, second) in self.intervals:
            return self.intervals[first, second]
        return self.intervals[second, first].reversed


class PairedDifference(NamedTuple):
    """The interval of a single difference, first minus second."""

    interval: Interval
    covers_training: bool
    """Whether the interval includes the variation between trainings, not only between images."""


def scores(
    predictors: Mapping[str, Predictor], strata: Strata, within: tuple[float, float] = (-math.inf, math.inf)
) -> ScoreIntervals:
    """The mean score of each predictor; each interval by itself covers with 95%.

    Args:
        predictors: the scores of one target, image set and metric.
        strata: the class of each image, (N,).
        within: the range of the score, to which bounds are limited.
    """
    training = _Training.of(predictors, pooled_seed_variance(predictors.values()))
    errors = _errors(predictors, strata, np.eye(len(predictors)), training, simultaneous=False)
    intervals = [interval.clipped(*within) for interval in errors.intervals(simultaneous=False)]
    return ScoreIntervals(dict(zip(predictors, intervals, strict=True)), training.covered)


def differences(
    predictors: Mapping[str, Predictor], strata: Strata, pairs: Sequence[Pair] | None = None
) -> DifferenceIntervals:
    """The differences of a family of pairs, with simultaneous intervals.

    Args:
        predictors: the scores of one target, image set and metric. All of them, also those that are in no
            pair, contribute to the pooled variance of the seeds.
        strata: the class of each image, (N,).
        pairs: the family; default: each two predictors once, in the order of `predictors`.
    """
    return _differences(predictors, strata, pairs, pooled_seed_variance(predictors.values()))


def paired_difference(
    first: Values, second: Values, strata: Strata, seed_variance: SeedVariance | None = None
) -> PairedDifference:
    """The difference between two trained predictors, (S1, N) and (S2, N), as a family of its own.

    Args:
        first: one row per seed, one column per image.
        second: likewise, for the same images.
        strata: the class of each image, (N,).
        seed_variance: that of comparable experiments; default: pooled from the two.
    """
    two = {"first": Predictor(first), "second": Predictor(second)}
    found = _differences(two, strata, None, seed_variance or pooled_seed_variance(two.values()))
    return PairedDifference(found.between("first", "second"), found.covers_training)


def pooled_seed_variance(predictors: Iterable[Predictor]) -> SeedVariance | None:
    """The variance of the seeds' means within each trained predictor, pooled; None without several seeds.

    The seeds' means are over the same images, so that the choice of images has no part in it.
    """
    means = [each.values.mean(axis=1) for each in predictors if each.trained]
    df = sum(len(seeds) - 1 for seeds in means)
    if df == 0:
        return None
    squares = sum(float(((seeds - seeds.mean()) ** 2).sum()) for seeds in means)
    return SeedVariance(squares / df, df)


def pooled_values(part: Values, whole: Values) -> Values:
    """Scores per image, (S, N), whose mean for each seed is sum(part) / sum(whole), as for pooled IoU.

    The ratio plus its derivatives with respect to the images, so that the intervals of means hold for pooled
    scores too (the delta method; Efron 1982, doi 10.1137/1.9781611970319, chapter 6). A seed whose whole is 0
    has the ratio 1.

    Args:
        part: (S, N), such as the true positives.
        whole: (S, N), such as the pixels in either mask.
    """
    total = whole.sum(axis=1, keepdims=True)
    empty = total == 0
    ratio = np.where(empty, 1.0, part.sum(axis=1, keepdims=True) / np.where(empty, 1, total))
    return ratio + (part - ratio * whole) * np.where(empty, 0.0, whole.shape[1] / np.where(empty, 1, total))


def between_samples(first: Values, second: Values) -> Values:
    """Values (S, N1 + N2) whose mean for each seed is the mean of `first` minus the mean of `second`.

    For two samples of images, (S, N1) and (S, N2), on which the same S trainings are scored. The intervals of
    `scores` hold for these values if no stratum has images of both samples.
    """
    images = first.shape[1] + second.shape[1]
    return np.concatenate([first * (images / first.shape[1]), -second * (images / second.shape[1])], axis=1)


# --- errors of contrasts ------------------------------------------------------------------------------------


def _differences(
    predictors: Mapping[str, Predictor],
    strata: Strata,
    pairs: Sequence[Pair] | None,
    seed_variance: SeedVariance | None,
) -> DifferenceIntervals:
    pairs = list(combinations(predictors, 2)) if pairs is None else pairs
    training = _Training.of(predictors, seed_variance)
    if not pairs:
        return DifferenceIntervals({}, training.covered)
    contrasts = _contrasts(list(predictors), pairs)
    errors = _errors(predictors, strata, contrasts, training, simultaneous=True)
    intervals = errors.intervals(simultaneous=True)
    return DifferenceIntervals(dict(zip(pairs, intervals, strict=True)), training.covered)


def _contrasts(names: Sequence[str], pairs: Sequence[Pair]) -> Values:
    """(P, K): the weights of the predictors in each difference."""
    weights = np.zeros((len(pairs), len(names)))
    for row, (first, second) in zip(weights, pairs, strict=True):
        row[names.index(first)] += 1
        row[names.index(second)] -= 1
    return weights


class _Training(NamedTuple):
    """The part of the seeds in the error of each predictor."""

    variance: SeedVariance | None
    shares: Values
    """(K,): 1 / number of seeds; 0 for a trivial predictor."""

    @classmethod
    def of(cls, predictors: Mapping[str, Predictor], variance: SeedVariance | None) -> Self:
        shares = [1 / len(each.values) if each.trained else 0.0 for each in predictors.values()]
        return cls(variance, np.array(shares))

    @property
    def covered(self) -> bool:
        """Whether the variance is known, or no predictor was trained."""
        return self.variance is not None or not self.shares.any()

    def variances(self, contrasts: Values) -> Values:
        """The seeds' part in the variance of each contrast, (P,)."""
        one = self.variance.value if self.variance else 0.0
        return one * (contrasts**2 @ self.shares)

    def errors(self, contrasts: Values, independent: bool) -> Values | float:
        """Drawn errors of each contrast, (DRAWS, P); the predictors' errors are independent or the same."""
        if self.variance is None:
            return 0.0
        random, df = np.random.default_rng([SEED, SEEDS_STREAM]), self.variance.df
        scale = np.sqrt(self.variance.value * df / random.chisquare(df, (DRAWS, 1)))
        normal = random.standard_normal((DRAWS, len(self.shares) if independent else 1))
        return scale * ((normal * np.sqrt(self.shares)) @ contrasts.T)


class _Errors(NamedTuple):
    """The values of P contrasts, their variances, and drawn errors."""

    values: Values
    variances: Values
    drawn: Values
    """(DRAWS, P)."""

    def intervals(self, simultaneous: bool) -> list[Interval]:
        """The intervals of the whole family, or of each contrast by itself."""
        errors = np.sqrt(self.variances)
        studentised = np.abs(self.drawn) / np.where(errors == 0, np.inf, errors)
        largest = studentised.max(axis=1, keepdims=True) if simultaneous else studentised
        widths = np.quantile(largest, COVERED, axis=0) * errors
        bounds = zip(self.values, self.values - widths, self.values + widths, strict=True)
        return [Interval(*map(float, each)) for each in bounds]


def _errors(
    predictors: Mapping[str, Predictor],
    strata: Strata,
    contrasts: Values,
    training: _Training,
    simultaneous: bool,
) -> _Errors:
    """The errors of contrasts (P, K), by images and seeds together."""
    values = np.stack([each.values.mean(axis=0) for each in predictors.values()], axis=1)
    assert values.shape == (len(strata), len(predictors))
    assert np.isfinite(values).all()
    images = _image_errors(values, strata, contrasts)
    return _Errors(
        images.values,
        images.variances + training.variances(contrasts),
        images.drawn + training.errors(contrasts, independent=simultaneous),
    )


def _image_errors(values: Values, strata: Strata, contrasts: Values) -> _Errors:
    """The errors of contrasts by the choice of images; of a single image, all NaN."""
    each = _without_rounding(values @ contrasts.T, values)
    parts = []
    for stream, rows in enumerate(_strata_rows(strata)):
        deviations = _without_rounding(each[rows] - each[rows].mean(axis=0), values)
        means, mean_squares = _resampled_means(deviations, stream)
        share = len(rows) / len(values)
        scale = share**2 / (len(rows) - 1) if len(rows) > 1 else np.nan
        variances, resampled = (deviations**2).mean(axis=0), mean_squares - means**2
        parts.append((scale * variances, scale * resampled, share * means))
    variances, resampled, shifts = (sum(of_strata) for of_strata in zip(*parts, strict=True))
    least = np.maximum(LEAST_SHARE**2 * variances, np.finfo(float).tiny)
    drawn = shifts * np.sqrt(variances / np.maximum(resampled, least))
    return _Errors(each.mean(axis=0), variances, drawn)


def _without_rounding(differences: Values, scores: Values) -> Values:
    """Differences of equal scores are 0, whatever the order of the sums was."""
    return np.where(np.abs(differences) > ROUNDING * np.abs(scores).max(), differences, 0.0)


def _strata_rows(strata: Strata) -> list[NDArray[np.intp]]:
    """The images of each stratum. A single image joins the smallest other stratum, to have a variance."""
    rows = sorted((np.flatnonzero(strata == each) for each in np.unique(strata)), key=len)
    while len(rows) > 1 and len(rows[0]) == 1:
        rows[:2] = [np.sort(np.concatenate(rows[:2]))]
        rows.sort(key=len)
    return rows


def _resampled_means(values: Values, stream: int) -> tuple[Drawn, Drawn]:
    """The means of `values` (N, P) and of their squares in each resample: (DRAWS, P) each."""
    counts, single = _counts(len(values), stream), values.astype(np.float32)
    both = np.concatenate([single, single**2], axis=1)
    sums = [counts[start : start + CHUNK].astype(np.float32) @ both for start in range(0, DRAWS, CHUNK)]
    means = np.concatenate(sums)
    means /= len(values)
    return means[:, : values.shape[1]], means[:, values.shape[1] :]


@lru_cache(maxsize=8)  # one entry per class and image set of a report; 27 MB for 6,788 images
def _counts(images: int, stream: int) -> NDArray[np.uint8]:
    """How often each resample draws each image: (DRAWS, images). Streams are independent."""
    random = np.random.default_rng([SEED, stream])
    cells = np.arange(CHUNK)[:, None] * images
    chunks = []
    for _ in range(0, DRAWS, CHUNK):
        drawn = random.integers(0, images, (CHUNK, images)) + cells
        chunks.append(np.bincount(drawn.ravel(), minlength=CHUNK * images).astype(np.uint8))
    return np.concatenate(chunks).reshape(DRAWS, images)
