"""The report's comparisons between experiments, post-processing steps, and images of several hospitals."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.comparison.document import (
    Difference,
    Document,
    ExternalRow,
    ExternalSet,
    ExternalTarget,
    Family,
    Score,
    Section,
    Step,
    StepChange,
    ensemble_name,
)
from tasks.reporting.words import (
    IMAGE_SET_NAMES,
    bounds_words,
    formatted,
    listed,
    percentage,
    signed,
    signed_span,
    with_span,
)


@dataclass(frozen=True)
class DifferenceCell:
    """A difference, formatted."""

    value: str
    span: str
    kind: str  # gain, loss, or inconclusive where the interval includes zero


def verdict(d: Difference) -> str:
    if d.winner is None:
        return "no significant difference"
    return f"{d.winner} is better"


@dataclass(frozen=True)
class Matrix:
    """Differences, row minus column; None on the diagonal."""

    names: tuple[str, ...]
    rows: tuple[tuple[DifferenceCell | None, ...], ...]


def matrix(family: Family, names: Sequence[str]) -> Matrix | None:
    """Every experiment compared with every other; None for fewer than three, where a list is enough."""
    if len(names) < 3:
        return None
    rows = tuple(tuple(_cell(family.between(row, column)) for column in names) for row in names)
    return Matrix(tuple(names), rows)


def _cell(d: Difference | None) -> DifferenceCell | None:
    return _difference_cell(d) if d else None


def _difference_cell(d: Difference) -> DifferenceCell:
    kind = "inconclusive" if d.winner is None else ("gain" if d.winner == d.first else "loss")
    return DifferenceCell(signed(d.value), signed_span(d.interval), kind)


@dataclass(frozen=True)
class Whisker:
    """Where a difference lies on the axis shared by a list of differences, in percent of the axis."""

    zero: float
    low: float
    value: float
    high: float


@dataclass(frozen=True)
class ComparedRow:
    """One experiment compared with the reference of a list."""

    name: str
    value: str
    span: str
    verdict: str
    level: bool  # no significant difference
    whisker: Whisker


def compared_rows(found: Sequence[Difference]) -> list[ComparedRow]:
    """Differences whose first experiment is the row's."""
    return [
        ComparedRow(d.first, signed(d.value), signed_span(d.interval), verdict(d), d.winner is None, whisker)
        for d, whisker in zip(found, whiskers(found), strict=True)
    ]


@dataclass(frozen=True)
class GroupRows:
    """A group of experiments, each compared with the first."""

    title: str
    first: str
    rows: list[ComparedRow]


def group_rows(document: Document, section: Section, family: Family) -> list[GroupRows]:
    """The groups with at least two experiments that predict this target."""
    found = []
    for title, names in document.groups.items():
        first, *others = [name for name in names if name in section.experiments] or [""]
        differences = [d.reversed for d in family.of(first, others)]
        if differences:
            found.append(GroupRows(title, first, compared_rows(differences)))
    return found


def whiskers(found: Sequence[Difference]) -> list[Whisker]:
    known = [value for d in found for value in _low_value_high(d)]
    low, high = min(0.0, *known), max(0.0, *known)
    width = (high - low) or 1.0

    def place(value: float) -> float:
        return round((value - low) / width * 100, 1)

    return [Whisker(place(0.0), *(place(value) for value in _low_value_high(d))) for d in found]


def _low_value_high(d: Difference) -> tuple[float, float, float]:
    """Low, value, high; without an interval, all three are the value."""
    return (d.interval.low, d.value, d.interval.high) if d.interval else (d.value, d.value, d.value)


# Images of other hospitals


@dataclass(frozen=True)
class ScoreCell:
    """A score, formatted, with its interval."""

    value: str
    span: str


@dataclass(frozen=True)
class ElsewhereRow:
    """One experiment on an external dataset, compared with its own Test images."""

    name: str
    cells: tuple[ScoreCell, ...]  # of scores, then of the change
    level: bool  # the interval of the change includes zero
    whisker: Whisker


