"""metrics.json, which `dvc metrics diff` compares between commits."""

import json
import math
from typing import Any

from tasks.comparison.document import Document, ScoreRow, Section
from tasks.settings.schema import DATASET


def metrics_json(document: Document) -> str:
    """Experiment or trivial predictor -> target -> image set -> metric; six decimals, null for NaN.

    One more entry holds the audit's counts for the dataset.
    """
    content: dict[str, Any] = {DATASET: document.dataset.audit}
    for section in document.sections:
        for image_set in section.image_sets:
            for row in image_set.rows:
                of_target = content.setdefault(_key(row, section, document), {}).setdefault(
                    section.target, {}
                )
                scores = {metric: _rounded(score.value) for metric, score in row.scores.items()}
                of_target[image_set.name] = {"images": row.images, **scores}
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _key(row: ScoreRow, section: Section, document: Document) -> str:
    """The row's name. A trivial predictor that is scored on several halves gets the half as a suffix."""
    several = row.kind == "baseline" and len(document.halves) > 1
    return f"{row.name}_in_{section.half}_half" if several else row.name


def _rounded(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
