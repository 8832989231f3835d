"""The report's score tables with confidence intervals, and the tiles and the overview above them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tasks.comparison.document import Document, ExperimentRecord, ImageSet, Kind, Score, ScoreRow, Section
from tasks.reporting.words import (
    IMAGE_SET_NAMES,
    bounds_words,
    formatted,
    listed,
    networks_word,
    percentage,
    row_words,
    span,
)

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
    "balanced": Column("Balanced score", formatted, 1),
    "iou": Column("IoU", formatted, 1),
    "dice": Column("Dice", formatted, 1),
    "missed": Column("Missed", percentage, -1),
    "false_positive_rate": Column("Falsely marked", percentage, -1),
    "iou_nonempty": Column("IoU, non-empty reference", formatted, 1),
    "dice_nonempty": Column("Dice, non-empty reference", formatted, 1),
    "average_precision": Column("Average precision", formatted, 1),
    "sensitivity": Column("Sensitivity", formatted, 1),
    "precision": Column("Precision", formatted, 1),
}
MORE_COLUMNS = {
    "specificity": Column("Specificity", formatted, 1),
    "false_positive_area": Column("Falsely marked area", percentage, -1),
    "nsd": Column(f"NSD, {NSD_TOLERANCE} px", formatted, 1),
    "hd95": Column("HD95, px", _decimals(1), -1),
    "iou_pooled": Column("IoU pooled", formatted, 1),
    "dice_pooled": Column("Dice pooled", formatted, 1),
    "mae": Column("MAE", _decimals(4), -1),
    "mae_255": Column("MAE 0–255", _decimals(2), -1),
    "ece": Column("ECE", _decimals(4), -1),
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
    kind: str  # ours, chosen, trivial, printed, or group for the title of a group
    cells: tuple[Cell, ...]
    fault: str = ""  # why the scores mean nothing, if the network marks no pixel or every pixel
    networks: str = ""  # how many networks the scores are means of, if several


@dataclass(frozen=True)
class Table:
    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    repeats: bool = False  # whether columns are omitted because the table of the main images has them


def score_table(
    document: Document, section: Section, image_set: ImageSet, columns: Mapping[str, Column]
) -> Table:
    """The experiments by group, the trivial predictors and the scores that report 1 printed.

    Columns without a value are omitted, and so are scores over the main images beside those over all. An
    experiment that marks no pixel or every pixel is never highlighted as the best of a column.
    """
    printed = section.printed if image_set.name == "covid" and "iou" in columns and document.published else ()
    columns = {metric: column for metric, column in columns.items() if _tells(metric, image_set.rows)}
    told = {m: column for m, column in columns.items() if not _repeats_main(section, image_set, m)}
    repeats, columns = len(told) < len(columns), told
    rivals = [row for row in image_set.experiments if row.name not in section.markings]
    rows = [
        Row(
            row_words(row.name, row.kind),
            row_kind(section, row.name, row.kind),
            _cells(image_set, row, columns, rivals if row in rivals else ()),
            fault_words(document, section, row.name),
            _networks(document, row),
        )
        for row in image_set.rows
    ]
    rows = _with_groups(document, rows, [row.name for row in image_set.experiments])
    rows += [
        Row(found.name, "printed", tuple(Cell(formatted(found.scores.get(m), 3)) for m in columns))
        for found in printed  # with as many decimals as printed
    ]
    headings = (_heading(column, image_set, metric) for metric, column in columns.items())
    return Table(tuple(headings), tuple(rows), repeats)


def _repeats_main(section: Section, image_set: ImageSet, metric: str) -> bool:
    """Whether a score on all images is, in every row, over the main images, whose own table has it."""
    if image_set.name != "all" or image_set.name == section.main.name:
        return False
    return all(
        metric in row.scores
        and _same(row, row.scores[metric], section.main.row(row.name), REPEATS.get(metric, metric))
        for row in image_set.rows
    )


def _same(row: ScoreRow, score: Score, of_main: ScoreRow, metric: str) -> bool:
    other = of_main.scores.get(metric)
    return (
        other is not None
        and (score.images or row.images) == (other.images or of_main.images)
        and math.isclose(score.value, other.value, abs_tol=1e-6)
    )


def _heading(column: Column, image_set: ImageSet, metric: str) -> str:
    """With the number of images if the score exists on the same part of the images in every row."""
    count = _common_count(image_set, metric)
    return f"{column.heading}, {count:,} images" if count else column.heading


def _common_count(image_set: ImageSet, metric: str) -> int | None:
    counts = {row.scores[metric].images for row in image_set.rows if metric in row.scores}
    return counts.pop() if len(counts) == 1 else None


def row_kind(section: Section, name: str, kind: Kind = "experiment") -> str:
    is_chosen = section.choice and name == section.choice.chosen and len(section.experiments) > 1
    return "chosen" if is_chosen else ROW_KINDS[kind]


def _with_groups(document: Document, rows: Sequence[Row], experiments: Sequence[str]) -> list[Row]:
    """The rows with the titles of the groups, if there are several groups."""
    titles = group_titles(document, experiments)
    found: list[Row] = []
    for row in rows:
        if title := titles.get(row.name):
            found.append(Row(title, "group", ()))
        found.append(row)
    return found


def group_titles(document: Document, experiments: Sequence[str]) -> dict[str, str]:
    """First experiment of each group -> title of the group; empty for a single group."""
    present = {
        title: [name for name in names if name in experiments] for title, names in document.groups.items()
    }
    titles = {names[0]: title for title, names in present.items() if names}
    return titles if len(titles) > 1 else {}


def _networks(document: Document, row: ScoreRow) -> str:
    """How many networks an experiment has, if several; empty for a trivial predictor."""
    if row.kind != "experiment":
        return ""
    e = document.experiment(row.name)
    return f"{len(e.trainings)} {networks_word(e)}" if len(e.trainings) > 1 else ""


def _tells(metric: str, rows: Sequence[ScoreRow]) -> bool:
    """Whether any row has the metric with a value that differs from the metric that it repeats."""
    pairs = [(comparable(row.value(metric)), comparable(row.value(REPEATS.get(metric, "")))) for row in rows]
    return any(math.isfinite(own) and not math.isclose(own, other, abs_tol=1e-6) for own, other in pairs)


def comparable(value: float | None) -> float:
    """The score as a sort key; an undefined score sorts below all others."""
    return -math.inf if value is None or math.isnan(value) else value


def fault_words(document: Document, section: Section, name: str) -> str:
    """For example "marks no pixel in 1 of 2 seeds, loss diverged"; empty for an experiment with no fault."""
    if name not in section.experiments:
        return ""
    e = document.experiment(name)
    found, words = section.markings.get(name), []
    if found:
        words.append(f"marks {listed(found.marks, 'or')} pixel{_in_some(found.seeds, e)}")
    if diverged := sum(training.diverged for training in e.trainings):
        words.append(f"loss diverged{_in_some(diverged, e)}")
    return ", ".join(words)


def _in_some(count: int, e: ExperimentRecord) -> str:
    return f" in {count} of {len(e.trainings)} {networks_word(e)}" if len(e.trainings) > 1 else ""


def _cells(
    image_set: ImageSet,
    row: ScoreRow,
    columns: Mapping[str, Column],
    rivals: Sequence[ScoreRow] = (),
) -> tuple[Cell, ...]:
    """The best value of a column, as displayed, is highlighted if not all candidates have it."""
    cells = []
    for metric, column in columns.items():
        text = column.show(row.value(metric))
        best = text != "–" and text == _best_text(metric, column, rivals)
        counted = _common_count(image_set, metric) is not None
        cells.append(Cell(text, _notes(row.scores.get(metric), column, counted), best))
    return tuple(cells)


def _notes(score: Score | None, column: Column, counted: bool) -> tuple[str, ...]:
    """The bounds of the confidence interval, the number of images, and the SD of several seeds' means."""
    notes = []
    if score and score.interval:
        notes.append(bounds_words(score.interval, column.show))
    if score and score.images is not None and not counted:
        notes.append(f"{score.images:,} images")
    if score and score.seed_sd is not None:
        notes.append(f"SD {score.seed_sd:.3f}")
    return tuple(notes)


