import math

import pytest

from tasks.comparison.differences import difference as of_pair
from tasks.comparison.document import Bounds, Difference, Step, StepChange
from tasks.reporting.differences import DifferenceCell, postprocessing, step_cell, telling, verdict, whiskers
from tasks.scoring.intervals import Interval
from tests.results import PLAIN


def difference(value: float, low: float, high: float) -> Difference:
    return of_pair("iou", "a", "b", Interval(value, low, high))


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.02, 0.01, 0.03), "a is better"),
        ((-0.02, -0.03, -0.01), "b is better"),
        ((0.02, -0.01, 0.05), "no significant difference"),
        ((0.0, 0.0, 0.0), "no significant difference"),
        ((0.02, math.nan, math.nan), "no significant difference"),
    ],
)
def test_verdict_is_better_only_if_the_interval_excludes_zero(
    interval: tuple[float, float, float], expected: str
) -> None:
    assert verdict(difference(*interval)) == expected


def test_whiskers_share_an_axis_that_includes_zero() -> None:
    drawn = whiskers([difference(0.2, 0.1, 0.3), difference(0, -0.1, 0.1)])
    assert [(w.zero, w.low, w.value, w.high) for w in drawn] == [(25, 50, 75, 100), (25, 0, 25, 50)]
    unknown = whiskers([difference(0.2, math.nan, math.nan)])[0]
    assert (unknown.zero, unknown.low, unknown.value, unknown.high) == (0, 100, 100, 100)


def test_step_is_inconclusive_if_its_interval_includes_zero() -> None:
    gain = StepChange(
        split="Test", image_set="all", metric="iou", value=0.1, interval=Bounds(low=0.1, high=0.1),
        excludes_zero=True,
    )  # fmt: skip
    assert step_cell(gain) == DifferenceCell("+0.100", "+0.100 to +0.100", "")
    none = StepChange(
        split="Test", image_set="all", metric="dice", value=0.0, interval=Bounds(low=0.0, high=0.0),
        excludes_zero=False,
    )  # fmt: skip
    assert step_cell(none) == DifferenceCell("+0.000", "+0.000 to +0.000", "inconclusive")


def step(name: str, *values: float) -> Step:
    """The changes of IoU on Val and Test images."""
    changes = tuple(
        StepChange(
            split=split, image_set="covid", metric="iou", value=value, interval=Bounds(low=value, high=value),
            excludes_zero=value != 0,
        )
        for split, value in zip(("Val", "Test"), values, strict=True)
    )  # fmt: skip
    return Step(experiment="a", step=name, changes=changes)


def test_steps_that_say_nothing_are_left_out() -> None:
    def shown(*found: Step) -> list[str]:
        return [one.step for one in telling([(one, list(one.changes)) for one in found])]

    threshold, holes = step("threshold", 0.01, 0.02), step("holes", 0.0004, -0.0004)
    assert shown(threshold, step("chosen", 0.01, 0.02)) == ["threshold"], "the same as all steps together"
    assert shown(threshold, holes, step("chosen", 0.0104, 0.0196)) == ["threshold", "chosen"]
    assert shown(holes, step("lungs", 0.0, 0.0006)) == ["lungs"]


def test_words_for_the_enabled_postprocessing_steps() -> None:
    assert postprocessing(PLAIN | {"flip_average": True}) == []
    assert postprocessing(PLAIN | {"threshold": 0.4}) == ["threshold 0.4"]
    everything = {
        "threshold": "val",
        "presence": "val",
        "min_area": 0.002,
        "fill_holes": True,
        "within_lungs": True,
    }
    assert postprocessing(PLAIN | everything) == [
        "threshold chosen on Val",
        "presence chosen on Val",
        "components below 0.2% of the image removed",
        "holes filled",
        "restricted to the predicted lungs",
    ]
