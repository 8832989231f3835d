"""The report's vocabulary: names of things, and the formatting of numbers and lists."""

import math
from collections.abc import Sequence

from tasks.comparison.document import Bounds, Document, Kind, Section

IMAGE_SET_WORDS = {
    "covid": "COVID-19 Test images",
    "controls": "control Test images (Non-COVID and Normal)",
    "all": "all Test images",
}
IMAGE_SET_NAMES = {"covid": "COVID-19", "controls": "controls", "all": "all"}
TARGET_WORDS = {"infection_in_lungs": "infection within the predicted lungs"}
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


def target_words(target: str) -> str:
    return TARGET_WORDS.get(target, target.replace("_", " "))


def section_words(document: Document, section: Section) -> str:
    """The target of a section, with its half if there are several."""
    half = f", {section.half} half" if len(document.halves) > 1 else ""
    return f"{target_words(section.target)}{half}"


def listed(words: Sequence[str], last: str = "and") -> str:
    return " ".join([", ".join(words[:-1]), last, words[-1]]) if len(words) > 1 else "".join(words)


def formatted(value: float | None, decimals: int = 3) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:,.{decimals}f}"


def percentage(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.1%}".replace("%", " %")


def signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.3f}".replace("-", "−")


def signed_span(interval: Bounds | None) -> str:
    """The bounds of a difference's interval."""
    return f"{signed(interval.low)} to {signed(interval.high)}" if interval else ""
