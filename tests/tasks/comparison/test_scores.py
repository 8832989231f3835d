import math

import pytest

from tasks.comparison.document import ImageSet, ScoreRow
from tests.results import Work


@pytest.fixture
def sets(work: Work) -> dict[str, ImageSet]:
    work.add("dead", shift=0, dead=True)
    return {image_set.name: image_set for image_set in work.compare().sections[0].image_sets}


def test_scores_exist_only_where_they_mean_something(sets: dict[str, ImageSet]) -> None:
    about_reference = {
        *("sensitivity", "precision", "average_precision", "nsd", "hd95", "missed"),
        *("iou", "dice", "iou_pooled", "dice_pooled"),
    }
    covid, controls = (sets[name].row("bce").scores.keys() for name in ("covid", "controls"))
    assert about_reference <= covid and not about_reference & controls
    assert {"false_positive_rate", "false_positive_area"} <= controls
    assert not {"false_positive_rate", "balanced", "iou_nonempty"} & covid
    assert {"balanced", "iou_nonempty", "missed", "false_positive_rate"} <= sets["all"].row(
        "bce"
    ).scores.keys()
    assert sets.keys() == {"covid", "non_covid", "normal", "controls", "all"}


def test_marking_nothing_finds_nothing(sets: dict[str, ImageSet]) -> None:
    for row in (sets["all"].row("dead"), sets["all"].row("all_background")):
        assert row.value("sensitivity") == row.value("precision") == row.value("iou_nonempty") == 0
        assert row.value("missed") == 1
        assert row.value("iou") == 0.25  # the share of controls
        assert row.value("balanced") == 0.5
        assert "hd95" not in row.scores


def interval(row: ScoreRow, metric: str) -> tuple[float, float]:
    found = row.scores[metric].interval
    assert found
    return found.low, found.high


def test_share_of_controls_is_a_constant_of_the_test_set(sets: dict[str, ImageSet]) -> None:
    assert interval(sets["all"].row("all_background"), "iou") == (0.25, 0.25)


def test_proportions_have_wilson_intervals(sets: dict[str, ImageSet]) -> None:
    low, high = interval(sets["covid"].row("bce"), "missed")
    assert low == 0
    assert high == pytest.approx(1.959964**2 / (6 + 1.959964**2))  # none of six


def test_pooled_scores_count_the_pixels_of_all_images(sets: dict[str, ImageSet]) -> None:
    assert sets["covid"].row("bce").value("iou_pooled") == pytest.approx(18 / 30)
    assert sets["all"].row("all_foreground").value("iou_pooled") == pytest.approx(6 * 24**2 / (8 * 64**2))


def test_pooled_value_and_interval_come_from_the_same_numbers(work: Work) -> None:
    """One dead seed of two: the mean of the seeds' ratios, within its own interval."""
    work.add("half", shift=2, seeds=2, dead=True)
    row = work.compare().sections[0].main.row("half")
    low, high = interval(row, "iou_pooled")
    assert row.value("iou_pooled") == pytest.approx((22 / 26 + 0) / 2)
    assert low <= 22 / 52 <= high


def test_value_is_the_mean_over_seeds_with_their_deviation(work: Work) -> None:
    work.add("twice", shift=0, seeds=2)
    score = work.compare().sections[0].main.row("twice").scores["iou"]
    assert score.value == pytest.approx((1 + 23 / 25) / 2)
    assert score.seed_sd == pytest.approx((1 - 23 / 25) / math.sqrt(2))
