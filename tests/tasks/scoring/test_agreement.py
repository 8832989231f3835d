import math

import numpy as np
import pytest
from scipy import stats

from tasks.scoring.agreement import agreement

#: Peak flow of 17 people in l/min, by a large and by a mini meter: table 1 of Bland and Altman 1986.
LARGE = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
MINI = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]


def test_the_example_of_bland_and_altman() -> None:
    """Their limits are 2 standard deviations from the bias; these are 1.96."""
    found = agreement(np.array(LARGE, dtype=float), np.array(MINI, dtype=float))
    assert found.images == 17
    assert found.bias == pytest.approx((-2.1, -22.0, 17.8), abs=0.1)
    assert found.lower == pytest.approx(
        (-79.7 + 0.04 * 38.8, -114.3 + 0.04 * 38.8, -45.1 + 0.04 * 38.8), abs=0.5
    )
    assert found.upper == pytest.approx(
        (75.5 - 0.04 * 38.8, 40.9 - 0.04 * 38.8, 110.1 - 0.04 * 38.8), abs=0.5
    )


def test_bias_against_scipy() -> None:
    random = np.random.default_rng(0)
    predicted, reference = random.normal(0.2, 0.1, 40), random.normal(0.25, 0.1, 40)
    expected = stats.ttest_rel(predicted, reference).confidence_interval(0.95)
    assert agreement(predicted, reference).bias[1:] == pytest.approx((expected.low, expected.high))


def test_intervals_of_the_limits_have_the_nominal_coverage() -> None:
    random, true = np.random.default_rng(1), stats.norm.ppf(0.975)
    found = [agreement(random.normal(0, 1, 30), np.zeros(30)) for _ in range(1000)]
    for limits in ([-each.lower.high for each in found], [each.upper.low for each in found]):
        assert np.mean(np.array(limits) <= true) > 0.95
    covered = [each.upper.low <= true <= each.upper.high for each in found]
    assert 0.93 < np.mean(covered) < 0.97


def test_equal_measurements_agree_without_width() -> None:
    values = np.array([0.1, 0.4, 0.3])
    found = agreement(values, values)
    assert found.bias == found.lower == found.upper == (0, 0, 0)


def test_single_image_has_a_bias_alone() -> None:
    found = agreement(np.array([0.3]), np.array([0.1]))
    assert found.bias.value == pytest.approx(0.2)
    assert all(map(math.isnan, (*found.bias[1:], *found.lower, *found.upper)))


def test_at_least_one_image_is_required() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        agreement(np.empty(0), np.empty(0))
