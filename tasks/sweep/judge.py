"""Which trial of a sweep is the best, from the scores of single Val images. Test scores play no part.

A trial's score is the one that chose its epochs and thresholds (`selection`), on the Val images of the
classes that its experiment trains on, as a mean over its targets. All differences are one family, so the
intervals hold for whichever trial turns out best, see `tasks.scoring.intervals`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.metrics import Selection, selection_weights
from tasks.scoring.intervals import Interval, Predictor, differences, scores
from tasks.scoring.verdict import read_rows
from tasks.support.cli import InputError
from tasks.sweep.document import Cost, Estimate, Verdict

Values = NDArray[np.float64]


class Judged(NamedTuple):
    """The scores of all trials, by name."""

    scores: dict[str, Estimate]
    seed_scores: dict[str, tuple[float, ...]]
    behind: dict[str, Estimate]
    """The best trial's score minus that of each other trial."""
    verdicts: dict[str, Verdict]
    selection: Selection
    """The score. `all` where every image has a reference mask, or none has: all selections are then equal."""
    images: int
    covers_training: bool


class _Table(NamedTuple):
    """The scores of a trial on single images."""

    values: Values
    """(S, N), whose mean over the images is the selection score."""
    strata: NDArray[np.intp]
    """(N,), the class of each image."""
    ids: tuple[str, ...]
    is_mixed: bool
    """Whether some images have a reference mask of a target, and others have not."""


def trial_values(rows: pd.DataFrame, selection: Selection, targets: Sequence[str]) -> Values:
    """Scores (seeds, images), by increasing seed and id, whose mean over the images is the selection score.

    `rows` are those of images.csv, for one split. With several targets, the mean over them.
    """
    parts = []
    for target in targets:
        of_target = rows[rows["target"] == target]
        dice = of_target.pivot(index="seed", columns="id", values="dice").sort_index(axis=1)
        nonempty = _nonempty(of_target)[dice.columns].to_numpy()
        parts.append(dice.to_numpy(float) * selection_weights(nonempty, selection))
    found: Values = np.mean(parts, axis=0)
    return found


def _nonempty(rows: pd.DataFrame) -> pd.Series:
    """Whether each image has a reference mask that is not empty, by id."""
    return (rows["tp"] + rows["fn"]).groupby(rows["id"]).max() > 0


def score(
    tables: Sequence[Path], selection: Selection, targets: Sequence[str], classes: Sequence[str]
) -> float:
    """The score of one trial from the tables images.csv of its seeds."""
    return float(_read(tables, selection, targets, classes).values.mean())


def judge(
    tables: Mapping[str, Sequence[Path]],
    selection: Selection,
    targets: Sequence[str],
    classes: Sequence[str],
) -> Judged:
    """Compare all trials, given the tables images.csv of the seeds of each.

    Raises:
        InputError: a table cannot be read, or trials were scored on different images.
    """
    found = {name: _read(paths, selection, targets, classes) for name, paths in tables.items()}
    first = next(iter(found.values()))
    for name, table in found.items():
        if table.ids != first.ids:
            raise InputError(f"{name} was scored on other Val images than {next(iter(found))}")
    predictors = {name: Predictor(table.values) for name, table in found.items()}
    of_scores = scores(predictors, first.strata, (0.0, 1.0))
    best = max(found, key=lambda name: of_scores.intervals[name].value)
    family = differences(predictors, first.strata)
    behind = {name: family.between(best, name) for name in found if name != best}
    return Judged(
        {name: _estimate(interval) for name, interval in of_scores.intervals.items()},
        {name: tuple(table.values.mean(axis=1).tolist()) for name, table in found.items()},
        {name: _estimate(interval) for name, interval in behind.items()},
        {name: "best" if name == best else _verdict(behind[name]) for name in found},
        selection if first.is_mixed else "all",
        len(first.ids),
        of_scores.covers_training,
    )


def _read(
    tables: Sequence[Path], selection: Selection, targets: Sequence[str], classes: Sequence[str]
) -> _Table:
    rows = read_rows(tables)
    rows = rows[rows["class"].isin(classes) & rows["target"].isin(targets)]
    if rows.empty:
        raise InputError(f"there are no Val images of {', '.join(classes)}, so no trial has a score")
    images = rows.drop_duplicates("id").sort_values("id")
    strata, _ = pd.factorize(images["class"])
    mixed = any(0 < _nonempty(of_target).mean() < 1 for _, of_target in rows.groupby("target"))
    return _Table(trial_values(rows, selection, targets), strata, tuple(images["id"]), mixed)


def _verdict(behind: Interval) -> Verdict:
    return "worse" if behind.excludes_zero else "level"


def _estimate(interval: Interval) -> Estimate:
    if math.isnan(interval.low):
        return Estimate(value=interval.value)
    return Estimate(value=interval.value, low=interval.low, high=interval.high)


# --- the Pareto front ---------------------------------------------------------------------------------------


def front(scores: Mapping[str, float], costs: Mapping[str, Cost]) -> set[str]:
    """The trials that no other one dominates: at least as good in everything, and better in something.

    Higher scores, fewer milliseconds and fewer parameters are better.
    """
    points = {
        name: (scores[name], -(cost.milliseconds or 0.0), -float(cost.parameters))
        for name, cost in costs.items()
    }
    return {
        name for name, own in points.items() if not any(_dominates(other, own) for other in points.values())
    }


def _dominates(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return first != second and all(a >= b for a, b in zip(first, second, strict=True))
