"""The report's tables of scores with their intervals, and the tiles and bars above them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import NamedTuple

import numpy as np
import pandas as pd

from tasks.reporting.findings import HIGHER_IS_BETTER, METRIC_NAMES, PRINTED_IOU, PRINTED_SCORES, best_trivial
from tasks.reporting.inputs import Experiment, Inputs, Scores, comparable
from tasks.reporting.words import formatted, percentage, predictor_words
from tasks.scoring.intervals import Interval, mean_intervals, ratio_interval

Value = float | None


class Column(NamedTuple):
    """Of a table of scores; `better` is 1 where more is better, -1 where less is, 0 where neither."""

    heading: str
    show: Callable[[Value], str]
    better: int = 0


def _decimals(count: int) -> Callable[[Value], str]:
    return lambda value: formatted(value, count)


NSD_TOLERANCE = 2  # pixels; the one that stage evaluate scores with
MAIN_COLUMNS = {
    "iou": Column("IoU", formatted, 1),
    "dice": Column("Dice", formatted, 1),
    "iou_nonempty": Column("IoU, truth not empty", formatted, 1),
    "dice_nonempty": Column("Dice, truth not empty", formatted, 1),
    "precision": Column("Precision", formatted, 1),
    "sensitivity": Column("Sensitivity", formatted, 1),
    "specificity": Column("Specificity", formatted, 1),
    "hd95": Column("HD95, px", _decimals(1), -1),
    "nsd": Column(f"NSD, {NSD_TOLERANCE} px", formatted, 1),
    "mae": Column("MAE", _decimals(4), -1),
    "mae_255": Column("MAE 0–255", _decimals(2), -1),
    "missed": Column("Missed", percentage, -1),
    "false_positive_rate": Column("False positive", percentage, -1),
}
POOLED_COLUMNS = {
    "iou_pooled": Column("IoU pooled", formatted, 1),
    "dice_pooled": Column("Dice pooled", formatted, 1),
    "ece": Column("ECE", _decimals(4), -1),
    "share_error": Column("Error of the infected share", formatted, -1),
    "share_correlation": Column("Correlation of the infected share", formatted, 1),
}
WITH_SPREAD = ("iou", "dice")  # over seeds
MEANS = ("iou", "dice", "precision", "sensitivity", "specificity", "hd95", "nsd", "mae")  # over images
REPEATS = {"iou_nonempty": "iou", "dice_nonempty": "dice"}  # left out where each row says the same as these


@dataclass(frozen=True)
class Cell:
    text: str
    notes: tuple[str, ...] = ()  # its interval, its spread over seeds
    best: bool = False


@dataclass(frozen=True)
class Row:
    name: str
    kind: str  # ours, trivial or printed
    cells: tuple[Cell, ...]
    fault: str = ""  # what makes the scores those of no network that learnt anything


@dataclass(frozen=True)
class Table:
    headings: tuple[str, ...]
    rows: tuple[Row, ...]


def score_table(inputs: Inputs, target: str, image_set: str, columns: Mapping[str, Column]) -> Table:
    """The experiments by falling IoU, the trivial predictors and what report 1 printed.

    Columns without a value are left out. What marks all alike is best in nothing.
    """
    ours = inputs.ranking(target, image_set)
    scores = {e.name: e.results[target].get(image_set, {}) for e in ours}
    trivial = inputs.trivial_scores(target, image_set)
    printed = PRINTED_SCORES if (target, image_set) == ("infection", "covid") and "iou" in columns else {}
    computed = [*scores.values(), *trivial.values()]
    columns = {metric: column for metric, column in columns.items() if _tells(metric, computed)}
    intervals = score_intervals(inputs, target, image_set)
    faults = {e.name: e.marking(target) for e in ours}
    rivals = [scores[name] for name, fault in faults.items() if not fault]
    rows = []
    for e in ours:
        notes, fault = _notes(e, target, image_set, columns, intervals), faults[e.name]
        cells = _cells(scores[e.name], columns, notes, () if fault else rivals)
        rows.append(Row(e.name, "ours", cells, fault))
    rows += [
        Row(predictor_words(name), "trivial", _cells(found, columns, _spans(name, columns, intervals)))
        for name, found in trivial.items()
    ]
    rows += [
        Row(name, "printed", tuple(Cell(formatted(found.get(m), 3)) for m in columns))  # as many as printed
        for name, found in printed.items()
    ]
    return Table(tuple(column.heading for column in columns.values()), tuple(rows))


def _tells(metric: str, computed: Sequence[Scores]) -> bool:
    """Whether any row has the metric, with another value than the one it repeats."""
    pairs = [
        (comparable(scores.get(metric)), comparable(scores.get(REPEATS.get(metric, ""))))
        for scores in computed
    ]
    return any(math.isfinite(own) and not math.isclose(own, other, abs_tol=1e-6) for own, other in pairs)


Notes = dict[str, tuple[str, ...]]  # metric -> what stands below its value
Intervals = dict[str, dict[str, Interval]]  # metric -> experiment or trivial predictor -> its interval


def _notes(
    e: Experiment, target: str, image_set: str, columns: Mapping[str, Column], intervals: Intervals
) -> Notes:
    """The bounds of the intervals and, of several seeds, the spread of their means."""
    notes = _spans(e.name, columns, intervals)
    if len(e.seeds) > 1:
        for metric in WITH_SPREAD:
            means = e.seed_means(target, image_set, metric)
            notes[metric] = (*notes.get(metric, ()), f"SD {stdev(means):.3f}", f"{len(means)} seeds")
    return notes


def _spans(name: str, columns: Mapping[str, Column], intervals: Intervals) -> Notes:
    """The bounds of what there is an interval of; one image has none."""
    found = {metric: intervals[metric][name] for metric in columns if name in intervals.get(metric, {})}
    return {
        metric: (f"{columns[metric].show(low)}–{columns[metric].show(high)}",)
        for metric, (_, low, high) in found.items()
        if not math.isnan(low)
    }


def score_intervals(inputs: Inputs, target: str, image_set: str) -> Intervals:
    """Metric -> experiment or trivial predictor -> its interval; calibration and shares have none."""

    def read(metric: str) -> pd.DataFrame:
        return inputs.per_image(target, image_set, metric)

    tp, fp, fn = (read(count) for count in ("tp", "fp", "fn"))
    if tp.empty:
        return {}
    true = (tp + fn).iloc[:, 0] > 0  # the same of each predictor
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


def _cells(
    scores: Scores, columns: Mapping[str, Column], notes: Notes, rivals: Sequence[Scores] = ()
) -> tuple[Cell, ...]:
    """The best of a column is marked as printed, where there is a rival."""
    cells = []
    for metric, column in columns.items():
        text = column.show(scores.get(metric))
        best = text != "–" and text == _best_text(metric, column, rivals)
        cells.append(Cell(text, notes.get(metric, ()), best))
    return tuple(cells)


def _best_text(metric: str, column: Column, rivals: Sequence[Scores]) -> str:
    values = [value for scores in rivals if math.isfinite(value := comparable(scores.get(metric)))]
    if len(values) < 2 or not column.better:
        return ""
    return column.show(max(values) if column.better > 0 else min(values))


# Tiles and bars


@dataclass(frozen=True)
class Tile:
    label: str
    value: str
    trivial: str
    share: float  # percent, for the bar
    trivial_share: float


def score_tiles(inputs: Inputs, target: str) -> list[Tile]:
    own = inputs.ranking(target)[0].results[target]["covid"]
    trivial = inputs.trivial_scores(target, "covid")
    tiles = []
    for metric, higher in HIGHER_IS_BETTER.items():
        name, value = best_trivial(trivial, metric) if trivial else ("none", math.nan)
        label = METRIC_NAMES[metric] + ("" if higher else " (lower is better)")
        words = f"{name} {formatted(value)}"
        tiles.append(Tile(label, formatted(own[metric]), words, _percent(own[metric]), _percent(value)))
    return tiles


@dataclass(frozen=True)
class IouBar:
    name: str
    kind: str
    share: float  # percent of IoU 1
    label: str
    low: float | None = None  # its interval, in percent
    high: float | None = None
    fault: str = ""  # as of a table's row


def iou_bars(inputs: Inputs, target: str) -> list[IouBar]:
    """Everything that has an IoU on the COVID-19 Test images, the best first."""
    intervals = score_intervals(inputs, target, "covid").get("iou", {})
    entries = [
        (e.name, e.name, "ours", e.results[target]["covid"]["iou"]) for e in inputs.with_target(target)
    ]
    entries += [
        (name, predictor_words(name), "trivial", scores["iou"])
        for name, scores in inputs.trivial_scores(target, "covid").items()
    ]
    if target == "infection" and not inputs.phantoms:
        entries.append(("printed", "report 1, both losses", "printed", PRINTED_IOU))
    entries.sort(key=lambda entry: -comparable(entry[3]))
    faults = {e.name: e.marking(target) for e in inputs.with_target(target)}
    return [
        _bar(words, kind, iou, intervals.get(name), faults.get(name, ""))
        for name, words, kind, iou in entries
    ]


def _bar(name: str, kind: str, iou: float, interval: Interval | None, fault: str) -> IouBar:
    known = interval is not None and not math.isnan(interval.low)
    low, high = (_percent(interval.low), _percent(interval.high)) if interval and known else (None, None)
    return IouBar(name, kind, _percent(iou), formatted(iou), low, high, fault)


def _percent(share: float) -> float:
    return round(float(np.clip(comparable(share), 0.0, 1.0)) * 100, 1)
