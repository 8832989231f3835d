"""The report's tables of the experiments' settings and of published results; versions of the software."""

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

from tasks.common.raw import CLASSES
from tasks.comparison.document import Document, ExperimentRecord, PublishedScores, Section
from tasks.reporting.differences import postprocessing
from tasks.reporting.words import formatted, listed


def published_rows(section: Section) -> list[tuple[PublishedScores | None, tuple[str, ...]]]:
    """Published results followed by those of the chosen experiment; empty if nothing is published."""
    rows: list[tuple[PublishedScores | None, tuple[str, ...]]] = [
        (p, (p.source, p.measured_on, formatted(p.iou, p.decimals), formatted(p.dice, p.decimals)))
        for p in section.published
    ]
    words = {"covid": "COVID-19 Test images", "all": "Test images, controls included"}  # of COVID-QU-Ex
    for name, where in words.items() if rows and section.choice else ():
        if section.choice and (image_set := section.image_set(name)):
            chosen = image_set.row(section.choice.chosen)
            scores = (formatted(chosen.value("iou")), formatted(chosen.value("dice")))
            measured_on = f"{chosen.images:,} {where}, mean per image"
            rows.append((None, (f"{chosen.name} (here)", measured_on, *scores)))
    return rows


NETWORKS = {
    "unet": "U-Net",
    "residual_unet": "U-Net, residual encoder",
    "attention_unet": "Attention U-Net",
    "unet_plus_plus": "UNet++",
}
LOSSES = {
    "batch_bce_iou": "α · BCE + (1 − α) · (1 − soft IoU of the batch)",
    "batch_dice": "1 − soft Dice of the batch",
    "batch_dice_bce": "α · BCE + (1 − α) · (1 − soft Dice of the batch)",
    "bce": "BCE",
    "bce_iou": "α · BCE + (1 − α) · (1 − soft IoU)",
    "dice": "1 − soft Dice",
    "dice_bce": "α · BCE + (1 − α) · (1 − soft Dice)",
    "focal": "focal",
    "focal_tversky": "focal Tversky",
}
NO_BREAK = "\N{NO-BREAK SPACE}"
LOSS_OPTIONS = {"alpha": "α", "gamma": "γ"}
Setting = Callable[[ExperimentRecord], str]
SETTINGS: dict[str, Setting] = {
    "Network": lambda e: NETWORKS.get(e.plan["network"], e.plan["network"]) + _supervision(e.plan),
    "Parameters": lambda e: f"{e.first.parameters:,}",
    "Loss": lambda e: _loss(e.plan),
    "Started from": lambda e: start_words(e.plan),
    "Epochs": lambda e: _plain(e.plan["epochs"]),
    "Best epoch": lambda e: ", ".join(_plain(training.best_epoch or None) for training in e.trainings),
    "Targets": lambda e: listed(e.plan["targets"]),
    "Input": lambda e: _images(e.plan["images"]),
    "Trained on": lambda e: f"{_trained_on(e)}, {_classes(e.plan['train_classes'])}",
    "Validated on": lambda e: f"{e.first.val_images:,} {'of its fold' if e.folds > 1 else 'Val images'}",
    "Augmentation": lambda e: _augmentation(e.plan.get("augment")),
    "Averaged weights": lambda e: f"EMA {e.plan['ema']:g}" if e.plan.get("ema") else "–",
    "Prediction": lambda e: _prediction(e.prediction),
    "Image size": lambda e: f"{e.plan['image_size']} × {e.plan['image_size']}",
    "Width": lambda e: f"base width {e.plan['width']}, depth {e.plan['depth']}",
    "Batch size": lambda e: _plain(e.plan["batch_size"]),
    "Optimiser": lambda e: f"{e.plan['optimiser']}, learning rate {e.plan['learning_rate']:g}",
    "Schedule": lambda e: e.plan["schedule"].replace("_", " "),
    "Seeds": lambda e: ", ".join(str(training.seed) for training in e.trainings),
    "Precision": lambda e: e.first.precision,
    "Device": lambda e: listed(sorted({training.device for training in e.trainings})),
}
SHOWN_KEYS = {  # keys of a plan that the settings above show, or that are deliberately not shown
    *("name", "network", "deep_supervision", "loss", "loss_options", "epochs", "targets", "images"),
    *("train_classes", "half", "augment", "ema", "image_size", "width", "depth", "batch_size", "optimiser"),
    *("learning_rate", "schedule", "seed", "experiment", "precision", "start_from", "folds", "fold"),
    "threads",  # CPU threads: describe the machine, not the experiment
}
NUMERIC_COLUMNS = ("Parameters", "Epochs", "Best epoch", "Batch size", "Seeds")
ALWAYS_COLUMNS = ("Network", "Parameters", "Loss", "Epochs", "Best epoch")


