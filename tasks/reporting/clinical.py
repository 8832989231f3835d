"""The report's answers to clinical questions, as tables."""

from collections.abc import Callable, Sequence

from tasks.comparison.document import Detection, Limits, Score, Section, SizeGroup
from tasks.reporting.score_tables import MAIN_COLUMNS, Cell, Row, Table, row_kind
from tasks.reporting.words import IMAGE_SET_NAMES, bounds_words, formatted, percentage, signed, signed_span


def detection_table(section: Section) -> Table | None:
    """Sensitivity, specificity and area under the ROC curve of each experiment, by image."""
    if not section.detection:
        return None
    first = section.detection[0]
    sets = [name for name in first.specificity if name != "controls"] or list(first.specificity)
    headings = ["Sensitivity"]
    headings += [f"Specificity, {IMAGE_SET_NAMES[name]}" for name in sets]
    headings += [f"AUC, against {IMAGE_SET_NAMES[name]}" for name in sets]
    return Table(tuple(headings), tuple(_detection_row(section, found, sets) for found in section.detection))


def _detection_row(section: Section, found: Detection, sets: Sequence[str]) -> Row:
    areas = {curve.image_set: curve.area for curve in found.curves}
    rates = [found.sensitivity, *(found.specificity[name] for name in sets)]
    cells = [_cell(rate, percentage) for rate in rates]
    cells += [_cell(areas[name]) for name in sets]
    return Row(found.experiment, row_kind(section, found.experiment), tuple(cells))


def limits_table(section: Section) -> Table | None:
    """Bias and limits of agreement of the infected share of the lung."""
    if not section.limits:
        return None
    headings = ("Bias", "Lower limit", "Upper limit", "Mean absolute error")
    return Table(headings, tuple(_limits_row(section, found) for found in section.limits))


def _limits_row(section: Section, found: Limits) -> Row:
    cells = [_signed(score) for score in (found.bias, found.lower, found.upper)]
    return Row(found.experiment, row_kind(section, found.experiment), (*cells, Cell(formatted(found.error))))


SIZE_COLUMNS = ("iou", "missed")


def size_table(section: Section) -> Table | None:
    """IoU and missed images by quarters of the reference mask's area."""
    if not section.sizes:
        return None
    headings = [
        f"{MAIN_COLUMNS[metric].heading}, {_range(group)}"
        for metric in SIZE_COLUMNS
        for group in section.sizes
    ]
    names = [row.name for row in section.sizes[0].rows]
    return Table(tuple(headings), tuple(_size_row(section, name) for name in names))


def _size_row(section: Section, name: str) -> Row:
    rows = [next(row for row in group.rows if row.name == name) for group in section.sizes]
    cells = [_cell(row.scores["iou"]) for row in rows]
    cells += [_cell(row.scores["missed"], percentage) for row in rows]
    return Row(name, row_kind(section, name), tuple(cells))


def _range(group: SizeGroup) -> str:
    return f"{100 * group.least:.1f}–{100 * group.most:.1f}%"


def _cell(score: Score, show: Callable[[float | None], str] = formatted) -> Cell:
    return Cell(show(score.value), (bounds_words(score.interval, show),) if score.interval else ())


def _signed(score: Score) -> Cell:
    return Cell(signed(score.value), (signed_span(score.interval),) if score.interval else ())
