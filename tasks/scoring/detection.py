"""Detection of infected images: 95% intervals of proportions, and the ROC curve with its area."""

import math
from collections.abc import Sequence
from statistics import variance
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.scoring.intervals import NORMAL, Interval, student

Values = NDArray[np.float64]

FEW = 5  # images of a class in misordered pairs, below which DeLong's variance is too small
CURVE_POINTS = 100


# --- proportions --------------------------------------------------------------------------------------------


def proportion(successes: int | Sequence[int], total: int) -> Interval:
    """The share of images with some result, such as missed lesions; NaN bounds if there are no images.

    One training has the Wilson interval (1927, doi 10.1080/01621459.1927.10502953), which has a width at 0%
    and 100% too. Several trainings have the Wilson interval of their mean rate p:

    - They share the images, so they count as `total` images, not as a multiple.
    - The variance of their rates shrinks this number to the effective sample size
      p (1 - p) / (p (1 - p) / total + variance / seeds), as surveys do with a design effect (Korn and
      Graubard 1998, Survey Methodology 24:193-201). Student's t with Satterthwaite's degrees of freedom
      (1946, doi 10.2307/3002019) replaces the normal quantile.

    Args:
        successes: the number of images, or that of each seed.
        total: the number of images, the same for all seeds.
    """
    counts = [successes] if isinstance(successes, int | np.integer) else list(successes)
    if total == 0:
        return Interval(math.nan, math.nan, math.nan)
    rates = [count / total for count in counts]
    rate = sum(counts) / len(counts) / total
    by_images = rate * (1 - rate) / total
    by_seeds = variance(rates) / len(rates) if len(rates) > 1 else 0.0
    if by_seeds == 0:
        return _wilson(rate, total, NORMAL)
    df = (by_images + by_seeds) ** 2 / (by_seeds**2 / (len(rates) - 1))
    return _wilson(rate, rate * (1 - rate) / (by_images + by_seeds), student(df))


def _wilson(rate: float, images: float, critical: float) -> Interval:
    square = critical**2 / images
    centre = (rate + square / 2) / (1 + square)
    half = math.sqrt(square * (rate * (1 - rate) + square / 4)) / (1 + square)
    # At 0% and 100% one bound is exactly the rate, but for rounding.
    return Interval(rate, min(max(centre - half, 0.0), rate), max(min(centre + half, 1.0), rate))


# --- the ROC curve ------------------------------------------------------------------------------------------


class RocCurve(NamedTuple):
    """Points of a ROC curve from (0, 0) to (1, 1), by decreasing threshold."""

    false_positive_rate: Values
    sensitivity: Values


def roc_curve(positive: Values, negative: Values) -> RocCurve:
    """Sensitivity and false positive rate at every threshold, thinned to at most `CURVE_POINTS`.

    Args:
        positive: the scores of the images that are infected, (M,), M > 0.
        negative: the scores of the images that are not, (N,), N > 0.

    Raises:
        ValueError: one of the two is empty.
    """
    _refuse_empty(positive, negative)
    thresholds = np.unique(np.concatenate([positive, negative]))[::-1]
    rates = [_shares_at_least(scores, thresholds) for scores in (negative, positive)]
    curve = RocCurve(*(np.concatenate([[0.0], of_class]) for of_class in rates))
    if len(curve.sensitivity) <= CURVE_POINTS:
        return curve
    along = curve.false_positive_rate + curve.sensitivity
    kept = np.unique(np.searchsorted(along, np.linspace(0, 2, CURVE_POINTS)).clip(max=len(along) - 1))
    return RocCurve(curve.false_positive_rate[kept], curve.sensitivity[kept])


def _shares_at_least(scores: Values, thresholds: Values) -> Values:
    return 1 - np.searchsorted(np.sort(scores), thresholds, side="left") / len(scores)


def roc_auc(positive: Values, negative: Values) -> Interval:
    """The area under the ROC curve: the probability that an infected image has the higher score.

    A tie counts half (Mann and Whitney). The interval is DeLong's (1988, doi 10.2307/2531595) on the logit
    scale. Its variance comes from the images that are in a misordered or tied pair. It is too small if these
    are fewer than 5 infected images, or fewer than 5 others, and 0 for an area of 1. In such a case the
    result is the score interval with Hanley and McNeil's variance, which corresponds to Wilson's of a
    proportion (Newcombe 2006, doi 10.1002/sim.2324, method 5).

    If all images have one score, the area is 0.5 by definition, without a width.

    Args:
        positive: the scores of the images that are infected, (M,), M > 0.
        negative: the scores of the images that are not, (N,), N > 0.

    Raises:
        ValueError: one of the two is empty.
    """
    _refuse_empty(positive, negative)
    of_positive, of_negative = _shares_below(positive, negative), 1 - _shares_below(negative, positive)
    area = float(of_positive.mean())
    # The smaller area of the classifier and its opposite decides how many images are in the wrong order.
    images = [shares if area >= 0.5 else 1 - shares for shares in (of_positive, of_negative)]
    if min(int((shares < 1).sum()) for shares in images) < FEW:
        low, high = (_newcombe_low(a, len(positive), len(negative)) for a in (area, 1 - area))
        return Interval(area, low, 1 - high)
    squared = of_positive.var(ddof=1) / len(positive) + of_negative.var(ddof=1) / len(negative)
    return _logit_interval(area, math.sqrt(squared))


def _refuse_empty(positive: Values, negative: Values) -> None:
    if not len(positive) or not len(negative):
        raise ValueError("the ROC curve needs infected images and others")


def _shares_below(scores: Values, others: Values) -> Values:
    """For each score, the share of the others that are below; a tie counts half."""
    ordered = np.sort(others)
    below, up_to = (np.searchsorted(ordered, scores, side=side) for side in ("left", "right"))
    return (below + up_to) / (2 * len(others))


def _logit_interval(area: float, error: float) -> Interval:
    logit, half = math.log(area / (1 - area)), NORMAL * error / (area * (1 - area))
    low, high = (1 / (1 + math.exp(-bound)) for bound in (logit - half, logit + half))
    return Interval(area, low, high)


def _newcombe_low(area: float, positives: int, negatives: int) -> float:
    """The area below `area` from which it is just 1.96 standard errors away, by bisection."""
    others = (positives + negatives) / 2 - 1

    def too_far(true: float) -> bool:
        both = others * ((1 - true) / (2 - true) + true / (1 + true))
        return (area - true) ** 2 > NORMAL**2 * true * (1 - true) * (1 + both) / (positives * negatives)

    low, high = 0.0, area
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if too_far(middle) else (low, middle)
    return low