@dataclass(frozen=True)
class Elsewhere:
    """The table of one external dataset and one target."""

    dataset: str
    target: str
    images: int
    classes: str
    headings: tuple[str, ...]
    rows: list[ElsewhereRow]


#: The metric whose change the report shows as a forest plot.
FOREST = "iou"


def elsewhere(document: Document) -> list[Elsewhere]:
    """A table for each target and external dataset of which changes are known.

    The bars of all tables share one axis.
    """
    places = [
        (dataset, found)
        for dataset in document.external
        for found in dataset.targets
        if all(row.changes for row in found.rows)
    ]
    changes = [row.changes[FOREST] for _, found in places for row in (*found.rows, *found.ensembles)]
    bars = iter(whiskers(changes)) if changes else iter(())
    return [
        Elsewhere(
            dataset.name,
            found.target,
            found.images,
            listed(found.classes),
            tuple(_elsewhere_cells(found.rows[0])),
            [
                *(_elsewhere_row(row.experiment, row, next(bars)) for row in found.rows),
                *(_elsewhere_row(ensemble_name(row.experiment), row, next(bars)) for row in found.ensembles),
            ],
        )
        for dataset, found in places
    ]


def _elsewhere_row(name: str, row: ExternalRow, bar: Whisker) -> ElsewhereRow:
    cells, change = _elsewhere_cells(row), row.changes[FOREST]
    return ElsewhereRow(name, tuple(cells.values()), change.winner is None, bar)


def _elsewhere_cells(row: ExternalRow) -> dict[str, ScoreCell]:
    """Heading -> cell."""
    change = row.changes[FOREST]
    cells = {
        "Dice": _score_cell(row.scores["dice"]),
        "Missed": _score_cell(row.scores["missed"], percentage),
    }
    if marked := row.scores.get("false_positive_rate"):
        cells["Falsely marked"] = _score_cell(marked, percentage)
    cells["IoU"] = _score_cell(row.scores[FOREST])
    cells["IoU, Test"] = _score_cell(row.test[FOREST])
    cells["Change of IoU"] = ScoreCell(signed(change.value), signed_span(change.interval))
    return cells


def _score_cell(score: Score, show: Callable[[float | None], str] = formatted) -> ScoreCell:
    return ScoreCell(show(score.value), bounds_words(score.interval, show) if score.interval else "")


def on_external(document: Document) -> list[str]:
    """How the experiment that was chosen for each target does on each external dataset."""
    return [sentence for dataset in document.external for sentence in _on_dataset(document, dataset)]


def _on_dataset(document: Document, dataset: ExternalSet) -> Iterator[str]:
    chosen = {section.target: section.choice.chosen for section in document.predicted if section.choice}
    for found in dataset.targets:
        for row in found.rows:
            if row.experiment == chosen.get(found.target) and row.changes:
                yield _on_row(dataset.name, found, row)
    usable = dataset.images - dataset.unusable
    if dataset.overlapping:
        identical = f", {dataset.identical:,} of them with identical pixels" if dataset.identical else ""
        yield (
            f"{dataset.name}: {dataset.overlapping:,} of {usable:,} usable images are also in the dataset"
            f"{identical}. They are left out of the scores."
        )
    else:
        yield f"{dataset.name}: none of the {usable:,} usable images is also in the dataset."


def _on_row(dataset: str, found: ExternalTarget, row: ExternalRow) -> str:
    change = row.changes[FOREST]
    reached = (
        f"For {found.target}, {row.experiment} reaches an IoU of {with_span(row.scores[FOREST])} on "
        f"{found.images:,} images of {dataset} ({listed(found.classes)}), and "
        f"{with_span(row.test[FOREST])} on {row.test_images:,} Test images ({listed(row.test_classes)})"
    )
    if change.winner is None:
        interval = f" (95% CI {signed_span(change.interval)})" if change.interval else ""
        return f"{reached}: the difference, {signed(change.value)}{interval}, is not significant."
    verb, gain = ("gains", change) if change.winner == change.first else ("loses", change.reversed)
    return f"{reached}: it {verb} {with_span(Score(value=gain.value, interval=gain.interval))}."


# Post-processing


