"""A short version of the report in Markdown: one table per target and the main findings."""

from tasks.comparison.document import Document, Section
from tasks.reporting.findings import (
    against_trivial,
    on_printed,
    on_the_lead,
    on_trainings,
    opening,
    title,
)
from tasks.reporting.score_tables import MAIN_COLUMNS, Cell, score_table
from tasks.reporting.words import section_words


def summarise(document: Document) -> str:
    """The page's key table and sentences in Markdown."""
    lines = [f"# {title(document)}", "", opening(document), ""]
    if document.phantoms:
        lines += ["**Synthetic phantoms: these scores say nothing about patients.**", ""]
    if trainings := on_trainings(document):
        found = [(name, symptom) for name, of_one in trainings.items() for symptom in of_one]
        lines += [*(f"- **{name}:** {symptom.text}" for name, symptom in found), ""]
    for section in document.predicted:
        lines += [*_summary_table(document, section), ""]
        if sentences := [*against_trivial(section), *on_the_lead(document, section)]:
            lines += [*(f"- {sentence}" for sentence in sentences), ""]
    lines += [*(f"- {sentence}" for sentence in on_printed(document.consistency, document.phantoms)), ""]
    lines += [
        "IoU and Dice are means per image with 95 % confidence intervals (bootstrap over images), on the "
        "COVID-19 Test images unless stated otherwise. An image with an empty reference mask scores 1 if "
        "the prediction is empty too, else 0."
    ]
    return "\n".join(lines) + "\n"


SUMMARY_COLUMNS = {
    "covid": {metric: MAIN_COLUMNS[metric] for metric in ("iou", "dice", "mae_255")},
    "all": {metric: MAIN_COLUMNS[metric] for metric in ("iou", "dice")},
}


def _summary_table(document: Document, section: Section) -> list[str]:
    """One row per experiment and predictor: scores on the COVID-19 Test images, then on all Test images."""
    covid, everywhere = (
        score_table(document, section, image_set, columns)
        for name, columns in SUMMARY_COLUMNS.items()
        if (image_set := section.image_set(name))
    )
    headings = [*covid.headings, *(f"{heading}, all images" for heading in everywhere.headings)]
    further = {row.name: row.cells for row in everywhere.rows}
    lines = [
        f"| {section_words(document, section)} | {' | '.join(headings)} |",
        "| --- |" + " ---: |" * len(headings),
    ]
    for row in covid.rows:
        cells = [_with_notes(cell) for cell in (*row.cells, *further.get(row.name, ()))]
        cells += ["–"] * (len(headings) - len(cells))
        note = "as printed" if row.kind == "printed" else row.fault
        name = f"{row.name} ({note})" if note else row.name
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _with_notes(cell: Cell) -> str:
    return f"{cell.text} ({'; '.join(cell.notes)})" if cell.notes else cell.text
