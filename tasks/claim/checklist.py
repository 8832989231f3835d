"""The CLAIM checklist, 2024 update: which items it has, and the page with their answers.

Tejani et al. 2024, Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 Update, doi
10.1148/ryai.240300. Numbers and subjects are theirs; the words are not.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tasks.claim import data, evaluation, model, reference, study
from tasks.claim.answer import STATUSES, Answer
from tasks.common.raw import SPLITS
from tasks.comparison.document import Document
from tasks.reporting.dataset import CountCell, count_rows, has_published
from tasks.reporting.limitations import RESEARCH_USE
from tasks.reporting.settings import settings
from tasks.reporting.summary import summary_table
from tasks.reporting.words import IMAGE_SET_WORDS


class Item(NamedTuple):
    number: int
    subject: str
    answer: Callable[[Document], Answer]


SECTIONS = {
    "Title and abstract": (
        Item(1, "Title that names the method", study.heading),
        Item(2, "Structured abstract", study.abstract),
    ),
    "Introduction": (
        Item(3, "Background and intended role", study.background),
        Item(4, "Aims and hypotheses", study.aims),
    ),
    "Methods: study design": (
        Item(5, "Prospective or retrospective", study.design),
        Item(6, "Goal of the study", study.goal),
    ),
    "Methods: data": (
        Item(7, "Sources of the data", data.sources),
        Item(8, "Which images are in and out", data.selection),
        Item(9, "Preprocessing", data.preprocessing),
        Item(10, "Parts of the data that are used", data.subsets),
        Item(11, "Removal of identifiers", data.identifiers),
        Item(12, "Missing data", data.missing_data),
        Item(13, "Acquisition of the images", data.acquisition),
    ),
    "Methods: reference standard": (
        Item(14, "How the reference was obtained", reference.definition),
        Item(15, "Why this reference", reference.rationale),
        Item(16, "Who annotated", reference.annotators),
        Item(17, "Annotation of the Test images", reference.test_annotation),
        Item(18, "Variation between annotators", reference.variability),
    ),
    "Methods: partitions": (
        Item(19, "Assignment to splits", data.assignment),
        Item(20, "Level at which splits are disjoint", data.disjointness),
    ),
    "Methods: testing data": (Item(21, "Intended number of images", data.sample_size),),
    "Methods: model": (
        Item(22, "Networks", model.networks),
        Item(23, "Software", model.software),
        Item(24, "Initial weights", model.initialisation),
    ),
    "Methods: training": (
        Item(25, "Training", model.training),
        Item(26, "Choice of the final network", model.choice),
        Item(27, "Ensembles", model.ensembles),
    ),
    "Methods: evaluation": (
        Item(28, "Metrics", evaluation.metrics),
        Item(29, "Uncertainty and significance", evaluation.statistics),
        Item(30, "Robustness", evaluation.robustness),
        Item(31, "Explainability", evaluation.explainability),
        Item(32, "Test on internal data", evaluation.internal),
        Item(33, "Test on external data", evaluation.external),
        Item(34, "Registration as a trial", study.registration),
    ),
    "Results: data": (
        Item(35, "Numbers included and excluded", data.included),
        Item(36, "Patients of each split", data.characteristics),
    ),
    "Results: performance": (
        Item(37, "Scores and their uncertainty", evaluation.scores),
        Item(38, "Diagnostic performance", evaluation.diagnosis),
        Item(39, "Failures", evaluation.failures),
    ),
    "Discussion": (
        Item(40, "Limitations", study.limits),
        Item(41, "Meaning for practice", study.practice),
    ),
    "Other information": (
        Item(42, "Protocol and technical details", study.protocol),
        Item(43, "Availability of software, networks and data", study.availability),
        Item(44, "Funding", study.funding),
    ),
}


def answers(document: Document) -> dict[int, Answer]:
    """Item -> answer, in the order of the checklist."""
    return {item.number: item.answer(document) for items in SECTIONS.values() for item in items}


def checklist(document: Document) -> str:
    """The page as Markdown; equal documents give equal text."""
    found = answers(document)
    return "\n\n".join([*_head(found), *_items(found), *_tables(document)]) + "\n"


def _head(found: dict[int, Answer]) -> Iterator[str]:
    numbers = {status: [n for n, answer in found.items() if answer.status == status] for status in STATUSES}
    yield "# CLAIM checklist"
    yield f"**{', '.join(f'{len(of)} {status}' for status, of in numbers.items() if of)}**"
    yield (
        "What this run says about each item of the Checklist for Artificial Intelligence in Medical Imaging "
        "(CLAIM), 2024 update: Tejani AS, Klontzas ME, Gatti AA, et al., Radiology: Artificial Intelligence "
        "2024;6(4):e240300, [doi 10.1148/ryai.240300](https://doi.org/10.1148/ryai.240300). Numbers and "
        "subjects are those of the checklist, but the words are others: read the original before you submit "
        "it."
    )
    yield (
        "“Reported” means that this run has an answer, and not that the answer is good. “Partly” and “not "
        "reported” name what the authors must add. A checklist does not replace judgement."
    )
    yield f"**{RESEARCH_USE}**"
    yield "\n".join(
        f"- {status.capitalize()}: {', '.join(map(str, of))}" for status, of in numbers.items() if of
    )


def _items(found: dict[int, Answer]) -> Iterator[str]:
    for section, items in SECTIONS.items():
        yield f"## {section}"
        for item in items:
            answer = found[item.number]
            yield f"**{item.number}. {item.subject}** – {answer.status}"
            if text := answer.said or answer.inapplicable:
                yield text
            if answer.missing:
                yield f"*To add:* {answer.missing}"


def _tables(document: Document) -> Iterator[str]:
    yield "## Table 1: usable images"
    last = ["Published"] if has_published(document.dataset) else []
    rows = [[row.label, *(_words(cell) for cell in row.cells)] for row in count_rows(document.dataset)]
    yield _table(["Class", *SPLITS, "Total", *last], rows)
    yield "## Table 2: settings by experiment"
    differing, _ = settings(document.experiments)
    of_each = zip((e.name for e in document.experiments), *differing.values(), strict=True)
    yield _table(["Experiment", *differing], list(of_each))
    yield "## Table 3: scores"
    where = IMAGE_SET_WORDS[document.predicted[0].main.name]
    yield (
        f"Means per image with 95% confidence intervals, on the {where} unless the column says otherwise. "
        "Trivial predictors are below the experiments."
    )
    for section in document.predicted:
        yield "\n".join(summary_table(document, section))


def _words(cell: CountCell) -> str:
    return f"{cell.text} ({'; '.join(cell.notes)})" if cell.notes else cell.text


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
