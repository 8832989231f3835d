import math

import numpy as np
import pytest
from scipy import stats

from tasks.scoring.intervals import COVERED, Interval, mean_intervals, ratio_interval


def mean_interval(values: np.ndarray) -> Interval:
    return mean_intervals(values[:, None])[0]


def paired_difference(first: np.ndarray, second: np.ndarray) -> Interval:
    return mean_interval(first - second)


@pytest.fixture
def scores() -> np.ndarray:
    """Scores in [0, 1] of 300 images, skewed like Dice scores."""
    return np.random.default_rng(2).beta(5, 2, size=300)


@pytest.mark.parametrize(("images", "least"), [(40, 0.91), (200, 0.925)])
def test_interval_of_a_mean_has_the_nominal_coverage(images: int, least: float) -> None:
    samples = np.random.default_rng(4).beta(5, 2, size=(images, 2000))
    covered = np.mean([i.low <= 5 / 7 <= i.high for i in mean_intervals(samples)])
    assert least < covered < COVERED + 0.015


def test_mean_against_scipy(scores: np.ndarray) -> None:
    expected = stats.bootstrap(
        (scores,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    interval = mean_interval(scores)
    assert interval.value == pytest.approx(scores.mean())
    assert interval.low == pytest.approx(expected.low, abs=1e-3)
    assert interval.high == pytest.approx(expected.high, abs=1e-3)


def test_ratio_against_scipy(scores: np.ndarray) -> None:
    whole = np.random.default_rng(3).integers(1, 5000, size=300)
    part = np.round(scores * whole)

    def pooled(part: np.ndarray, whole: np.ndarray, axis: int) -> np.ndarray:
        return part.sum(axis=axis) / whole.sum(axis=axis)

    expected = stats.bootstrap(
        (part, whole),
        pooled,
        n_resamples=20_000,
        method="percentile",
        paired=True,
        rng=np.random.default_rng(1),
    ).confidence_interval
    interval = ratio_interval(part, whole)
    assert interval.value == pytest.approx(part.sum() / whole.sum())
    assert interval.low == pytest.approx(expected.low, abs=1.5e-3)
    assert interval.high == pytest.approx(expected.high, abs=1.5e-3)


def test_columns_are_resampled_independently_of_each_other(scores: np.ndarray) -> None:
    columns = np.stack([scores, 1 - scores], axis=1)
    alone = [mean_interval(columns[:, 0]), mean_interval(columns[:, 1])]
    for actual, expected in zip(mean_intervals(columns), alone, strict=True):
        assert actual == pytest.approx(expected)


def test_repeated_calls_give_the_same_interval(scores: np.ndarray) -> None:
    first = mean_interval(scores)
    np.random.default_rng().random(10)
    mean_interval(scores[:20])
    assert mean_interval(scores) == first


def test_pairing_detects_a_difference_that_single_intervals_hide(scores: np.ndarray) -> None:
    better = scores + np.random.default_rng(6).normal(0.01, 0.02, size=300)
    assert mean_interval(better).low < mean_interval(scores).high
    difference = paired_difference(better, scores)
    assert difference.value == pytest.approx((better - scores).mean())
    assert difference.excludes_zero
    turned = paired_difference(scores, better)
    assert turned.excludes_zero
    assert turned == pytest.approx((-difference.value, -difference.high, -difference.low))


def test_noise_is_not_a_significant_difference(scores: np.ndarray) -> None:
    other = scores + np.random.default_rng(8).normal(0.0, 0.02, size=300)
    assert not paired_difference(other, scores).excludes_zero
    assert paired_difference(scores, scores) == (0, 0, 0)
    assert not paired_difference(scores, scores).excludes_zero


def test_constant_has_an_interval_of_zero_width() -> None:
    assert mean_interval(np.full(30, 0.25)) == pytest.approx((0.25, 0.25, 0.25))


def test_single_image_has_nan_bounds() -> None:
    for interval in (
        mean_interval(np.array([0.7])),
        ratio_interval(np.array([7.0]), np.array([10.0])),
        paired_difference(np.array([0.9]), np.array([0.2])),
    ):
        assert interval.value == pytest.approx(0.7)
        assert math.isnan(interval.low)
        assert math.isnan(interval.high)
        assert not interval.excludes_zero


def test_ratio_with_an_empty_whole_is_one() -> None:
    empty = np.zeros(5)
    assert ratio_interval(empty, empty) == (1, 1, 1)
    mostly_empty = np.array([0.0] * 9 + [4.0])
    assert ratio_interval(mostly_empty, mostly_empty) == (1, 1, 1)


@pytest.mark.parametrize(
    ("low", "high", "excludes"),
    [(0.1, 0.3, True), (-0.3, -0.1, True), (-0.1, 0.1, False), (0.0, 0.1, False), (-0.1, 0.0, False)],
)
def test_zero_on_a_bound_is_not_excluded(low: float, high: float, excludes: bool) -> None:
    assert Interval((low + high) / 2, low, high).excludes_zero == excludes
