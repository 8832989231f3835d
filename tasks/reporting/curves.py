"""The report's training curves, reliability diagrams and chart of the infected share of the lung."""

import json
import math

from tasks.comparison.document import Detection, ExperimentRecord, Limits, Reliability, Section
from tasks.reporting import charts as figures
from tasks.reporting.words import IMAGE_SET_NAMES, formatted


def loss_charts(
    experiments: tuple[ExperimentRecord, ...],
) -> list[tuple[ExperimentRecord, figures.Chart, figures.Chart]]:
    """Loss and validation score charts per experiment.

    All charts share the epoch axis; experiments with the same loss formula share the loss axis.
    """
    last = max(max(t.curves.epoch) for e in experiments for t in e.trainings)
    highest: dict[str, float] = {}
    for e in experiments:
        losses = (loss for t in e.trainings for loss in (*t.curves.train_loss, *t.curves.val_loss))
        finite = [loss for loss in losses if math.isfinite(loss)]
        highest[_formula(e)] = max([highest.get(_formula(e), 0.0), *finite])
    return [(e, *_charts_of(e, last, highest[_formula(e)])) for e in experiments]


def _charts_of(e: ExperimentRecord, last: int, highest: float) -> tuple[figures.Chart, figures.Chart]:
    best = e.first.best_epoch
    losses = _of_seeds(e, {"train": "train_loss", "validation": "val_loss"})
    scores = _of_seeds(e, {"validation": "val_score"})
    return (
        figures.curves("Loss", losses, last_epoch=last, y_high=highest, best_epoch=best),
        figures.curves("Validation score", scores, last_epoch=last, y_high=1.0, best_epoch=best),
    )


def _of_seeds(e: ExperimentRecord, roles: dict[str, str]) -> list[figures.Curve]:
    """One curve per role (which names a field of the curves) and seed; the first seed is drawn on top."""
    return [
        figures.Curve(
            role if training is e.first else f"{role} other",
            training.curves.epoch,
            getattr(training.curves, values),
        )
        for training in reversed(e.trainings)
        for role, values in roles.items()
    ]


def _formula(e: ExperimentRecord) -> str:
    return str(e.plan["loss"]) + json.dumps(e.plan.get("loss_options"), sort_keys=True)


def reliability_charts(section: Section) -> list[figures.Chart]:
    """Per experiment: share of reference pixels against mean probability, one point per bin."""
    return [_reliability(found, section.target) for found in section.reliability]


def _reliability(found: Reliability, target: str) -> figures.Chart:
    lines = [
        figures.Curve(
            "train" if line.image_set == "all" else "validation", line.mean_probability, line.true_share
        )
        for line in found.lines
    ]
    words = f"Reliability of {found.experiment}, {target}: ECE {formatted(found.ece, 4)}"
    return figures.agreement(found.experiment, words, "mean probability", lines=lines)


def share_chart(limits: Limits) -> figures.Chart:
    """Infected share of the lung, predicted against reference."""
    dots = list(zip(limits.reference, limits.predicted, strict=True))
    words = f"Infected share of the lung, {limits.experiment} against reference, {len(dots)} images"
    return figures.agreement(limits.experiment, words, "reference share", dots=dots)


ROC_ROLES = {"non_covid": "train", "normal": "validation"}


def roc_chart(found: Detection) -> figures.Chart:
    """Sensitivity against false positive rate, for each class of controls."""
    curves = [curve for curve in found.curves if curve.image_set in ROC_ROLES]
    lines = [
        figures.Curve(ROC_ROLES[curve.image_set], curve.false_positive_rate, curve.sensitivity)
        for curve in curves
    ]
    areas = ", ".join(f"{IMAGE_SET_NAMES[curve.image_set]} {formatted(curve.area.value)}" for curve in curves)
    words = f"ROC curves of {found.experiment}; areas: {areas}"
    return figures.agreement(found.experiment, words, "false positive rate", lines=lines)
