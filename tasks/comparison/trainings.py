"""Records of the trainings: settings, curves, and symptoms of failed trainings."""

from typing import Any

from tasks.comparison.document import Curves, ExperimentRecord, Report2Scores, ScoreRow, TrainingRecord
from tasks.comparison.inputs import ExperimentResults
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
