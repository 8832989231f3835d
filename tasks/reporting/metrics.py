"""metrics.json, which `dvc metrics diff` compares between commits."""

import json
import math
from collections.abc import Sequence
from typing import Any

from tasks.comparison.document import Document, ExternalRow, ScoreRow, Section
from tasks.settings.schema import DATASET, EXTERNAL, TRIVIAL

#: The scores of each image set, few enough to read a difference; scores.csv has all.
METRICS = {
    "covid": ("iou", "dice", "sensitivity", "precision", "average_precision", "hd95", "mae", "missed"),
    "non_covid": ("false_positive_rate",),
    "normal": ("false_positive_rate",),
    "controls": ("iou", "dice", "false_positive_rate"),
    "all": ("balanced", "iou", "dice"),
}
#: Without COVID-19 images, the main image set has their scores too.
MAIN_METRICS = METRICS["covid"]
#: The scores on external datasets, over images with a reference mask; of the others the last.
EXTERNAL_METRICS = ("iou", "dice", "false_positive_rate")

#: Key of the scores of an experiment's ensemble, and which of its scores are there.
ENSEMBLE, ENSEMBLE_METRICS = "ensemble", ("balanced", "iou", "dice")
#: Key of an experiment's scores on Train and Val images by cross-validation.
OUT_OF_FOLD = "out_of_fold"

Nested = dict[str, Any]


def metrics_json(document: Document) -> str:
    """Experiment -> val or test -> target -> image set -> metric; six decimals, null for NaN.

    The trivial predictors are under `baselines`, and the audit's counts under `dataset`. Scores on external
    datasets are under `external` -> dataset -> target -> metric of each experiment, those of its ensemble
    under `ensemble` -> val, test or external and so on, and those of a cross-validation under `out_of_fold`
    -> target -> image set -> metric.
    """
    content: Nested = {DATASET: document.dataset.audit, TRIVIAL: {}}
    for section in document.sections:
        for split, image_sets in (("val", section.val), ("test", section.image_sets)):
            for image_set in image_sets:
                for row in image_set.rows:
                    of_one = _entry(content, row, section, document)
                    of_split = of_one.setdefault(split, {}).setdefault(section.target, {})
                    metrics = METRICS[image_set.name]
                    if image_set.name == section.main.name:
                        metrics = tuple(dict.fromkeys((*metrics, *MAIN_METRICS)))
                    if scores := _scores(metrics, row):
                        of_split[image_set.name] = scores
    _add_external(content, document)
    _add_ensembles(content, document)
    _add_folds(content, document)
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _add_external(content: Nested, document: Document) -> None:
    for dataset in document.external:
        for found in dataset.targets:
            networks = ((content[row.experiment], row) for row in found.rows)
            ensembles = ((_within(content[row.experiment], ENSEMBLE), row) for row in found.ensembles)
            for place, row in (*networks, *ensembles):
                of_dataset = _within(_within(place, EXTERNAL), dataset.name)
                of_dataset[found.target] = _scores(EXTERNAL_METRICS, row)


def _add_ensembles(content: Nested, document: Document) -> None:
    for ensemble in document.ensembles:
        of_ensemble = _within(content[ensemble.experiment], ENSEMBLE)
        for found in ensemble.targets:
            for score in (score for score in found.scores if score.metric in ENSEMBLE_METRICS):
                of_target = _within(_within(of_ensemble, score.split.lower()), found.target)
                _within(of_target, score.image_set)[score.metric] = _rounded(score.ensemble.value)
            if ratio := found.rejection.ratio:
                of_target = _within(_within(of_ensemble, "test"), found.target)
                _within(of_target, "all")["rejection_ratio"] = _rounded(ratio.value)


def _add_folds(content: Nested, document: Document) -> None:
    for of in document.cross_validations:
        of_experiment = _within(content[of.experiment], OUT_OF_FOLD)
        for found in of.targets:
            of_target = _within(of_experiment, found.target)
            for each in found.scores:
                _within(of_target, each.image_set)[each.metric] = _rounded(each.score.value)


def _scores(metrics: Sequence[str], row: ScoreRow | ExternalRow) -> Nested:
    return {metric: _rounded(row.scores[metric].value) for metric in metrics if metric in row.scores}


def _entry(content: Nested, row: ScoreRow, section: Section, document: Document) -> Nested:
    """The row's place. A trivial predictor that is scored on several halves gets the half as a suffix."""
    if row.kind == "experiment":
        return _within(content, row.name)
    several = len(document.halves) > 1
    return _within(content[TRIVIAL], f"{row.name}_in_{section.half}_half" if several else row.name)


def _within(content: Nested, name: str) -> Nested:
    found: Nested = content.setdefault(name, {})
    return found


def _rounded(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