def settings(experiments: Sequence[ExperimentRecord]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Two groups of settings: those in columns, with a cell per experiment, and the common ones.

    Columns are settings that differ and those in `ALWAYS_COLUMNS`. Keys of the plans that this module
    does not know are shown under their own names.
    """
    more = sorted({key for e in experiments for key in e.plan} - SHOWN_KEYS)
    columns = {label: [show(e) for e in experiments] for label, show in SETTINGS.items()}
    columns |= {
        key.replace("_", " ").capitalize(): [_plain(e.plan.get(key)) for e in experiments] for key in more
    }
    differing = {k: v for k, v in columns.items() if k in ALWAYS_COLUMNS or len(set(v)) > 1}
    common = {k: v[0] for k, v in columns.items() if k not in differing and v[0] != "–"}
    return differing, common


def versions(document: Document) -> list[str]:
    """The versions of the software that trained and scored, each once."""
    found = [training.versions for e in document.experiments for training in e.trainings]
    found += [e.versions for e in document.experiments]
    return sorted({f"{name} {version}" for of_one in found for name, version in of_one.items()})


def _trained_on(e: ExperimentRecord) -> str:
    images = f"{e.first.train_images:,}"
    return f"{images} images of the other {e.folds - 1} folds" if e.folds > 1 else f"{images} Train images"


def _classes(names: Sequence[str]) -> str:
    return "all three classes" if set(names) == set(CLASSES) else listed(names)


def start_words(plan: dict[str, Any]) -> str:
    """The weights from which a training started."""
    start = plan.get("start_from")
    return f"{PurePath(start['weights']).name} (SHA-256 {start['sha256'][:12]})" if start else "–"


def _supervision(plan: dict[str, Any]) -> str:
    return ", deep supervision" if plan.get("deep_supervision") else ""


def _images(source: str) -> str:
    kind, _, name = source.partition("/")
    return f"lungs predicted by {name}" if kind == "lungs" else "whole image"


def _loss(plan: dict[str, Any]) -> str:
    options = plan.get("loss_options") or {}
    words = [f"{LOSS_OPTIONS.get(key, key)}{NO_BREAK}{_plain(value)}" for key, value in options.items()]
    return ", ".join([LOSSES.get(plan["loss"], plan["loss"]), *words])


def _augmentation(strengths: dict[str, Any] | None) -> str:
    """The enabled augmentations with their strengths."""
    words = [
        key.replace("_", " ") if value is True else f"{key.replace('_', ' ')} {_plain(value)}"
        for key, value in (strengths or {}).items()
        if value
    ]
    return ", ".join(words) or "none"


def _prediction(prediction: dict[str, Any]) -> str:
    averaged = ["average over the image and its mirror image"] if prediction.get("flip_average") else []
    return "; ".join([*averaged, *postprocessing(prediction)]) or "threshold 0.5 only"


def _plain(value: Any) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(_plain, value))
        case dict():
            return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
        case float():
            return f"{value:g}"
    return str(value)
