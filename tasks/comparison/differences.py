"""Paired differences: between experiments, from the trivial predictors, and by post-processing steps.

A difference is computed image by image, with both sides on the same images. It counts only if the 95 %
confidence interval of its mean excludes zero.
"""

from collections.abc import Iterator, Sequence

import pandas as pd

from tasks.common.raw import IMAGE_SETS
from tasks.comparison.document import Difference, Step, StepChange
from tasks.comparison.inputs import ExperimentResults, Scored
from tasks.comparison.scores import bounds
from tasks.scoring.intervals import Interval, mean_intervals

HIGHER_IS_BETTER = {"iou": True, "dice": True, "mae": False}  # the metrics used in comparisons
RANKED_BY = "iou"
AGAINST_BASELINES = ("covid", "all")  # image sets on which experiments are compared with trivial predictors

Pair = tuple[str, str]


def image_set_differences(scored: Scored, image_set: str) -> tuple[Difference, ...]:
    """Each experiment minus each other one (both orders) in IoU, and minus each trivial predictor."""
    names = [e.name for e in scored.ranking(image_set)]
    pairs = [(first, second) for first in names for second in names if first != second]
    found = differences(scored, image_set, RANKED_BY, pairs)
    if image_set in AGAINST_BASELINES:
        pairs = [(name, predictor) for name in names for predictor in scored.trivial_scores(image_set)]
        for metric in HIGHER_IS_BETTER:
            found += differences(scored, image_set, metric, pairs)
    return tuple(found)


def differences(scored: Scored, image_set: str, metric: str, pairs: Sequence[Pair]) -> list[Difference]:
    """Differences between named experiments or trivial predictors; empty if no image has scores for all."""
    scores = scored.per_image(image_set, metric)
    if not pairs or scores.empty:
        return []
    first, second = (scores[[pair[side] for pair in pairs]].to_numpy(dtype=float) for side in (0, 1))
    intervals = mean_intervals(first - second)
    return [
        difference(metric, *pair, len(scores), interval)
        for pair, interval in zip(pairs, intervals, strict=True)
    ]


def difference(metric: str, first: str, second: str, images: int, interval: Interval) -> Difference:
    """First minus second, with the winner of the two."""
    winner = first if (interval.value > 0) == HIGHER_IS_BETTER[metric] else second
    return Difference(
        metric=metric,
        first=first,
        second=second,
        images=images,
        value=interval.value,
        interval=bounds(interval),
        winner=winner if interval.excludes_zero else None,
    )


# Post-processing

STEP_METRICS = ("iou", "dice")


def steps(scored: Scored) -> tuple[Step, ...]:
    """Each enabled step, and all enabled steps together, compared with the plain masks on each image set."""
    return tuple(step for e in scored.experiments for step in _steps(e, scored))


def _steps(e: ExperimentResults, scored: Scored) -> Iterator[Step]:
    rows = e.steps[e.steps["target"] == scored.target]
    names = [str(step) for step in rows["step"].unique() if step != "plain"]
    changes = [
        step_changes(rows[rows["class"].isin(IMAGE_SETS[image_set])], names, image_set)
        for image_set in scored.image_sets
    ]
    for i, name in enumerate(names):
        yield Step(
            experiment=e.name, step=name, changes=tuple(change for of_set in changes for change in of_set[i])
        )


def step_changes(rows: pd.DataFrame, names: Sequence[str], image_set: str) -> list[list[StepChange]]:
    """For each step, the change in each metric. A seed without a step (threshold 0.5) counts as unchanged."""
    columns = []
    for metric in STEP_METRICS if names else ():
        scores = rows.pivot(index=["id", "seed"], columns="step", values=metric)
        changes = scores[list(names)].sub(scores["plain"], axis=0).fillna(0.0).groupby("id").mean()
        intervals = mean_intervals(changes.to_numpy(dtype=float))
        columns.append([_change(image_set, metric, interval) for interval in intervals])
    return [list(of_step) for of_step in zip(*columns, strict=True)]


def _change(image_set: str, metric: str, interval: Interval) -> StepChange:
    return StepChange(
        image_set=image_set,
        metric=metric,
        value=interval.value,
        interval=bounds(interval),
        excludes_zero=interval.excludes_zero,
    )
