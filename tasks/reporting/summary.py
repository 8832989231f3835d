"""A short version of the report in Markdown: one table per target and the main findings."""

from tasks.comparison.document import Document, Section
from tasks.reporting.differences import on_external
from tasks.reporting.ensembles import on_ensembles, on_folds
from tasks.reporting.findings import (
    against_trivial,
    on_chosen,
    on_printed,
    on_training_variation,
    on_trainings,
    on_use,
    opening,
    title,
)
from tasks.reporting.limitations import RESEARCH_USE
from tasks.reporting.score_tables import MAIN_COLUMNS, Cell, score_table
from tasks.reporting.words import IMAGE_SET_WORDS, SELECTION_WORDS, formatted, section_words


def summarise(document: Document) -> str:
    """The page's key table and sentences in Markdown."""
    lines = [f"# {title(document)}", "", *(f"{sentence}\n" for sentence in opening(document))]
    lines += [f"**{RESEARCH_USE}**", ""]
    if document.phantoms:
        lines += ["**Synthetic phantoms: these scores say nothing about patients.**", ""]
    if trainings := on_trainings(document):
        found = [(name, symptom) for name, of_one in trainings.items() for symptom in of_one]
        lines += [*(f"- **{name}:** {symptom.text}" for name, symptom in found), ""]
    for number, section in enumerate(document.predicted):
        lines += [*summary_table(document, section), ""]
        choice = [on_use(document, section)] if number else []  # the opening has the first
        sentences = [*choice, *on_chosen(section), *against_trivial(section)]
        lines += [*(f"- {sentence}" for sentence in sentences), ""]
    if document.external:
        lines += [*(f"- {sentence}" for sentence in on_external(document)), ""]
    if document.cross_validations:
        lines += [*(f"- {sentence}" for sentence in on_folds(document)), ""]
    if document.ensembles:
        lines += [*(f"- {sentence}" for sentence in on_ensembles(document)), ""]
    lines += [*(f"- {sentence}" for sentence in on_printed(document.consistency, document.published)), ""]
    lines += [
        "Scores are means per image with 95% confidence intervals, on the "
        f"{IMAGE_SET_WORDS[document.predicted[0].main.name]} unless the column says otherwise. An image "
        "with an empty reference mask scores 1 if the prediction is empty too, else 0. "
        "“Beats” means that the interval of the difference excludes zero; the intervals of all pairs hold "
        f"together. {on_training_variation(document)}"
    ]
    return "\n".join(lines) + "\n"


MAIN = "main"  # stands for the section's main image set
SUMMARY_COLUMNS = {
    MAIN: ("iou", "dice", "missed"),
    "controls": ("false_positive_rate",),
    "all": ("iou", "dice"),
}


def summary_table(document: Document, section: Section) -> list[str]:
    """One row per experiment and predictor: the score on Val, then scores on Test images."""
    tables = {
        name: score_table(
            document, section, image_set, {metric: MAIN_COLUMNS[metric] for metric in SUMMARY_COLUMNS[name]}
        )
        for name in SUMMARY_COLUMNS
        if (image_set := section.main if name == MAIN else section.image_set(name))
    }
    headings = [
        f"{heading}, all images" if name == "all" else heading
        for name, table in tables.items()
        for heading in table.headings
    ]
    choice = section.choice
    assert choice
    lines = [
        f"| {section_words(document, section)} | Val: {SELECTION_WORDS[choice.selection]} | "
        f"{' | '.join(headings)} |",
        "| --- |" + " ---: |" * (len(headings) + 1),
    ]
    for row in tables[MAIN].rows:
        if row.kind == "group":
            lines.append(f"| **{row.name}** |" + " |" * (len(headings) + 1))
            continue
        val = choice.scores.get(row.name)
        cells = [formatted(val.value) if val else "–"]
        for table in tables.values():
            found = next((other for other in table.rows if other.name == row.name), None)
            cells += [_with_notes(cell) for cell in found.cells] if found else ["–"] * len(table.headings)
        notes = ["as printed"] if row.kind == "printed" else [row.networks, row.fault]
        note = "; ".join(filter(None, notes))
        name = f"{row.name} ({note})" if note else row.name
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _with_notes(cell: Cell) -> str:
    return f"{cell.text} ({'; '.join(cell.notes)})" if cell.notes else cell.text
