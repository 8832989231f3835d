"""The report's paired comparisons between experiments and between the steps of post-processing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.comparison.document import Difference, Document, ImageSet, Section, StepChange
from tasks.reporting.words import IMAGE_SET_NAMES, formatted, listed, signed, signed_span

RANKED_BY = "iou"


@dataclass(frozen=True)
class DifferenceCell:
    """A difference, formatted."""

    value: str
    span: str
    kind: str  # gain, loss, or inconclusive where the interval includes zero


def against_best(image_set: ImageSet) -> list[Difference]:
    """The experiment with the highest IoU compared with each other one, in order of decreasing IoU."""
    names = [row.name for row in image_set.experiments]
    found = _by_pair(image_set)
    return [found[names[0], name] for name in names[1:] if (names[0], name) in found]


def _by_pair(image_set: ImageSet) -> dict[tuple[str, str], Difference]:
    return {(d.first, d.second): d for d in image_set.differences if d.metric == RANKED_BY}


def verdict(d: Difference) -> str:
    if d.winner is None:
        return "no significant difference"
    return f"{d.winner} beats {d.second if d.winner == d.first else d.first}"


@dataclass(frozen=True)
class Matrix:
    """Differences in IoU, row minus column; None on the diagonal."""

    names: tuple[str, ...]
    rows: tuple[tuple[DifferenceCell | None, ...], ...]


def matrix(image_set: ImageSet) -> Matrix | None:
    """Every experiment compared with every other; None for fewer than three, where the list is enough."""
    names = tuple(row.name for row in image_set.experiments)
    if len(names) < 3:
        return None
    found = {pair: _difference_cell(d) for pair, d in _by_pair(image_set).items()}
    return Matrix(names, tuple(tuple(found.get((row, column)) for column in names) for row in names))


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
class LeadRow:
    """The best experiment compared with another one."""

    second: str
    value: str
    span: str
    verdict: str
    level: bool  # no significant difference
    whisker: Whisker


def lead_rows(found: Sequence[Difference]) -> list[LeadRow]:
    return [
        LeadRow(d.second, signed(d.value), signed_span(d.interval), verdict(d), d.winner is None, whisker)
        for d, whisker in zip(found, whiskers(found), strict=True)
    ]


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


STEP_METRICS = {"iou": "IoU", "dice": "Dice"}


def steps(document: Document, section: Section) -> Steps:
    """Each enabled step, and all enabled steps together, compared with the plain masks on each image set."""
    sets = [image_set.name for image_set in section.image_sets]
    with_steps = {step.experiment for step in section.steps}
    return Steps(
        tuple(
            f"{name}, {IMAGE_SET_NAMES[image_set]}" for image_set in sets for name in STEP_METRICS.values()
        ),
        [
            StepRow(
                step.experiment,
                _step_words(document, section.target, step.experiment, step.step),
                tuple(step_cell(change) for change in step.changes),
            )
            for step in section.steps
        ],
        [name for name in section.experiments if name not in with_steps],
    )


def step_cell(change: StepChange) -> DifferenceCell:
    kind = "" if change.excludes_zero else "inconclusive"
    return DifferenceCell(signed(change.value), signed_span(change.interval), kind)


def _step_words(document: Document, target: str, experiment: str, step: str) -> str:
    e = document.experiment(experiment)
    match step:
        case "threshold":
            chosen = {formatted(t.thresholds[target], 2) for t in e.trainings if target in t.thresholds}
            return f"threshold {listed(sorted(chosen))}{_from_val(e.prediction)}"
        case "small":
            return _smallest(e.prediction)
        case "holes":
            return "holes filled"
        case "lungs":
            return "restricted to the predicted lungs"
        case "chosen":
            return "all enabled steps"
    return step.replace("_", " ")


def _from_val(prediction: dict[str, Any]) -> str:
    return ", chosen on Val" if prediction["threshold"] == "val" else ""


def _smallest(prediction: dict[str, Any]) -> str:
    return f"components below {100 * prediction['min_area']:g} % of the image removed"


def postprocessing(prediction: dict[str, Any]) -> list[str]:
    """The steps that an experiment enables between probabilities and masks, in words."""
    threshold = prediction["threshold"]
    words = {
        "threshold chosen on Val": threshold == "val",
        f"threshold {threshold}": threshold not in ("val", 0.5),
        _smallest(prediction): prediction["min_area"],
        "holes filled": prediction["fill_holes"],
        "restricted to the predicted lungs": prediction["within_lungs"],
    }
    return [step for step, on in words.items() if on]
