"""The report's score tables with confidence intervals, and the tiles and bars above them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tasks.comparison.document import Bounds, Document, ImageSet, Marking, Score, ScoreRow, Section
from tasks.reporting.words import formatted, listed, percentage, row_words

Value = float | None


class Column(NamedTuple):
    """A column of a score table; `better` is 1 if higher is better, -1 if lower is better, else 0."""

    heading: str
    show: Callable[[Value], str]
    better: int = 0


def _decimals(count: int) -> Callable[[Value], str]:
    return lambda value: formatted(value, count)


NSD_TOLERANCE = 2  # pixels; must equal the tolerance of the stage evaluate
MAIN_COLUMNS = {
    "iou": Column("IoU", formatted, 1),
    "dice": Column("Dice", formatted, 1),
    "iou_nonempty": Column("IoU, non-empty reference", formatted, 1),
    "dice_nonempty": Column("Dice, non-empty reference", formatted, 1),
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
REPEATS = {"iou_nonempty": "iou", "dice_nonempty": "dice"}  # columns omitted if all rows equal these columns
ROW_KINDS = {"experiment": "ours", "baseline": "trivial"}  # class names in the style sheet


@dataclass(frozen=True)
class Cell:
    text: str
    notes: tuple[str, ...] = ()  # confidence interval, spread over seeds
    best: bool = False


@dataclass(frozen=True)
class Row:
    name: str
    kind: str  # ours, trivial or printed
    cells: tuple[Cell, ...]
    fault: str = ""  # why the scores mean nothing, if the network marks no pixel or every pixel


@dataclass(frozen=True)
class Table:
    headings: tuple[str, ...]
    rows: tuple[Row, ...]


def score_table(
    document: Document, section: Section, image_set: ImageSet, columns: Mapping[str, Column]
) -> Table:
    """The experiments by decreasing IoU, the trivial predictors and the scores that report 1 printed.

    Columns without a value are omitted. An experiment that marks no pixel or every pixel is never
    highlighted as the best of a column.
    """
    printed = section.printed if image_set.name == "covid" and "iou" in columns else ()
    columns = {metric: column for metric, column in columns.items() if _tells(metric, image_set.rows)}
    rivals = [row for row in image_set.experiments if row.name not in section.markings]
    rows = [
        Row(
            row_words(row.name, row.kind),
            ROW_KINDS[row.kind],
            _cells(row, columns, _seeds(document, row), rivals if row in rivals else ()),
            marking_words(document, section, row.name),
        )
        for row in image_set.rows
    ]
    rows += [
        Row(found.name, "printed", tuple(Cell(formatted(found.scores.get(m), 3)) for m in columns))
        for found in printed  # with as many decimals as printed
    ]
    return Table(tuple(column.heading for column in columns.values()), tuple(rows))


def _seeds(document: Document, row: ScoreRow) -> int:
    return len(document.experiment(row.name).trainings) if row.kind == "experiment" else 1


def _tells(metric: str, rows: Sequence[ScoreRow]) -> bool:
    """Whether any row has the metric with a value that differs from the metric that it repeats."""
    pairs = [(comparable(row.value(metric)), comparable(row.value(REPEATS.get(metric, "")))) for row in rows]
    return any(math.isfinite(own) and not math.isclose(own, other, abs_tol=1e-6) for own, other in pairs)


def comparable(value: float | None) -> float:
    """The score as a sort key; an undefined score sorts below all others."""
    return -math.inf if value is None or math.isnan(value) else value


def marking_words(document: Document, section: Section, name: str) -> str:
    """For example "marks no pixel in 1 of 2 seeds"; empty for an experiment with no such fault."""
    found = section.markings.get(name)
    return _marking_words(found, len(document.experiment(name).trainings)) if found else ""


def _marking_words(found: Marking, seeds: int) -> str:
    which = "" if seeds == 1 else f" in {found.seeds} of {seeds} seeds"
    return f"marks {listed(found.marks, 'or')} pixel{which}"


def _cells(
    row: ScoreRow, columns: Mapping[str, Column], seeds: int, rivals: Sequence[ScoreRow] = ()
) -> tuple[Cell, ...]:
    """The best value of a column, as displayed, is highlighted if there is more than one candidate."""
    cells = []
    for metric, column in columns.items():
        text = column.show(row.value(metric))
        best = text != "–" and text == _best_text(metric, column, rivals)
        cells.append(Cell(text, _notes(row.scores.get(metric), column, seeds), best))
    return tuple(cells)


def _notes(score: Score | None, column: Column, seeds: int) -> tuple[str, ...]:
    """The bounds of the confidence interval and, with several seeds, the SD of the seeds' means."""
    notes = []
    if score and score.interval:
        notes.append(f"{column.show(score.interval.low)}–{column.show(score.interval.high)}")
    if score and score.seed_sd is not None:
        notes += [f"SD {score.seed_sd:.3f}", f"{seeds} seeds"]
    return tuple(notes)


def _best_text(metric: str, column: Column, rivals: Sequence[ScoreRow]) -> str:
    values = [value for row in rivals if math.isfinite(value := comparable(row.value(metric)))]
    if len(values) < 2 or not column.better:
        return ""
    return column.show(max(values) if column.better > 0 else min(values))


# Tiles and bars

TILES = {"iou": "IoU", "dice": "Dice", "mae": "MAE (lower is better)"}


@dataclass(frozen=True)
class Tile:
    label: str
    value: str
    trivial: str
    share: float  # percent, for the bar
    trivial_share: float


def score_tiles(image_set: ImageSet) -> list[Tile]:
    """The best experiment's scores, each with the best trivial predictor's score."""
    best = image_set.experiments[0]
    tiles = []
    for metric, label in TILES.items():
        own, name, value = best.value(metric), "none", math.nan
        if predictor := image_set.best_baselines.get(metric):
            name, value = row_words(predictor, "baseline"), image_set.row(predictor).scores[metric].value
        words = f"{formatted(value)} ({name})"
        tiles.append(Tile(label, formatted(own), words, _percent(own), _percent(value)))
    return tiles


@dataclass(frozen=True)
class IouBar:
    name: str
    kind: str
    share: float  # percent of IoU 1
    label: str
    low: float | None = None  # bounds of the confidence interval, in percent
    high: float | None = None
    fault: str = ""  # see `Row`


def iou_bars(document: Document, section: Section) -> list[IouBar]:
    """Everything that has an IoU on the COVID-19 Test images, in order of decreasing IoU."""
    rows = {row.name: row for row in section.covid.rows}
    ordered = [rows[name] for name in section.experiments if name in rows] + list(section.covid.baselines)
    entries = [
        (
            row.scores["iou"].value,
            _bar(
                row_words(row.name, row.kind),
                ROW_KINDS[row.kind],
                row.scores["iou"].value,
                row.scores["iou"].interval,
                marking_words(document, section, row.name),
            ),
        )
        for row in ordered
    ]
    if section.printed and not document.phantoms:
        iou = section.printed[0].scores["iou"]  # the same for both losses
        entries.append((iou, _bar("report 1, both losses", "printed", iou)))
    return [bar for _, bar in sorted(entries, key=lambda entry: -comparable(entry[0]))]


def _bar(name: str, kind: str, iou: float, interval: Bounds | None = None, fault: str = "") -> IouBar:
    low, high = (_percent(interval.low), _percent(interval.high)) if interval else (None, None)
    return IouBar(name, kind, _percent(iou), formatted(iou), low, high, fault)


def _percent(share: float | None) -> float:
    return round(min(max(comparable(share), 0.0), 1.0) * 100, 1)