@dataclass(frozen=True)
class StepRow:
    experiment: str
    step: str
    cells: tuple[DifferenceCell, ...]


@dataclass(frozen=True)
class Steps:
    """How the steps of post-processing change a target's scores."""

    headings: tuple[str, ...]
    rows: list[StepRow]
    without: list[str]  # experiments without post-processing


ALL_STEPS = "chosen"
STEP_METRICS = {"iou": "IoU", "balanced": "Balanced score"}


def steps(document: Document, section: Section) -> Steps:
    """Enabled steps, each alone and all together, compared with the plain masks."""
    with_steps = {step.experiment for step in section.steps}
    shown = {step: _shown(step.changes, section.main.name) for step in section.steps}
    return Steps(
        tuple(
            f"{STEP_METRICS[change.metric]}, {change.split}, {IMAGE_SET_NAMES[change.image_set]}"
            for changes in list(shown.values())[:1]
            for change in changes
        ),
        [
            StepRow(
                step.experiment,
                _step_words(document, section.target, step.experiment, step.step),
                tuple(map(step_cell, shown[step])),
            )
            for step in telling(list(shown.items()))
        ],
        [name for name in section.experiments if name not in with_steps],
    )


def telling(shown: Sequence[tuple[Step, list[StepChange]]]) -> list[Step]:
    """The steps to show, of all with their shown changes.

    A step that changes no score, as displayed, says nothing. Neither do all steps together where one step
    alone has the same effect.
    """
    alone = [(step.experiment, changes) for step, changes in shown if step.step != ALL_STEPS]
    return [
        step
        for step, changes in shown
        if any(round(change.value, 3) for change in changes)
        and not (step.step == ALL_STEPS and (step.experiment, changes) in alone)
    ]


def _shown(changes: Sequence[StepChange], main: str) -> list[StepChange]:
    """The IoU on the main images, and on all images the balanced score, or the IoU if there is none."""
    balanced = any(change.metric == "balanced" for change in changes)
    columns = ((main, "iou"), ("all", "balanced" if balanced else "iou"))
    return [change for change in changes if (change.image_set, change.metric) in columns]


def step_cell(change: StepChange) -> DifferenceCell:
    kind = "" if change.excludes_zero else "inconclusive"
    return DifferenceCell(signed(change.value), signed_span(change.interval), kind)


def _step_words(document: Document, target: str, experiment: str, step: str) -> str:
    e = document.experiment(experiment)
    match step:
        case "threshold":
            chosen = {formatted(t.thresholds[target], 2) for t in e.trainings if target in t.thresholds}
            return f"threshold {listed(sorted(chosen))}{_from_val(e.prediction['threshold'])}"
        case "presence":
            least = {formatted(t.presence[target], 4) for t in e.trainings if target in t.presence}
            return (
                f"nothing below mean probability {listed(sorted(least))}{_from_val(e.prediction['presence'])}"
            )
        case "flip":
            return "average over the image and its mirror image"
        case "small":
            return _smallest(e.prediction)
        case "holes":
            return "holes filled"
        case "lungs":
            return "restricted to the predicted lungs"
        case "chosen":
            return "all enabled steps"
    return step.replace("_", " ")


def _from_val(value: Any) -> str:
    return ", chosen on Val" if value == "val" else ""


def _smallest(prediction: dict[str, Any]) -> str:
    return f"components below {100 * prediction['min_area']:g}% of the image removed"


def postprocessing(prediction: dict[str, Any]) -> list[str]:
    """The steps that an experiment enables between probabilities and masks, in words."""
    threshold, presence = prediction["threshold"], prediction["presence"]
    words = {
        "threshold chosen on Val": threshold == "val",
        f"threshold {threshold}": threshold not in ("val", 0.5),
        "presence chosen on Val": presence == "val",
        f"nothing below mean probability {presence}": presence not in ("val", 0.0),
        _smallest(prediction): prediction["min_area"],
        "holes filled": prediction["fill_holes"],
        "restricted to the predicted lungs": prediction["within_lungs"],
    }
    return [step for step, on in words.items() if on]
