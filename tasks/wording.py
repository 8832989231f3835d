"""The report's words: what it calls things, and how it writes numbers and lists."""

import math
from collections.abc import Sequence

IMAGE_SET_WORDS = {"covid": "COVID-19 Test images", "all": "all Test images"}
PREDICTORS = {
    "all_background": "all background",
    "all_foreground": "all foreground",
    "whole_lung": "the whole lung",
}


def predictor_words(name: str) -> str:
    return PREDICTORS.get(name, name.replace("_", " "))


def listed(words: Sequence[str], last: str = "and") -> str:
    return " ".join([", ".join(words[:-1]), last, words[-1]]) if len(words) > 1 else "".join(words)


def formatted(value: float | None, decimals: int = 3) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:,.{decimals}f}"


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
