import math

import numpy as np
import pandas as pd
import pytest

from tasks.comparison.differences import difference, family, step_changes
from tasks.comparison.inputs import Table
from tasks.scoring.intervals import Interval
from tests.results import Work


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
    assert difference("iou", "a", "b", Interval(*interval)).winner == winner


def test_smaller_error_wins() -> None:
    assert difference("mae", "a", "b", Interval(-0.02, -0.03, -0.01)).winner == "a"
    assert difference("mae", "a", "b", Interval(0.02, 0.01, 0.03)).winner == "b"


def test_single_image_has_no_interval() -> None:
    assert difference("iou", "a", "b", Interval(0.02, math.nan, math.nan)).interval is None


def table(scores: dict[str, list[list[float]]], experiments: tuple[str, ...]) -> Table:
    """One image per column, each with a reference mask; one row of scores per seed."""
    rows = [
        {"predictor": name, "seed": seed, "id": f"i{image:03}", "class": "COVID-19", "iou": iou}
        for name, of_seeds in scores.items()
        for seed, of_images in enumerate(of_seeds)
        for image, iou in enumerate(of_images)
    ]
    counts = {"tp": 1, "fp": 0, "fn": 0, "tn": 1}
    return Table(pd.DataFrame(rows).assign(**counts).sort_values(["seed", "id"]), experiments)


def test_family_has_each_pair_once_and_reads_both_ways() -> None:
    noise = np.random.default_rng(0).normal(0, 0.02, (3, 60))
    scores = {
        "a": [(0.7 + noise[0]).tolist()],
        "b": [(0.5 + noise[1]).tolist()],
        "zero": [(0 * noise[2]).tolist()],
    }
    found_in = table(scores, ("a", "b"))
    found = family(found_in, "iou", {name: found_in.column(name, "iou") for name in found_in.names})
    assert [(d.first, d.second) for d in found.differences] == [("a", "b"), ("a", "zero"), ("b", "zero")]
    assert (found.images, found.covers_training) == (60, False)
    one, other = found.between("a", "b"), found.between("b", "a")
    assert one and other and one.interval and other.interval
    assert one.winner == other.winner == "a"
    assert (other.value, other.interval.low) == (-one.value, -one.interval.high)
    assert [d.second for d in found.of("b", ["a", "b", "zero"])] == ["a", "zero"]


def test_family_with_several_seeds_covers_training() -> None:
    """Two recipes whose seeds scatter by more than they differ."""
    base = np.random.default_rng(0).normal(0.6, 0.02, 60)
    scores = {
        name: [(base + shift + by).tolist() for by in (0.05, -0.05)]
        for name, shift in (("a", 0.01), ("b", 0))
    }
    found_in = table(scores, ("a", "b"))
    assert found_in.column("a", "iou").shape == (2, 60)
    found = family(found_in, "iou", {name: found_in.column(name, "iou") for name in ("a", "b")})
    assert found.covers_training
    assert found.differences[0].value == pytest.approx(0.01)
    assert found.differences[0].winner is None


def test_seed_without_a_step_counts_as_unchanged() -> None:
    """Of two images, the second is a control, on which Dice rises from 0 to 1."""
    dice = {
        ("i000", "plain"): 0.5,
        ("i000", "threshold"): 0.5,
        ("i001", "plain"): 0,
        ("i001", "threshold"): 1,
    }
    rows = pd.DataFrame(
        {"seed": seed, "step": step, "id": image, "iou": iou, "dice": dice[image, step]}
        for image in ("i000", "i001")
        for seed, step, iou in [(0, "plain", 0.5), (0, "threshold", 0.7), (1, "plain", 0.4)]
    )
    images = table({"a": [[0.5, 0.5]]}, ("a",))
    images.rows.loc[images.rows["id"] == "i001", ["tp", "class"]] = (0, "Normal")
    found = list(step_changes(rows, ["threshold"], images, "Val", "all"))
    assert {change.step for change in found} == {"threshold"}
    values = {c.change.metric: round(c.change.value, 9) for c in found}
    assert values == {"iou": 0.1, "dice": 0.25, "balanced": 0.25}
    assert {(c.change.split, c.change.image_set) for c in found} == {("Val", "all")}


