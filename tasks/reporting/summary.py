"""The report in short, in Markdown: a table a target and what the figures show."""

from tasks.reporting.findings import Sentences, opening, title
from tasks.reporting.inputs import Inputs
from tasks.reporting.score_tables import MAIN_COLUMNS, Cell, score_table
from tasks.reporting.words import target_words


def summarise(inputs: Inputs, said: Sentences) -> str:
    """The page's key table and sentences in Markdown."""
    lines = [f"# {title(inputs)}", "", opening(inputs), ""]
    if inputs.phantoms:
        lines += ["**Synthetic phantoms: figures say nothing about patients.**", ""]
    if said.on_training:
        found = [(name, symptom) for name, of_one in said.on_training.items() for symptom in of_one]
        lines += [*(f"- **{name}:** {symptom.text}" for name, symptom in found), ""]
    for target in inputs.targets:
        lines += [*_summary_table(inputs, target), ""]
        if sentences := [*said.against_trivial[target], *said.on_the_lead[target]]:
            lines += [*(f"- {sentence}" for sentence in sentences), ""]
    lines += [*(f"- {sentence}" for sentence in said.on_printed), ""]
    lines += [
        "IoU and Dice are means per image with 95 % intervals over the images, on the COVID-19 Test images "
        "where no others are named; an empty truth scores 1 if predicted empty, else 0."
    ]
    return "\n".join(lines) + "\n"


SUMMARY_COLUMNS = {metric: MAIN_COLUMNS[metric] for metric in ("iou", "dice", "mae_255")}


def _summary_table(inputs: Inputs, target: str) -> list[str]:
    """A row for each experiment and predictor: on the COVID-19 Test images, then on all."""
    covid = score_table(inputs, target, "covid", SUMMARY_COLUMNS)
    everywhere = score_table(inputs, target, "all", {m: MAIN_COLUMNS[m] for m in ("iou", "dice")})
    headings = [*covid.headings, *(f"{heading}, all images" for heading in everywhere.headings)]
    further = {row.name: row.cells for row in everywhere.rows}
    lines = [f"| {target_words(target)} | {' | '.join(headings)} |", "| --- |" + " ---: |" * len(headings)]
    for row in covid.rows:
        cells = [_with_notes(cell) for cell in (*row.cells, *further.get(row.name, ()))]
        cells += ["–"] * (len(headings) - len(cells))
        note = "as printed" if row.kind == "printed" else row.fault
        name = f"{row.name} ({note})" if note else row.name
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _with_notes(cell: Cell) -> str:
    return f"{cell.text} ({'; '.join(cell.notes)})" if cell.notes else cell.text