def _best_text(metric: str, column: Column, rivals: Sequence[ScoreRow]) -> str:
    """Empty if nothing is better: all values are the same, or they are over different images."""
    values = [value for row in rivals if math.isfinite(value := comparable(row.value(metric)))]
    images = {row.scores[metric].images for row in rivals if metric in row.scores}
    if not column.better or len(images) > 1 or len(set(map(column.show, values))) < 2:
        return ""
    return column.show(max(values) if column.better > 0 else min(values))


# Tiles and overview


@dataclass(frozen=True)
class Tile:
    label: str
    value: str
    span: str
    trivial: str  # the best trivial predictor's score
    share: float  # percent, for the bar
    trivial_share: float


def _tiles(main: str) -> dict[tuple[str, str], str]:
    """Image set and metric of each tile, with its label."""
    name = IMAGE_SET_NAMES[main]
    return {
        (main, "iou"): f"IoU, {name}",
        (main, "dice"): f"Dice, {name}",
        (main, "missed"): f"{name} images missed",
        ("controls", "false_positive_rate"): "Controls falsely marked",
    }


def score_tiles(section: Section) -> list[Tile]:
    """Test scores of the chosen experiment."""
    assert section.choice
    tiles = []
    for (name, metric), label in _tiles(section.main.name).items():
        image_set = section.image_set(name)
        score = image_set and image_set.row(section.choice.chosen).scores.get(metric)
        if image_set and score:
            show = (MAIN_COLUMNS | MORE_COLUMNS)[metric].show
            predictor = image_set.best_baselines.get(metric)
            value = image_set.row(predictor).value(metric) if predictor else None
            words = (
                f"best trivial predictor: {show(value)} ({row_words(predictor, 'baseline')})"
                if predictor
                else ""
            )
            tiles.append(
                Tile(
                    label,
                    show(score.value),
                    span(score.interval, show),
                    words,
                    _percent(score.value),
                    _percent(value),
                )
            )
    return tiles