def test_seeds_of_one_step_do_not_widen_the_interval_of_another() -> None:
    """Holes raise each IoU by 0.01 with every seed; the threshold, chosen for each seed, by 0 to 0.2."""
    gains = {"plain": (0.0, 0.0, 0.0), "holes": (0.01, 0.01, 0.01), "threshold": (0.0, 0.1, 0.2)}
    images = table({"a": [[0.5] * 20]}, ("a",))
    rows = pd.DataFrame(
        {"seed": seed, "step": step, "id": image, "iou": 0.5 + gain, "dice": 0.5}
        for step, of_seeds in gains.items()
        for seed, gain in enumerate(of_seeds)
        for image in images.ids
    )
    found = list(step_changes(rows, ["threshold", "holes"], images, "Val", "all"))
    of_iou = {of.step: of.change for of in found if of.change.metric == "iou"}
    holes, threshold = of_iou["holes"], of_iou["threshold"]
    assert holes.interval and threshold.interval
    assert (holes.value, holes.interval.low, holes.interval.high) == pytest.approx((0.01, 0.01, 0.01))
    assert threshold.value == pytest.approx(0.1)
    # Student's t with 2 degrees of freedom, 4.30, times 0.1 / sqrt(3); drawn, so within a tenth
    assert threshold.interval.high - threshold.value == pytest.approx(4.303 * 0.1 / 3**0.5, rel=0.1)


def test_baselines_that_are_not_beaten_are_listed(work: Work) -> None:
    work.add("dead", shift=0, dead=True)
    (section,) = (s for s in work.compare().sections if s.target == "infection")
    found = {of_one.experiments: of_one.not_beaten for of_one in section.main.against_baselines}
    assert found["bce", "bce_iou"] == {"all_background": (), "all_foreground": (), "whole_lung": ()}
    assert found[("dead",)]["all_background"] == ("iou", "dice", "mae")  # the same masks
    assert "mae" not in found[("dead",)]["all_foreground"]
    assert section.main.best_baselines == {
        "iou": "whole_lung",
        "dice": "whole_lung",
        "mae": "all_background",
    }


# --- the choice on Val -------------------------------------------------------------------------------------


def test_choice_is_made_on_val(work: Work) -> None:
    """Best on Val, worst on Test."""
    work.add("chosen", shift=8, val_shift=0)
    section = work.compare().sections[0]
    assert section.choice
    assert section.choice.chosen == "chosen"
    assert section.choice.scores["chosen"].value == 1
    on_test = {row.name: row.value("iou") for row in section.main.experiments}
    assert min(on_test, key=lambda name: on_test[name] or 0) == "chosen"
    assert section.choice.beaten == ("bce_iou", "bce")
    assert section.choice.level == ()


def test_balanced_score_by_hand(work: Work) -> None:
    """Of eight Val images, six have a lesion with Dice 22 / 24, and two are controls left unmarked."""
    section = work.compare().sections[0]
    assert section.choice
    assert section.choice.selection == "balanced"
    assert section.choice.images == 8
    assert section.choice.scores["bce_iou"].value == pytest.approx((22 / 24 + 1) / 2)


def test_choice_for_lungs_is_by_mean_dice(work: Work) -> None:
    work.add("both", shift=1, targets=("infection", "lung"))
    (lung,) = (s for s in work.compare().sections if s.target == "lung")
    assert lung.choice
    assert lung.choice.selection == "all"
    assert lung.choice.scores["both"].value == pytest.approx(47 / 48)


def test_no_choice_without_experiments(work: Work) -> None:
    (lung,) = (s for s in work.compare().sections if s.target == "lung")
    assert lung.choice is None
