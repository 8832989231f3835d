"""Paired differences: between experiments, from the trivial predictors, and by post-processing steps.

A difference is computed image by image, with both sides on the same images. The intervals of a family, all
pairs on one image set and metric, hold together: with 95% confidence, all of them contain their true
differences. A difference counts only if its interval excludes zero.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from models.metrics import Selection, selection_weights
from tasks.comparison.document import (
    AgainstBaselines,
    Choice,
    Difference,
    Family,
    ScoreRow,
    Step,
    StepChange,
)
from tasks.comparison.inputs import ExperimentResults, Scored, Table, Values
from tasks.comparison.scores import as_score, bounds, predictor, selection_values
from tasks.scoring.intervals import Interval, Predictor, differences, scores

HIGHER_IS_BETTER = {"iou": True, "dice": True, "mae": False, "balanced": True, "all": True}
COMPARED = ("iou", "dice", "mae")  # metrics by which predictors are compared on Test images


def is_compared(scored: Scored, image_set: str) -> bool:
    """Whether predictors are compared on these Test images."""
    return image_set in (scored.main, "all")


def families(scored: Scored, image_set: str) -> tuple[Family, ...]:
    """All pairs of experiments and trivial predictors, for each compared metric."""
    if not is_compared(scored, image_set) or not scored.experiments:
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
        differences=tuple(difference(metric, *pair, interval) for pair, interval in found.intervals.items()),
    )


def difference(metric: str, first: str, second: str, interval: Interval) -> Difference:
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


# The choice on Val, in which Test scores play no part


def choice(scored: Scored) -> Choice | None:
    """The experiment with the best `balanced` score on all Val images; None without experiments.

    All experiments are compared by this score, whatever score chose their own epochs and thresholds. Where
    every image has a reference mask, or none has, it is the mean Dice.
    """
    if not scored.experiments:
        return None
    table = scored.table("Val", "all")
    has = table.nonempty
    selection: Selection = "balanced" if has.any() and not has.all() else "all"
    values = {name: selection_values(table, name, selection) for name in scored.names}
    found = scores({name: predictor(table, name, values[name]) for name in values}, table.strata, (0.0, 1.0))
    ranking = sorted(values, key=lambda name: -found.intervals[name].value)
    best = ranking[0]
    of_pairs = family(table, selection, {name: values[name] for name in ranking})
    against = of_pairs.of(best, ranking)
    return Choice(
        selection=selection,
        images=len(table),
        chosen=best,
        scores={name: as_score(found.intervals[name]) for name in ranking},
        family=of_pairs,
        level=tuple(d.second for d in against if d.winner is None),
        beaten=tuple(d.second for d in against if d.winner == best),
    )


# Trivial predictors


def against_baselines(
    scored: Scored, image_set: str, families: Sequence[Family]
) -> tuple[AgainstBaselines, ...]:
    """Which experiments beat each trivial predictor on which metric; a tie does not count as a win."""
    if not is_compared(scored, image_set) or not scored.predictors:
        return ()
    won = {
        (d.winner, d.second if d.winner == d.first else d.first, d.metric)
        for found in families
        for d in found.differences
        if d.winner
    }
    alike: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for name in scored.names:
        lost = tuple(
            tuple(metric for metric in COMPARED if (name, predictor, metric) not in won)
            for predictor in scored.predictors
        )
        alike.setdefault(lost, []).append(name)
    return tuple(
        AgainstBaselines(
            experiments=tuple(who),
            not_beaten=dict(zip(scored.predictors, lost, strict=True)),
            everyone=len(who) == len(scored.names),
        )
        for lost, who in alike.items()
    )


def best_baselines(rows: Sequence[ScoreRow]) -> dict[str, str]:
    """Metric -> the trivial predictor with the best score, for metrics that exist."""
    trivial = [row for row in rows if row.kind == "baseline"]
    return {
        metric: max(trivial, key=lambda row: row.scores[metric].value * (1 if higher else -1)).name
        for metric, higher in HIGHER_IS_BETTER.items()
        if trivial and all(metric in row.scores for row in trivial)
    }


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
        of_split = rows[rows["split"] == split]
        for image_set in scored.image_sets(split) if names else ():
            for change in step_changes(of_split, names, scored.table(split, image_set), split, image_set):
                changes[change.step].append(change.change)
    for name in names:
        yield Step(experiment=e.name, step=name, changes=tuple(changes[name]))


class ChangeOfStep(NamedTuple):
    step: str
    change: StepChange


def step_changes(
    rows: pd.DataFrame, names: Sequence[str], table: Table, split: str, image_set: str
) -> Iterator[ChangeOfStep]:
    """The change of each metric by each step. A seed without a step (threshold 0.5) counts as unchanged.

    The variance of the seeds is each step's own: a threshold that is chosen for each seed varies, and filled
    holes do not.
    """
    rows = rows[rows["id"].isin(table.ids)]
    seeds = sorted(rows["seed"].unique())
    place = pd.Series(np.arange(len(table)), index=table.ids)
    # Not by a pivot table, which takes half of the time of the stage.
    groups = {key: (place[of_one["id"]].to_numpy(), of_one) for key, of_one in rows.groupby(["step", "seed"])}

    def values(step: str, column: str) -> Values:
        """(seeds, images), NaN for a seed without this step."""
        found = np.full((len(seeds), len(table)), np.nan)
        for number, seed in enumerate(seeds):
            if (step, seed) in groups:
                columns, of_one = groups[step, seed]
                found[number, columns] = of_one[column]
        return found

    for metric, (column, weights) in _step_metrics(table).items():
        plain = values("plain", column)
        changed = {name: Predictor(np.nan_to_num(values(name, column) - plain) * weights) for name in names}
        for name, interval in _intervals(changed, table, len(seeds)):
            yield ChangeOfStep(
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


def _intervals(changed: Mapping[str, Predictor], table: Table, seeds: int) -> Iterator[tuple[str, Interval]]:
    if seeds == 1:  # no variance of seeds to keep apart, and one call is faster
        yield from scores(changed, table.strata).intervals.items()
        return
    for name, one in changed.items():
        yield name, scores({name: one}, table.strata).intervals[name]


def _step_metrics(table: Table) -> dict[str, tuple[str, Values]]:
    """Metric -> the column whose weighted mean it is, and the weights of the images."""
    found = {metric: (metric, np.ones(len(table))) for metric in STEP_METRICS}
    if table.nonempty.any() and not table.nonempty.all():  # otherwise it is the mean Dice
        found["balanced"] = ("dice", selection_weights(table.nonempty, "balanced"))
    return found
