"""Agreement between predicted and reference measurements, such as the infected share of the lungs."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.scoring.intervals import NORMAL, Interval, student

Values = NDArray[np.float64]


class Agreement(NamedTuple):
    """The bias and the limits of agreement, in the unit of the measurements, each with its 95% interval."""

    bias: Interval
    """The mean of predicted minus reference."""
    lower: Interval
    """About 95% of the differences lie between `lower` and `upper`, if they are normally distributed."""
    upper: Interval
    images: int


def agreement(predicted: Values, reference: Values) -> Agreement:
    """The analysis of Bland and Altman (1986, doi 10.1016/S0140-6736(86)90837-8) of N images, both (N,).

    The limits are bias -+ 1.96 standard deviations of the differences. The interval of the bias is Student's.
    That of a limit takes the variance s^2 (1 / N + 1.96^2 / (2 (N - 1))) (Bland and Altman 1999,
    doi 10.1177/096228029900800204). A single image has NaN limits and bounds.

    Raises:
        ValueError: there are no images.
    """
    if not len(predicted):
        raise ValueError("agreement needs at least one image")
    difference = predicted - reference
    bias, images = float(difference.mean()), len(difference)
    if images == 1:
        unknown = Interval(math.nan, math.nan, math.nan)
        return Agreement(Interval(bias, math.nan, math.nan), unknown, unknown, images)
    deviation, critical = float(difference.std(ddof=1)), student(images - 1)

    def within(value: float, error: float) -> Interval:
        return Interval(value, value - critical * error, value + critical * error)

    of_limit = deviation * math.sqrt(1 / images + NORMAL**2 / (2 * (images - 1)))
    return Agreement(
        within(bias, deviation / math.sqrt(images)),
        within(bias - NORMAL * deviation, of_limit),
        within(bias + NORMAL * deviation, of_limit),
        images,
    )
