"""Paired differences: between experiments, from the trivial predictors, and by post-processing steps.

A difference is computed image by image, with both sides on the same images. The intervals of a family, all
pairs on one image set and metric, hold together: with 95 % confidence, all of them contain their true
differences. A difference counts only if its interval excludes zero.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from tasks.common.raw import CLASSES, IMAGE_SETS
from tasks.comparison.document import Difference, Family, Step, StepChange
from tasks.comparison.inputs import ExperimentResults, Scored, Table, Values
from tasks.comparison.scores import bounds, predictor
from tasks.scoring.intervals import Interval, Predictor, differences, scores

HIGHER_IS_BETTER = {"iou": True, "dice": True, "mae": False, "balanced": True, "all": True}
COMPARED = ("iou", "dice", "mae")  # metrics by which predictors are compared on Test images
COMPARED_ON = ("covid", "all")  # image sets


def families(scored: Scored, image_set: str) -> tuple[Family, ...]:
    """All pairs of experiments and trivial predictors, for each compared metric."""
    if image_set not in COMPARED_ON or not scored.experiments:
        return ()
    table = scored.table("Test", image_set)
    return tuple(
        family(table, metric, {name: table.column(name, metric) for name in table.names})
        for metric in COMPARED
    )


def family(table: Table, metric: str, values: Mapping[str, Values]) -> Family:
    """All pairs of predictors, whose scores on the images of the table are `values` (seeds, images)."""
    predictors = {name: predictor(table, name, values[name]) for name in values}
    found = differences(predictors, table.strata)
    return Family(
        metric=metric,
        images=len(table),
        covers_training=found.covers_training,
        differences=tuple(_difference(metric, *pair, interval) for pair, interval in found.intervals.items()),
    )


def _difference(metric: str, first: str, second: str, interval: Interval) -> Difference:
    """First minus second, with the winner of the two."""
    winner = first if (interval.value > 0) == HIGHER_IS_BETTER[metric] else second
    return Difference(
        metric=metric,
        first=first,
        second=second,
        value=interval.value,
        interval=bounds(interval),
        winner=winner if interval.excludes_zero else None,
    )


# Post-processing

STEP_METRICS = ("iou", "dice")
STEP_SPLITS = ("Val", "Test")


def steps(scored: Scored) -> tuple[Step, ...]:
    """Each enabled step, and all enabled steps together, compared with the plain masks on each image set."""
    return tuple(step for e in scored.experiments for step in _steps(e, scored))


def _steps(e: ExperimentResults, scored: Scored) -> Iterator[Step]:
    rows = e.steps[e.steps["target"] == scored.target]
    names = [str(step) for step in rows["step"].unique() if step != "plain"]
    changes: dict[str, list[StepChange]] = {name: [] for name in names}
    for split in STEP_SPLITS:
        for image_set in scored.image_sets(split):
            wanted = (rows["split"] == split) & rows["class"].isin(IMAGE_SETS[image_set])
            for change_of, change in step_changes(rows[wanted], names, split, image_set):
                changes[change_of].append(change)
    for name in names:
        yield Step(experiment=e.name, step=name, changes=tuple(changes[name]))


def step_changes(
    rows: pd.DataFrame, names: Sequence[str], split: str, image_set: str
) -> Iterator[tuple[str, StepChange]]:
    """The change of each metric by each step. A seed without a step (threshold 0.5) counts as unchanged."""
    if rows.empty:
        return
    classes = rows.drop_duplicates("id").set_index("id")["class"].sort_index()
    strata = np.array([CLASSES.index(name) for name in classes], dtype=np.intp)
    for metric in STEP_METRICS:
        of_step = rows.pivot(index=["seed", "id"], columns="step", values=metric)
        changed = {}
        for name in names:
            change = (of_step[name] - of_step["plain"]).fillna(0.0).unstack("id")
            changed[name] = Predictor(change[classes.index].to_numpy(dtype=float))
        for name, interval in scores(changed, strata).intervals.items():
            yield (
                name,
                StepChange(
                    split=split,
                    image_set=image_set,
                    metric=metric,
                    value=interval.value,
                    interval=bounds(interval),
                    excludes_zero=interval.excludes_zero,
                ),
            )
