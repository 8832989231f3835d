"""Scores with confidence intervals: one row per experiment and trivial predictor."""

import math
from statistics import stdev

import pandas as pd

from tasks.comparison.document import Bounds, Kind, Marking, Score, ScoreRow
from tasks.comparison.inputs import ExperimentResults, Scored, Scores
from tasks.scoring.intervals import Interval, mean_intervals, ratio_interval
from tasks.support.symptoms import marking as marking_of

WITH_SPREAD = ("iou", "dice")  # metrics with a standard deviation over seeds
MEANS = ("iou", "dice", "precision", "sensitivity", "specificity", "hd95", "nsd", "mae")  # over images

Intervals = dict[str, dict[str, Interval]]  # metric -> experiment or trivial predictor -> its interval


def score_rows(scored: Scored, image_set: str) -> tuple[ScoreRow, ...]:
    """The experiments by decreasing IoU, then the trivial predictors."""
    intervals = score_intervals(scored, image_set)
    ours = [
        _row(e.name, "experiment", scored.scores(e, image_set), intervals, _spread(e, scored, image_set))
        for e in scored.ranking(image_set)
    ]
    trivial = [
        _row(name, "baseline", scores, intervals, {})
        for name, scores in scored.trivial_scores(image_set).items()
    ]
    return (*ours, *trivial)


def _row(name: str, kind: Kind, scores: Scores, intervals: Intervals, spread: Scores) -> ScoreRow:
    found = {
        metric: Score(
            value=value, interval=bounds(intervals.get(metric, {}).get(name)), seed_sd=spread.get(metric)
        )
        for metric, value in scores.items()
        if metric != "images"
    }
    return ScoreRow(name=name, kind=kind, images=int(scores["images"]), scores=found)


def bounds(interval: Interval | None) -> Bounds | None:
    """The bounds without the value; None if there are none, as for a single image."""
    if interval is None or math.isnan(interval.low):
        return None
    return Bounds(low=interval.low, high=interval.high)


def _spread(e: ExperimentResults, scored: Scored, image_set: str) -> Scores:
    """The standard deviation of the seeds' means; empty for a single seed."""
    if len(e.seeds) == 1:
        return {}
    return {metric: stdev(e.seed_means(scored.target, image_set, metric)) for metric in WITH_SPREAD}


def score_intervals(scored: Scored, image_set: str) -> Intervals:
    """Intervals of all metrics that are averages over images; calibration and shares have none."""

    def read(metric: str) -> pd.DataFrame:
        return scored.per_image(image_set, metric)

    tp, fp, fn = (read(count) for count in ("tp", "fp", "fn"))
    if tp.empty:
        return {}
    true = (tp + fn).iloc[:, 0] > 0  # identical for all predictors
    tables = {metric: read(metric) for metric in MEANS}
    tables["mae_255"] = 255 * tables["mae"]
    tables["missed"] = 1 - read("marked")[true]
    tables["false_positive_rate"] = read("marked")[~true]
    tables |= {f"{metric}_nonempty": tables[metric][true] for metric in WITH_SPREAD}
    intervals = {
        metric: dict(zip(map(str, table), mean_intervals(table.to_numpy(dtype=float)), strict=True))
        for metric, table in tables.items()
        if len(table)
    }
    pooled = {"iou_pooled": (tp, tp + fp + fn), "dice_pooled": (2 * tp, 2 * tp + fp + fn)}
    return intervals | {
        metric: {str(name): ratio_interval(part[name].to_numpy(), whole[name].to_numpy()) for name in part}
        for metric, (part, whole) in pooled.items()
    }


def markings(scored: Scored) -> dict[str, Marking]:
    """The experiments with a network that marks no pixel of the Test images, or nearly every pixel."""
    found = {e.name: _marking(e, scored.target) for e in scored.experiments}
    return {name: marking for name, marking in found.items() if marking}


def _marking(e: ExperimentResults, target: str) -> Marking | None:
    counts = e.rows(target).groupby("seed")[["tp", "fp", "fn", "tn"]].sum()
    shares = (counts["tp"] + counts["fp"]) / counts.sum(axis=1)
    found = [marks for share in shares if (marks := marking_of(share))]
    return Marking(marks=tuple(sorted(set(found))), seeds=len(found)) if found else None
