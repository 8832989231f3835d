"""Tango's interval, against a score test whose restricted likelihood is maximised numerically."""

import math

import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm

from tasks.gate.proportions import paired_proportions

Z = float(norm.ppf(0.975))


def score(only_first: int, only_second: int, total: int, difference: float) -> float:
    """The score statistic for a difference: its numerator over its restricted standard error."""
    concordant = total - only_first - only_second

    def loss(second: float) -> float:
        chances = (
            (only_first, second + difference),
            (only_second, second),
            (concordant, 1 - 2 * second - difference),
        )
        return -sum(count * math.log(max(chance, 1e-300)) for count, chance in chances if count)

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    second = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    variance = total * (2 * second + difference * (1 - difference))
    return float((only_first - only_second - total * difference) / math.sqrt(variance))


@pytest.mark.parametrize("counts", [(12, 4, 100), (4, 12, 100), (7, 7, 233), (1, 0, 40), (30, 2, 466)])
def test_the_bounds_are_where_the_score_test_rejects(counts: tuple[int, int, int]) -> None:
    only_first, only_second, total = counts
    interval = paired_proportions(*counts)
    assert interval.value == pytest.approx((only_first - only_second) / total)
    low = brentq(lambda true: score(*counts, true) - Z, -0.9, interval.value - 1e-6)
    high = brentq(lambda true: score(*counts, true) + Z, interval.value + 1e-6, 0.9)
    assert interval.low == pytest.approx(low, abs=1e-5)
    assert interval.high == pytest.approx(high, abs=1e-5)


def test_predictors_that_agree_on_every_image_have_an_interval() -> None:
    """Its bounds are z^2 / (n + z^2)."""
    interval = paired_proportions(0, 0, 100)
    assert (interval.value, interval.high) == (0.0, pytest.approx(Z**2 / (100 + Z**2)))
    assert interval.low == pytest.approx(-interval.high)


def test_exchanged_predictors_have_the_opposite_interval() -> None:
    assert paired_proportions(9, 3, 50) == pytest.approx(paired_proportions(3, 9, 50).reversed)


def test_a_result_on_every_image_by_one_predictor_only_ends_at_one() -> None:
    assert paired_proportions(20, 0, 20).high == 1.0
