"""The report's vocabulary: names of things, and the formatting of numbers and lists."""

import math
from collections.abc import Callable, Sequence

from tasks.comparison.document import Bounds, Document, ExperimentRecord, Kind, Score, Section

IMAGE_SET_WORDS = {
    "covid": "COVID-19 Test images",
    "non_covid": "Non-COVID Test images",
    "normal": "Normal Test images",
    "controls": "control Test images (Non-COVID and Normal)",
    "all": "all Test images",
}
IMAGE_SET_NAMES = {
    "covid": "COVID-19",
    "non_covid": "Non-COVID",
    "normal": "Normal",
    "controls": "controls",
    "all": "all",
}
SELECTION_WORDS = {
    "balanced": "balanced score",
    "lesions": "mean Dice over images with a reference mask",
    "all": "mean Dice",
}
PREDICTORS = {
    "all_background": "all background",
    "all_foreground": "all foreground",
    "whole_lung": "the whole lung",
}


def predictor_words(name: str) -> str:
    return PREDICTORS.get(name, name.replace("_", " "))


def row_words(name: str, kind: Kind) -> str:
    """The label of a row of scores."""
    return name if kind == "experiment" else predictor_words(name)


def section_words(document: Document, section: Section) -> str:
    """The target of a section, with its half if there are several."""
    half = f", {section.half} half" if len(document.halves) > 1 else ""
    return f"{section.target}{half}"


def val_words(document: Document, section: Section) -> str:
    """The images on which the experiments of a section are compared with each other, in the plural."""
    folded = {found.experiment for found in document.cross_validations}
    return "out-of-fold Train and Val images" if set(section.experiments) <= folded else "Val images"


def networks_word(e: ExperimentRecord) -> str:
    """What an experiment has several networks of."""
    return "folds" if e.folds > 1 else "seeds"


def listed(words: Sequence[str], last: str = "and") -> str:
    return " ".join([", ".join(words[:-1]), last, words[-1]]) if len(words) > 1 else "".join(words)


def formatted(value: float | None, decimals: int = 3) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:,.{decimals}f}"


def percentage(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.1%}"


def signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{round(value, 3) + 0.0:+.3f}".replace("-", "−")  # no negative 0


def signed_span(interval: Bounds | None) -> str:
    """The bounds of a difference's interval."""
    return f"{signed(interval.low)} to {signed(interval.high)}" if interval else ""


def bounds_words(bounds: Bounds, show: Callable[[float | None], str] = formatted) -> str:
    return f"{show(bounds.low)}–{show(bounds.high)}"


def span(interval: Bounds | None, show: Callable[[float | None], str] = formatted) -> str:
    """The bounds of a score's interval, after "95% CI"; empty without an interval."""
    return f"95% CI {bounds_words(interval, show)}" if interval else ""


def with_span(score: Score, show: Callable[[float | None], str] = formatted) -> str:
    """A score with its interval in brackets."""
    return f"{show(score.value)} ({span(score.interval, show)})" if score.interval else show(score.value)
