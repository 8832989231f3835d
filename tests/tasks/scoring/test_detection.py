import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from tasks.scoring.detection import CURVE_POINTS, proportion, roc_auc, roc_curve
from tasks.scoring.intervals import NORMAL

# --- proportions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "total"), [(0, 583), (583, 583), (18, 583), (1, 3), (0, 1)])
def test_proportion_of_one_training_against_scipy(successes: int, total: int) -> None:
    expected = stats.binomtest(successes, total).proportion_ci(method="wilson")
    assert proportion(successes, total) == pytest.approx((successes / total, expected.low, expected.high))
    assert proportion([successes], total) == proportion(successes, total)


def test_none_and_all_of_583_have_a_width() -> None:
    assert proportion(0, 583) == pytest.approx((0, 0, 0.0065), abs=5e-5)
    assert proportion(583, 583) == pytest.approx((1, 0.9935, 1), abs=5e-5)
    assert proportion([0, 0, 0], 583) == proportion(0, 583)


def test_seeds_widen_the_interval_and_do_not_multiply_the_images() -> None:
    assert proportion([12, 12, 12], 583) == proportion(12, 583)
    scattered = proportion([4, 12, 20], 583)
    assert scattered.value == pytest.approx(12 / 583)
    assert 0 < scattered.low < proportion(12, 583).low
    assert scattered.high > proportion(12, 583).high


def test_proportion_of_two_seeds_computed_by_hand() -> None:
    """Rates 0.1 and 0.3 of 100: variance 0.02 / 2 by seeds and 0.0016 by images."""
    effective = 0.16 / (0.0016 + 0.01)
    square = stats.t.ppf(0.975, 0.0116**2 / 0.01**2) ** 2 / effective
    centre = (0.2 + square / 2) / (1 + square)
    half = math.sqrt(square * 0.16 + square**2 / 4) / (1 + square)
    assert proportion([10, 30], 100) == pytest.approx((0.2, centre - half, centre + half))


@pytest.mark.parametrize("seeds", [(0, 583), (583, 583, 0)])
def test_bounds_of_dead_seeds_stay_between_0_and_1(seeds: Sequence[int]) -> None:
    interval = proportion(seeds, 583)
    assert 0 <= interval.low < 0.1
    assert 0.9 < interval.high <= 1


def test_proportion_of_no_images_is_nan() -> None:
    assert all(math.isnan(number) for number in proportion(0, 0))


# --- the area under the ROC curve ---------------------------------------------------------------------------


def drawn(positives: int, negatives: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and an area of about 0.86."""
    random = np.random.default_rng(seed)
    return random.normal(1.5, 1, positives).round(1), random.normal(0, 1, negatives).round(1)


def normal_area(area: float, positives: int, negatives: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    distance = stats.norm.ppf(area) * math.sqrt(2)
    return random.normal(distance, 1, positives), random.normal(0, 1, negatives)


def test_area_computed_by_hand() -> None:
    """Of six pairs four are in order, one is tied."""
    assert roc_auc(np.array([0.9, 0.4, 0.5]), np.array([0.5, 0.3])).value == pytest.approx(4.5 / 6)


def test_area_against_scikit_learn() -> None:
    positive, negative = drawn(60, 90)
    expected = roc_auc_score(np.repeat([1, 0], [60, 90]), np.concatenate([positive, negative]))
    assert roc_auc(positive, negative).value == pytest.approx(expected)
    assert roc_auc(negative, positive).value == pytest.approx(1 - expected)


def test_delong_interval_against_all_pairs() -> None:
    positive, negative = drawn(60, 90)
    order = np.sign(positive[:, None] - negative) / 2 + 0.5
    squared = order.mean(axis=1).var(ddof=1) / 60 + order.mean(axis=0).var(ddof=1) / 90
    area = order.mean()
    half = 1.959964 * math.sqrt(squared) / (area * (1 - area))
    bounds = [1 / (1 + math.exp(-(math.log(area / (1 - area)) + sign * half))) for sign in (-1, 1)]
    assert roc_auc(positive, negative) == pytest.approx((area, *bounds))


@pytest.mark.parametrize("images", [10, 100, 583])
def test_perfect_area_has_the_bound_of_hanley_and_mcneil(images: int) -> None:
    interval = roc_auc(np.ones(images), np.zeros(images))
    low = interval.low
    q1, q2 = low / (2 - low), 2 * low**2 / (1 + low)
    variance = low * (1 - low) + (images - 1) * (q1 + q2 - 2 * low**2)
    assert interval.value == interval.high == 1
    assert 0.5 < low < 1
    assert (1 - low) ** 2 == pytest.approx(NORMAL**2 * variance / images**2)
    opposite = roc_auc(np.zeros(images), np.ones(images))
    assert opposite == pytest.approx((0, 0, 1 - low))


def test_one_misordered_image_is_less_than_perfect_but_not_narrower() -> None:
    perfect = roc_auc(np.ones(100), np.zeros(100))
    nearly = roc_auc(np.append(np.ones(99), -1), np.zeros(100))
    assert nearly.value == pytest.approx(0.99)
    assert nearly.low < perfect.low
    assert nearly.value < nearly.high < 1


@pytest.mark.parametrize("area", [0.7, 0.95, 0.99])
@pytest.mark.parametrize("images", [50, 300])
def test_interval_of_an_area_has_the_nominal_coverage(area: float, images: int) -> None:
    found = [roc_auc(*normal_area(area, images, images, seed)) for seed in range(400)]
    covered = np.mean([interval.low <= area <= interval.high for interval in found])
    assert 0.925 <= covered <= 0.99


def test_images_that_all_score_the_same_have_the_area_one_half() -> None:
    assert roc_auc(np.zeros(20), np.zeros(30)) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize("function", [roc_auc, roc_curve])
def test_both_classes_are_required(function: object) -> None:
    assert callable(function)
    for given in [(np.ones(3), np.empty(0)), (np.empty(0), np.ones(3))]:
        with pytest.raises(ValueError, match="infected images and others"):
            function(*given)


# --- the ROC curve ------------------------------------------------------------------------------------------


def test_curve_computed_by_hand() -> None:
    curve = roc_curve(np.array([0.9, 0.4, 0.5]), np.array([0.5, 0.3]))
    assert curve.false_positive_rate == pytest.approx([0, 0, 1 / 2, 1 / 2, 1])
    assert curve.sensitivity == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])


def test_thinned_curve_keeps_its_ends_and_its_area() -> None:
    positive, negative = normal_area(0.9, 500, 600, 0)
    curve = roc_curve(positive, negative)
    assert len(curve.sensitivity) <= CURVE_POINTS
    assert (curve.false_positive_rate[0], curve.sensitivity[0]) == (0, 0)
    assert (curve.false_positive_rate[-1], curve.sensitivity[-1]) == (1, 1)
    assert (np.diff(curve.false_positive_rate) >= 0).all()
    assert (np.diff(curve.sensitivity) >= 0).all()
    area = np.trapezoid(curve.sensitivity, curve.false_positive_rate)
    assert area == pytest.approx(roc_auc(positive, negative).value, abs=0.002)
