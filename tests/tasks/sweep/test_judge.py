"""Which trial is best, from tables of single images."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from models.metrics import DiceSums
from tasks.support.cli import InputError
from tasks.sweep.document import Cost
from tasks.sweep.judge import front, judge, score, trial_values

IMAGES = 60

#: Dice of images with a reference mask.
DICE = np.random.default_rng(3).beta(5, 2, IMAGES) * 0.9


def rows(
    dice: np.ndarray, image_class: str, nonempty: bool, seed: int, target: str, split: str
) -> pd.DataFrame:
    area = 100.0 if nonempty else 0.0
    ids = [f"infection/{split}/{image_class}/{number}" for number in range(len(dice))]
    counts = {"tp": area * dice / 2, "fp": 1.0, "fn": area - area * dice / 2, "tn": 900.0}
    place = {"seed": seed, "split": split, "target": target, "class": image_class, "id": ids}
    return pd.DataFrame({**place, **counts, "dice": dice})


def written(path: Path, *parts: pd.DataFrame) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(parts).to_csv(path, index=False)
    return path


def covid(path: Path, dice: np.ndarray, seed: int = 0, target: str = "infection") -> Path:
    """A table of COVID-19 images on Val; on Test every score is perfect, and other classes on Val are 0."""
    return written(
        path,
        rows(dice, "COVID-19", True, seed, target, "Val"),
        rows(np.ones(IMAGES), "COVID-19", True, seed, target, "Test"),
        rows(np.zeros(5), "Normal", False, seed, target, "Val"),
    )


OF_COVID = ("balanced", ("infection",), ("COVID-19",))


def test_the_best_and_those_that_cannot_be_told_from_it(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(0, 0.05, (3, IMAGES))
    trials = {
        name: [covid(tmp_path / f"{name}{seed}.csv", DICE + shift + noise[row], seed) for seed in (0, 1)]
        for row, (name, shift) in enumerate({"good": 0.05, "near": 0.049, "bad": -0.05}.items())
    }
    found = judge(trials, *OF_COVID)
    assert found.scores["good"].value == pytest.approx((DICE + 0.05 + noise[0]).mean())
    best = max(found.scores, key=lambda name: found.scores[name].value)
    other = {"good": "near", "near": "good"}[best]
    assert found.verdicts == {best: "best", other: "level", "bad": "worse"}
    behind = found.behind["bad"]
    assert behind.value == pytest.approx(found.scores[best].value - found.scores["bad"].value)
    assert behind.low is not None and 0 < behind.low < behind.value
    assert best not in found.behind
    assert (found.images, found.covers_training, found.selection) == (IMAGES, True, "all")
    assert found.seed_scores["bad"] == pytest.approx([found.scores["bad"].value] * 2)
    assert score(trials["bad"], *OF_COVID) == pytest.approx(found.scores["bad"].value)


def test_test_images_and_other_classes_play_no_part(tmp_path: Path) -> None:
    (found,) = judge({"one": [covid(tmp_path / "one.csv", DICE)]}, *OF_COVID).scores.values()
    assert found.value == pytest.approx(DICE.mean())


def test_the_score_is_the_selection(tmp_path: Path) -> None:
    unmarked = np.array([1, 1, 0, 1, 0], dtype=float)
    parts = [
        rows(DICE, "COVID-19", True, 0, "infection", "Val"),
        rows(unmarked, "Normal", False, 0, "infection", "Val"),
    ]
    table = written(tmp_path / "mixed.csv", *parts)
    sums = DiceSums(DICE.sum(), unmarked.sum(), IMAGES, 5)
    for selection in ("balanced", "lesions", "all"):
        found = judge({"one": [table]}, selection, ("infection",), ("COVID-19", "Normal"))
        assert found.scores["one"].value == pytest.approx(float(sums.score(selection)))
        assert found.selection == selection


def test_two_targets_count_alike(tmp_path: Path) -> None:
    lung = np.linspace(0.9, 0.98, IMAGES)
    table = written(
        tmp_path / "both.csv",
        rows(DICE, "COVID-19", True, 0, "infection", "Val"),
        rows(lung, "COVID-19", True, 0, "lung", "Val"),
    )
    found = judge({"one": [table]}, "all", ("infection", "lung"), ("COVID-19",))
    assert found.scores["one"].value == pytest.approx((DICE.mean() + lung.mean()) / 2)
    assert trial_values(pd.read_csv(table), "all", ("infection", "lung")).shape == (1, IMAGES)


def test_other_images_and_no_images_are_refused(tmp_path: Path) -> None:
    tables = {
        "all": [covid(tmp_path / "all.csv", DICE)],
        "fewer": [covid(tmp_path / "fewer.csv", DICE[:-1])],
    }
    with pytest.raises(InputError, match=r"^fewer was scored on other Val images than all$"):
        judge(tables, *OF_COVID)
    with pytest.raises(InputError, match=r"^there are no Val images of Non-COVID, so no trial has a score$"):
        judge(tables, "all", ("infection",), ("Non-COVID",))


def test_a_single_image_gives_no_interval(tmp_path: Path) -> None:
    tables = {
        name: [covid(tmp_path / f"{name}.csv", DICE[:1] + shift)] for name, shift in (("a", 0), ("b", 0.1))
    }
    found = judge(tables, *OF_COVID)
    assert (found.scores["a"].low, found.behind["a"].low) == (None, None)
    assert found.verdicts == {"a": "level", "b": "best"}


def test_the_front_has_what_nothing_dominates() -> None:
    points = {  # score, milliseconds, parameters
        "best": (0.8, 9.0, 100),
        "dominated": (0.7, 9.5, 100),
        "fast": (0.6, 2.0, 100),
        "small": (0.5, 9.0, 10),
        "same": (0.8, 9.0, 100),
    }
    scores = {name: point[0] for name, point in points.items()}
    costs = {
        name: Cost(parameters=parameters, megabytes=1.0, milliseconds=milliseconds)
        for name, (_, milliseconds, parameters) in points.items()
    }
    assert front(scores, costs) == {"best", "same", "fast", "small"}
    unknown = {name: cost.model_copy(update={"milliseconds": None}) for name, cost in costs.items()}
    assert front(scores, unknown) == {"best", "same", "small"}