@dataclass(frozen=True)
class OverviewRow:
    """An experiment or trivial predictor in the first table of the page."""

    name: str
    kind: str  # see `Row`
    val: str  # selection score on Val
    level: bool  # not significantly lower on Val than the highest
    share: float  # IoU on the main Test images, in percent
    iou: str
    low: float | None = None  # bounds of the confidence interval, in percent
    high: float | None = None
    marked: str = ""  # share of controls that are falsely marked
    fault: str = ""


def overview(document: Document, section: Section) -> list[OverviewRow]:
    """All experiments by group, the trivial predictors, and what report 1 printed."""
    titles = group_titles(document, section.experiments)
    rows: list[OverviewRow] = []
    for row in section.main.rows:
        if title := titles.get(row.name):
            rows.append(OverviewRow(title, "group", "", False, 0, ""))
        rows.append(_overview_row(document, section, row))
    if section.printed and document.published:
        iou = section.printed[0].scores["iou"]  # the same for both losses
        rows.append(OverviewRow("report 1, both losses", "printed", "", False, _percent(iou), formatted(iou)))
    return rows


def _overview_row(document: Document, section: Section, row: ScoreRow) -> OverviewRow:
    choice, iou = section.choice, row.scores["iou"]
    val = choice.scores.get(row.name) if choice else None
    controls = section.image_set("controls")
    rate = controls.row(row.name).scores.get("false_positive_rate") if controls else None
    low, high = (_percent(iou.interval.low), _percent(iou.interval.high)) if iou.interval else (None, None)
    return OverviewRow(
        row_words(row.name, row.kind),
        row_kind(section, row.name, row.kind),
        formatted(val.value) if val else "",
        bool(choice and row.name in choice.level),
        _percent(iou.value),
        formatted(iou.value),
        low,
        high,
        percentage(rate.value) if rate else "",
        fault_words(document, section, row.name),
    )


def _percent(share: float | None) -> float:
    return round(min(max(comparable(share), 0.0), 1.0) * 100, 1)
