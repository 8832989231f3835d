"""The report's paired comparisons: between experiments, and between the steps of post-processing.

A difference is taken image by image, both sides on the same images, and is believed only where the 95 %
interval of its mean excludes zero.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tasks.common.raw import IMAGE_SETS
from tasks.reporting.inputs import Experiment, Inputs
from tasks.reporting.words import IMAGE_SET_NAMES, formatted, listed, signed, signed_span
from tasks.scoring.intervals import Interval, mean_intervals


@dataclass(frozen=True)
class Difference:
    """How much more the first scores than the second, in the mean over images."""

    first: str
    second: str
    images: int
    interval: Interval

    @property
    def verdict(self) -> str:
        if not self.interval.excludes_zero:
            return "can’t be told apart"
        winner, loser = (self.first, self.second) if self.interval.value > 0 else (self.second, self.first)
        return f"{winner} beats {loser}"

    @property
    def words(self) -> str:
        return signed(self.interval.value)

    @property
    def span(self) -> str:
        return signed_span(self.interval)


def differences(
    inputs: Inputs, target: str, image_set: str, metric: str, pairs: Sequence[tuple[str, str]]
) -> list[Difference]:
    """Of pairs of experiments or trivial predictors, by name; none where there is nothing to compare."""
    scores = inputs.per_image(target, image_set, metric)
    if not pairs or scores.empty:
        return []
    first, second = (scores[[pair[side] for pair in pairs]].to_numpy(dtype=float) for side in (0, 1))
    intervals = mean_intervals(first - second)
    return [Difference(*pair, len(scores), interval) for pair, interval in zip(pairs, intervals, strict=True)]


def against_best(inputs: Inputs, target: str, image_set: str) -> list[Difference]:
    """The experiment of the highest IoU against each other one, in falling IoU."""
    names = [e.name for e in inputs.ranking(target, image_set)]
    return differences(inputs, target, image_set, "iou", [(names[0], name) for name in names[1:]])


@dataclass(frozen=True)
class Matrix:
    """Differences in IoU, row minus column; None on the diagonal."""

    names: tuple[str, ...]
    rows: tuple[tuple[Difference | None, ...], ...]


def matrix(inputs: Inputs, target: str, image_set: str) -> Matrix | None:
    """Every experiment against every other; None where the best against the rest says it all."""
    names = [e.name for e in inputs.ranking(target, image_set)]
    if len(names) < 3:
        return None
    pairs = [(row, column) for row in names for column in names if row != column]
    found = {
        (d.first, d.second): d for d in differences(inputs, target, image_set, "iou", pairs)
    }  # both orders, so that a row reads by itself
    return Matrix(tuple(names), tuple(tuple(found.get((row, column)) for column in names) for row in names))


@dataclass(frozen=True)
class Whisker:
    """A difference's place on an axis that a list of differences shares, in percent of its width."""

    zero: float
    low: float
    value: float
    high: float


def whiskers(found: Sequence[Difference]) -> list[tuple[Difference, Whisker]]:
    bounds = np.array([d.interval for d in found])
    low, high = min(0.0, float(np.nanmin(bounds))), max(0.0, float(np.nanmax(bounds)))
    width = (high - low) or 1.0

    def place(value: float, interval: Interval) -> float:
        known = interval.value if math.isnan(value) else value
        return round((known - low) / width * 100, 1)

    return [
        (d, Whisker(place(0.0, d.interval), *(place(value, d.interval) for value in _in_order(d.interval))))
        for d in found
    ]


def _in_order(interval: Interval) -> tuple[float, float, float]:
    return interval.low, interval.value, interval.high


# Post-processing


@dataclass(frozen=True)
class StepRow:
    experiment: str
    step: str
    cells: tuple[tuple[str, str, bool], ...]  # difference, its bounds, whether the sign is sure


@dataclass(frozen=True)
class Steps:
    """What the steps of post-processing change in a target's scores."""

    headings: tuple[str, ...]
    rows: list[StepRow]
    without: list[str]  # the experiments that switch nothing on


STEP_METRICS = {"iou": "IoU", "dice": "Dice"}


def steps(inputs: Inputs, target: str) -> Steps:
    """Each step and all chosen ones against the plain masks, on each image set."""
    sets = inputs.image_sets(target)
    of_each = {e.name: _steps(e, target, sets) for e in inputs.with_target(target)}
    return Steps(
        tuple(
            f"{name}, {IMAGE_SET_NAMES[image_set]}" for image_set in sets for name in STEP_METRICS.values()
        ),
        [row for rows in of_each.values() for row in rows],
        [name for name, rows in of_each.items() if not rows],
    )


def _steps(e: Experiment, target: str, sets: Sequence[str]) -> list[StepRow]:
    rows = e.steps[e.steps["target"] == target]
    names = [str(step) for step in rows["step"].unique() if step != "plain"]
    changes = [_changes(rows[rows["class"].isin(IMAGE_SETS[image_set])], names) for image_set in sets]
    return [
        StepRow(e.name, _step_words(e, target, name), tuple(cell for change in changes for cell in change[i]))
        for i, name in enumerate(names)
    ]


def _changes(rows: pd.DataFrame, names: Sequence[str]) -> list[list[tuple[str, str, bool]]]:
    """Of each step a cell a metric; a seed without a step (its threshold is 0.5) changes nothing by it."""
    columns = []
    for metric in STEP_METRICS if names else ():
        scores = rows.pivot(index=["id", "seed"], columns="step", values=metric)
        changes = scores[list(names)].sub(scores["plain"], axis=0).fillna(0.0).groupby("id").mean()
        columns.append(mean_intervals(changes.to_numpy(dtype=float)))
    return [
        [(signed(i.value), signed_span(i), i.excludes_zero) for i in of_step]
        for of_step in zip(*columns, strict=True)
    ]


def _step_words(e: Experiment, target: str, step: str) -> str:
    match step:
        case "threshold":
            chosen = {formatted(found[target], 2) for found in e.thresholds.values() if target in found}
            return f"threshold {listed(sorted(chosen))}{_from_val(e.prediction)}"
        case "small":
            return _smallest(e.prediction)
        case "holes":
            return "holes filled"
        case "lungs":
            return "restricted to the predicted lungs"
        case "chosen":
            return "all that is switched on"
    return step.replace("_", " ")


def _from_val(prediction: dict[str, Any]) -> str:
    return ", chosen on Val" if prediction["threshold"] == "val" else ""


def _smallest(prediction: dict[str, Any]) -> str:
    return f"components below {100 * prediction['min_area']:g} % of the image removed"


def postprocessing(prediction: dict[str, Any]) -> list[str]:
    """What an experiment switches on between probabilities and masks, in words."""
    threshold = prediction["threshold"]
    words = {
        "threshold chosen on Val": threshold == "val",
        f"threshold {threshold}": threshold not in ("val", 0.5),
        _smallest(prediction): prediction["min_area"],
        "holes filled": prediction["fill_holes"],
        "restricted to the predicted lungs": prediction["within_lungs"],
    }
    return [said for said, on in words.items() if on]
