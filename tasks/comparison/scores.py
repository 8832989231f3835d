"""Scores with confidence intervals: one row per experiment and trivial predictor.

A score exists only where it means something. A score that is about reference pixels is computed on the images
that have any, and a false positive rate on those that have none.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from models.metrics import Selection, selection_weights
from tasks.comparison.calibration import calibration_error
from tasks.comparison.document import Bounds, Marking, Score, ScoreRow
from tasks.comparison.inputs import ExperimentResults, Scored, Table, Values
from tasks.scoring.detection import proportion
from tasks.scoring.intervals import Interval, Predictor, ScoreIntervals, pooled_values, scores
from tasks.support.symptoms import marking as marking_of

WITH_SPREAD = ("iou", "dice", "balanced")  # metrics with a standard deviation over seeds
SHARE = (0.0, 1.0)
UNBOUNDED = (0.0, math.inf)

Chosen = NDArray[np.bool_]  # (images,): those on which a score exists
Found = dict[str, dict[str, Score]]  # metric -> predictor -> score


def score_rows(scored: Scored, image_set: str, split: str = "Test") -> tuple[ScoreRow, ...]:
    """The experiments in the order of `scored`, then the trivial predictors."""
    table = scored.table(split, image_set)
    found = _scores(table)
    if split == "Test":
        found["ece"] = _calibration_errors(scored, image_set)
    return _rows(table, found)


def score_rows_of(table: Table, metrics: Sequence[str]) -> tuple[ScoreRow, ...]:
    """Some scores on the images of the table, if they exist there."""
    found = _scores(table)
    return _rows(table, {metric: found[metric] for metric in metrics if metric in found})


def _rows(table: Table, found: Found) -> tuple[ScoreRow, ...]:
    return tuple(
        ScoreRow(
            name=name,
            kind="experiment" if name in table.experiments else "baseline",
            images=len(table),
            scores={metric: of_all[name] for metric, of_all in found.items() if name in of_all},
        )
        for name in table.names
    )


def _scores(table: Table) -> Found:
    """All scores that exist on these images, except calibration."""
    has, every = table.nonempty, np.ones(len(table), bool)
    found = _means(table, {"specificity": every, "mae": every})
    found["mae_255"] = {name: _scaled(score, 255) for name, score in found["mae"].items()}
    if has.any():
        found |= _means(table, {"iou": every, "dice": every})
        found |= _means(table, dict.fromkeys(("sensitivity", "precision", "average_precision", "nsd"), has))
        found["hd95"] = _distances(table)
        found |= {f"{metric}_pooled": _pooled(table, twice) for metric, twice in POOLED.items()}
        found["missed"] = _proportions(table, has, lambda marked: ~marked)
    if not has.all():
        found["false_positive_rate"] = _proportions(table, ~has, lambda marked: marked)
        found["false_positive_area"] = _on(table, ~has, lambda name: marked_area(table, name), SHARE)
    if has.any() and not has.all():
        for metric in ("iou", "dice"):
            found[f"{metric}_nonempty"] = _on(table, has, _reader(table, metric), SHARE)
        found["balanced"] = _on(
            table, every, lambda name: selection_values(table, name, "balanced"), SHARE, spread=True
        )
    return found


def _means(table: Table, of_images: dict[str, Chosen]) -> Found:
    return {
        metric: _on(table, images, _reader(table, metric), SHARE, metric in WITH_SPREAD)
        for metric, images in of_images.items()
    }


def _reader(table: Table, metric: str) -> Callable[[str], Values]:
    return lambda name: table.column(name, metric)


def _on(
    table: Table,
    images: Chosen,
    read: Callable[[str], Values],
    within: tuple[float, float],
    spread: bool = False,
) -> dict[str, Score]:
    """The mean over some of the images, for each predictor."""
    predictors = {name: predictor(table, name, read(name)[:, images]) for name in table.names}
    found = scores(predictors, table.strata[images], within)
    count = int(images.sum()) if not images.all() else None
    return {name: _score(found, name, predictors[name].values, spread, count) for name in predictors}


def predictor(table: Table, name: str, values: Values) -> Predictor:
    return Predictor(values, trained=name in table.experiments)


def _score(found: ScoreIntervals, name: str, values: Values, spread: bool, images: int | None) -> Score:
    interval = found.intervals[name]
    of_seeds = values.mean(axis=1)
    return Score(
        value=interval.value,
        interval=bounds(interval),
        seed_sd=stdev(of_seeds.tolist()) if spread and len(of_seeds) > 1 else None,
        images=images,
    )


def bounds(interval: Interval) -> Bounds | None:
    """The bounds without the value; None if there are none, as for a single image."""
    return None if math.isnan(interval.low) else Bounds(low=interval.low, high=interval.high)


def as_score(interval: Interval) -> Score:
    return Score(value=interval.value, interval=bounds(interval))


def _scaled(score: Score, factor: float) -> Score:
    interval = score.interval and Bounds(low=factor * score.interval.low, high=factor * score.interval.high)
    return score.model_copy(update={"value": factor * score.value, "interval": interval})


def selection_values(table: Table, name: str, selection: Selection) -> Values:
    """Values (seeds, images) whose mean is the selection score."""
    return table.column(name, "dice") * selection_weights(table.nonempty, selection)


def marked_area(table: Table, name: str) -> Values:
    """The predicted share of each image."""
    tp, fp, fn, tn = (table.column(name, count) for count in ("tp", "fp", "fn", "tn"))
    return (tp + fp) / (tp + fp + fn + tn)


# --- pooled scores ------------------------------------------------------------------------------------------

POOLED = {"iou": 1, "dice": 2}  # metric -> weight of the true positives


def _pooled(table: Table, twice: int) -> dict[str, Score]:
    """The score of the pixels of all images together, for each seed, averaged over the seeds."""

    def read(name: str) -> Values:
        tp, fp, fn = (table.column(name, count) for count in ("tp", "fp", "fn"))
        return pooled_values(twice * tp, twice * tp + fp + fn)

    return _on(table, np.ones(len(table), bool), read, SHARE)


# --- distances, proportions, calibration --------------------------------------------------------------------


def _distances(table: Table) -> dict[str, Score]:
    """HD95 over the images in which every seed predicts something; there is no distance otherwise."""
    found = {}
    for name in table.names:
        values = table.column(name, "hd95")
        images = np.isfinite(values).all(axis=0)
        if images.any():
            one = {name: predictor(table, name, values[:, images])}
            intervals = scores(one, table.strata[images], UNBOUNDED)
            count = int(images.sum()) if not images.all() else None
            found[name] = _score(intervals, name, one[name].values, False, count)
    return found


def _proportions(
    table: Table,
    images: Chosen,
    wanted: Callable[[NDArray[np.bool_]], NDArray[np.bool_]],
) -> dict[str, Score]:
    """The share of some of the images whose mask, marked or not, is `wanted`."""
    count = int(images.sum()) if not images.all() else None
    found = {}
    for name in table.names:
        score = share_of_images(wanted(marked_area(table, name)[:, images] > 0))
        found[name] = score.model_copy(update={"images": count})
    return found


def share_of_images(hits: NDArray[np.bool_]) -> Score:
    """The share of images that are hits, (seeds, images)."""
    return as_score(proportion([int(count) for count in hits.sum(axis=1)], hits.shape[1]))


def _calibration_errors(scored: Scored, image_set: str) -> dict[str, Score]:
    return {name: Score(value=value) for name, value in _errors(scored, image_set)}


def _errors(scored: Scored, image_set: str) -> Iterator[tuple[str, float]]:
    for e in scored.experiments:
        of_seeds = [
            calibration_error(e.calibration[e.calibration["seed"] == seed], scored.target, image_set)
            for seed in e.seeds
        ]
        yield e.name, fmean(of_seeds)
    for name, rows in scored.trivial_calibration.groupby("predictor", sort=False):
        yield str(name), calibration_error(rows, scored.target, image_set)


# --- networks that mark nothing or everything ---------------------------------------------------------------


def markings(scored: Scored) -> dict[str, Marking]:
    """The experiments with a network that marks no pixel of the Test images, or nearly every pixel."""
    found = {e.name: _marking(e, scored.target) for e in scored.experiments}
    return {name: marking for name, marking in found.items() if marking}


def _marking(e: ExperimentResults, target: str) -> Marking | None:
    counts = e.rows(target).groupby("seed")[["tp", "fp", "fn", "tn"]].sum()
    shares = (counts["tp"] + counts["fp"]) / counts.sum(axis=1)
    found = [marks for share in shares if (marks := marking_of(share))]
    return Marking(marks=tuple(sorted(set(found))), seeds=len(found)) if found else None
