"""The 95% interval of a difference between two proportions on the same images."""

import math
from collections.abc import Callable

from tasks.scoring.intervals import NORMAL, Interval


def paired_proportions(only_first: int, only_second: int, total: int) -> Interval:
    """The share of images with some result by the first predictor, minus the share by the second.

    Tango's score interval (1998, doi 10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B). It
    has a width also if both predictors agree on every image, where a bootstrap has none: then its bounds are
    those of Wilson's interval of 0 out of `total`.

    Args:
        only_first: images with the result by the first predictor only.
        only_second: images with the result by the second predictor only.
        total: all images, at least 1.
    """
    difference = (only_first - only_second) / total

    def distance(true: float) -> float:
        """How many standard errors the difference is above `true`."""
        variance = 2 * _only_second(only_first, only_second, total, true) + true * (1 - true)
        gap = difference - true
        return gap * math.sqrt(total / variance) if variance > 0 else math.copysign(math.inf, gap)

    low = _bound(lambda true: distance(true) > NORMAL, -1.0, difference)
    high = _bound(lambda true: distance(true) < -NORMAL, 1.0, difference)
    return Interval(difference, low, high)


def _only_second(only_first: int, only_second: int, total: int, difference: float) -> float:
    """The likeliest share of images with the result by the second predictor only, given the difference."""
    linear = -only_first - only_second + (2 * total - only_first + only_second) * difference
    constant = -only_second * difference * (1 - difference)
    root = math.sqrt(max(linear**2 - 8 * total * constant, 0.0))
    return (root - linear) / (4 * total)


def _bound(too_far: Callable[[float], bool], outside: float, inside: float) -> float:
    """The value between `outside` and `inside` that is just not too far, by bisection."""
    if inside == outside:
        return inside
    for _ in range(60):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if too_far(middle) else (outside, middle)
    return inside
