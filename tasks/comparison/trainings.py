"""Records of the trainings: settings, curves, symptoms of failed ones, scores of cross-validations."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from tasks.comparison.document import (
    CrossValidation,
    Curves,
    ExperimentRecord,
    FoldedScore,
    FoldedTarget,
    Report2Scores,
    ScoreRow,
    TrainingRecord,
)
from tasks.comparison.inputs import ExperimentResults, Scored, Table
from tasks.comparison.scores import score_rows_of, selection_values
from tasks.support.symptoms import symptoms

BOTH = ("lung", "infection")
LOADED = (
    *("parameters", "train_images", "val_images", "best_epoch", "diverged", "precision", "device"),
    "versions",
)


def experiment(e: ExperimentResults) -> ExperimentRecord:
    trainings = tuple(_training(e, seed) for seed in e.seeds)
    return ExperimentRecord(
        name=e.name,
        half=e.half,
        plan=e.plan,
        prediction=e.prediction,
        versions=e.versions,
        trainings=trainings,
    )


def _training(e: ExperimentResults, seed: int) -> TrainingRecord:
    history = e.of_seed(seed)
    network: dict[str, Any] = {key: e.networks[seed][key] for key in LOADED}
    return TrainingRecord(
        seed=seed,
        **network,
        thresholds=e.thresholds[seed],
        presence=e.presence[seed],
        curves=Curves(
            epoch=tuple(history["epoch"].astype(int).tolist()),
            train_loss=tuple(history["train_loss"].tolist()),
            val_loss=tuple(history["val_loss"].tolist()),
            val_score=tuple(history["val_score"].tolist()),
        ),
        symptoms=tuple(symptoms(history)),
    )


def report_2_scores(e: ExperimentResults, lung: ScoreRow, infection: ScoreRow) -> Report2Scores:
    """This experiment's scores in the form of report 2's table.

    Final scores are on all Test images; last-epoch scores are the first seed's, on the Val split.
    """
    last = e.of_seed(e.seeds[0]).iloc[-1]
    return Report2Scores(
        name=e.name,
        dice_lung=lung.value("dice"),
        iou_lung=lung.value("iou"),
        dice_infection=infection.value("dice"),
        iou_infection=infection.value("iou"),
        last_train_loss=float(last["train_loss"]),
        last_val_loss=float(last["val_loss"]),
        last_val_dice=float(last["val_dice"]),
        last_val_iou=float(last["val_iou"]),
    )


# Cross-validation

#: The scores on the images of the section's main set, on controls, and on all images.
FOLDED = {"main": ("iou", "dice", "missed"), "controls": ("false_positive_rate",), "all": ("balanced",)}

#: The columns of out_of_fold.csv.
OUT_OF_FOLD = [
    *("half", "experiment", "fold", "target", "id", "class", "tp", "fp", "fn", "tn", "iou", "dice", "mae"),
]


def cross_validation(results: ExperimentResults, scored: list[Scored]) -> CrossValidation:
    """The scores of an experiment with several folds, for each target."""
    of_first = results.images[results.images["split"] == "Val"].drop_duplicates("id")
    sizes = of_first.groupby("fold").size()
    return CrossValidation(
        experiment=results.name,
        folds=results.folds,
        images=tuple(int(sizes[fold]) for fold in range(results.folds)),
        targets=tuple(
            FoldedTarget(half=one.half, target=one.target, scores=tuple(_scores(results, one)))
            for one in scored
            if results.name in one.names
        ),
    )


def _scores(results: ExperimentResults, scored: Scored) -> Iterator[FoldedScore]:
    for name, metrics in FOLDED.items():
        image_set = scored.main if name == "main" else name
        rows = results.rows(scored.target, image_set, "Val")
        if rows.empty:
            continue
        table = _table(rows, results.name)
        (row,) = score_rows_of(table, metrics)
        for metric in metrics:
            if score := row.scores.get(metric):
                yield FoldedScore(
                    image_set=image_set,
                    metric=metric,
                    images=score.images or row.images,
                    score=score,
                    folds=tuple(
                        _mean(_table(of_fold, results.name), results.name, metric)
                        for _, of_fold in rows.groupby("fold")
                    ),
                )


def _table(rows: pd.DataFrame, name: str) -> Table:
    return Table(rows.assign(predictor=name).sort_values(["seed", "id"]), (name,))


def _mean(table: Table, name: str, metric: str) -> float | None:
    """The mean over the images of one fold; None for shares of images, which few images say little about."""
    if metric == "balanced":
        return float(selection_values(table, name, "balanced").mean())
    return float(table.column(name, metric).mean()) if metric in ("iou", "dice") else None


def out_of_fold(results: ExperimentResults) -> pd.DataFrame:
    """One row per Train or Val image and target, with `OUT_OF_FOLD`."""
    rows = results.images[results.images["split"] == "Val"].sort_values(["target", "id"])
    return rows.assign(half=results.half, experiment=results.name)[OUT_OF_FOLD]
