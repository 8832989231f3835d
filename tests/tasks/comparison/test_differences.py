import math

import pandas as pd
import pytest

from tasks.comparison.differences import difference, step_changes
from tasks.comparison.document import StepChange
from tasks.scoring.intervals import Interval


@pytest.mark.parametrize(
    ("interval", "winner"),
    [
        ((0.02, 0.01, 0.03), "a"),
        ((-0.02, -0.03, -0.01), "b"),
        ((0.02, -0.01, 0.05), None),
        ((0.0, 0.0, 0.0), None),
        ((0.02, math.nan, math.nan), None),
    ],
)
def test_winner_requires_an_interval_that_excludes_zero(
    interval: tuple[float, float, float], winner: str | None
) -> None:
    assert difference("iou", "a", "b", 100, Interval(*interval)).winner == winner


def test_smaller_error_wins() -> None:
    assert difference("mae", "a", "b", 100, Interval(-0.02, -0.03, -0.01)).winner == "a"
    assert difference("mae", "a", "b", 100, Interval(0.02, 0.01, 0.03)).winner == "b"


def test_single_image_has_no_interval() -> None:
    assert difference("iou", "a", "b", 1, Interval(0.02, math.nan, math.nan)).interval is None


def test_seed_without_a_step_counts_as_unchanged() -> None:
    rows = [
        {"seed": seed, "step": step, "id": image, "iou": iou, "dice": 0.5}
        for image in ("x", "y")
        for seed, step, iou in [(0, "plain", 0.5), (0, "threshold", 0.7), (1, "plain", 0.4)]
    ]
    ((iou, dice),) = step_changes(pd.DataFrame(rows), ["threshold"], "covid")
    assert (round(iou.value, 9), iou.excludes_zero) == (0.1, True)
    assert iou.interval and round(iou.interval.low, 9) == round(iou.interval.high, 9) == 0.1
    assert isinstance(dice, StepChange)
    assert (dice.image_set, dice.metric, dice.value, dice.excludes_zero) == ("covid", "dice", 0.0, False)
