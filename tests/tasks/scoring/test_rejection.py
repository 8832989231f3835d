import numpy as np
import pytest

from tasks.scoring.rejection import rejection

DICE = np.array([0.9, 0.5, 0.7, 0.1])


def test_the_risk_is_that_of_the_images_that_remain() -> None:
    found = rejection(np.array([0.1, 0.3, 0.2, 0.4]), DICE)
    np.testing.assert_allclose(found.coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(found.risk, [0.1, 0.2, 0.3, 0.45])
    np.testing.assert_allclose(found.best, found.risk)
    assert found.random == pytest.approx(0.45)
    assert found.ratio.value == pytest.approx(1)


def test_the_opposite_order_is_as_bad_as_the_best_is_good() -> None:
    found = rejection(1 - np.array([0.1, 0.3, 0.2, 0.4]), DICE)
    np.testing.assert_allclose(found.risk, [0.9, 0.7, 0.566666667, 0.45])
    # Areas: 0.654 of this order, 0.2625 of the best, 0.45 of a random one.
    assert found.ratio.value == pytest.approx((0.45 - 0.654166667) / (0.45 - 0.2625))


def test_images_with_equal_disagreement_come_in_no_order() -> None:
    found = rejection(np.zeros(4), DICE)
    np.testing.assert_allclose(found.risk, np.full(4, 0.45))
    assert found.ratio.value == pytest.approx(0)


def test_without_bad_masks_there_is_no_ratio() -> None:
    found = rejection(np.array([0.1, 0.2]), np.array([0.8, 0.8]))
    assert np.isnan(found.ratio.value) and np.isnan(found.ratio.low)


def test_the_interval_of_unrelated_values_includes_0_and_that_of_related_ones_does_not() -> None:
    random = np.random.default_rng(0)
    dice = random.uniform(size=300)
    unrelated = rejection(random.uniform(size=300), dice).ratio
    assert unrelated.low < 0 < unrelated.high
    related = rejection(1 - dice + random.normal(scale=0.3, size=300), dice).ratio
    assert 0 < related.low < related.value < related.high < 1
