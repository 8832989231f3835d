"""Whether an ensemble's disagreement identifies its bad masks, so that these can be left to a person.

Images are left out by decreasing disagreement. The risk is the mean of 1 - Dice over the images that remain,
the coverage their share (selective prediction; Geifman and El-Yaniv 2017, arXiv:1705.08500). The area under
this curve is compared with those of a random order and of the best order, which knows each Dice:

    rejection ratio = (random - area) / (random - best)

It is 1 for the best order and 0 for a random one (Malinin et al. 2020, arXiv:2002.07650).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.scoring.intervals import COVERED, SEED, Interval

Values = NDArray[np.float64]

#: Resamples of the images for the interval of the rejection ratio.
DRAWS = 1000


class Rejection(NamedTuple):
    """The risk-coverage curve of N images, from all images to a single one."""

    coverage: Values
    """Shares of images that remain, (N,), increasing to 1."""
    risk: Values
    """Mean of 1 - Dice over these images."""
    random: float
    """The risk of all images, which a random order has at every coverage."""
    best: Values
    """The risk if images are left out by increasing Dice."""
    ratio: Interval
    """The rejection ratio; NaN if all images have the same Dice."""


def rejection(disagreement: Values, dice: Values) -> Rejection:
    """The curve for images with these values, (N,) each, without NaN. The ratio has a 95% interval."""
    risk = 1 - dice
    random = np.random.default_rng(SEED)
    drawn = (random.integers(0, len(risk), len(risk)) for _ in range(DRAWS))
    ratios = np.array([_ratio(disagreement[rows], risk[rows]) for rows in drawn])
    ratios = ratios[np.isfinite(ratios)]
    low, high = (
        np.quantile(ratios, [(1 - COVERED) / 2, (1 + COVERED) / 2]) if len(ratios) else (np.nan, np.nan)
    )
    return Rejection(
        coverage=np.arange(1, len(risk) + 1) / len(risk),
        risk=_curve(disagreement, risk),
        random=float(risk.mean()),
        best=_curve(risk, risk),
        ratio=Interval(_ratio(disagreement, risk), float(low), float(high)),
    )


def _ratio(order: Values, risk: Values) -> float:
    random, area, best = risk.mean(), _curve(order, risk).mean(), _curve(risk, risk).mean()
    return float((random - area) / (random - best)) if random > best else float("nan")


def _curve(order: Values, risk: Values) -> Values:
    """The mean risk of the 1, 2, ... images that come first; equal images share their mean risk."""
    _, group = np.unique(order, return_inverse=True)
    means = np.bincount(group, weights=risk) / np.bincount(group)
    return np.cumsum(means[np.sort(group)]) / np.arange(1, len(risk) + 1)
