"""The report's tables, tiles and bars: cells of text, as the template draws them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tasks.findings import HIGHER_IS_BETTER, METRIC_NAMES, PRINTED_IOU, PRINTED_SCORES, best_trivial
from tasks.raw import CLASSES, SPLITS
from tasks.results import Experiment, Inputs, Scores, comparable
from tasks.wording import IMAGE_SET_WORDS, formatted, listed, predictor_words

COLUMNS = {  # of the tables of scores: heading, decimals
    "iou": ("IoU", 3),
    "dice": ("Dice", 3),
    "iou_pooled": ("IoU pooled", 3),
    "dice_pooled": ("Dice pooled", 3),
    "mae": ("MAE", 4),
    "mae_255": ("MAE 0–255", 2),
}


@dataclass(frozen=True)
class Row:
    name: str
    kind: str  # ours, trivial or printed
    cells: tuple[str, ...]
    best: tuple[bool, ...] = ()


def score_rows(inputs: Inputs, target: str, image_set: str) -> list[Row]:
    """The experiments, the trivial predictors and, on the COVID-19 images, what report 1 printed."""
    ours = {e.name: e.results[target].get(image_set, {}) for e in inputs.with_target(target)}
    trivial = {predictor_words(n): scores for n, scores in inputs.trivial_scores(target, image_set).items()}
    rows = [Row(n, "ours", _cells(s), _best_cells(s, ours.values())) for n, s in ours.items()]
    rows += [Row(name, "trivial", _cells(scores)) for name, scores in trivial.items()]
    if target == "infection" and image_set == "covid":
        for name, printed in PRINTED_SCORES.items():
            cells = tuple(formatted(printed.get(metric), 3) for metric in COLUMNS)  # as many as printed
            rows.append(Row(name, "printed", cells))
    return rows


def _cells(scores: Mapping[str, float | None]) -> tuple[str, ...]:
    return tuple(formatted(scores.get(metric), decimals) for metric, (_, decimals) in COLUMNS.items())


def _best_cells(scores: Scores, rivals: Iterable[Scores]) -> tuple[bool, ...]:
    """Which cells hold the best value of their column, as printed; none where there is no rival."""
    rows = [_cells(rival) for rival in rivals]
    marks = []
    for index, (metric, own) in enumerate(zip(COLUMNS, _cells(scores), strict=True)):
        column = [float(row[index].replace(",", "")) for row in rows if row[index] != "–"]
        pick = min if metric.startswith("mae") else max
        marks.append(len(rows) > 1 and own != "–" and float(own.replace(",", "")) == pick(column))
    return tuple(marks)


@dataclass(frozen=True)
class Tile:
    label: str
    value: str
    trivial: str
    share: float  # percent, for the bar
    trivial_share: float


def score_tiles(inputs: Inputs, target: str) -> list[Tile]:
    own = inputs.ranking(target)[0].results[target]["covid"]
    trivial = inputs.trivial_scores(target, "covid")
    tiles = []
    for metric, higher in HIGHER_IS_BETTER.items():
        name, value = best_trivial(trivial, metric) if trivial else ("none", math.nan)
        label = METRIC_NAMES[metric] + ("" if higher else " (lower is better)")
        words = f"{name} {formatted(value)}"
        tiles.append(Tile(label, formatted(own[metric]), words, _percent(own[metric]), _percent(value)))
    return tiles


@dataclass(frozen=True)
class IouBar:
    name: str
    kind: str
    share: float  # percent of IoU 1
    label: str


def iou_bars(inputs: Inputs, target: str) -> list[IouBar]:
    """Everything that has an IoU on the COVID-19 Test images, the best first."""
    entries = [(e.name, "ours", e.results[target]["covid"]["iou"]) for e in inputs.with_target(target)]
    entries += [
        (predictor_words(name), "trivial", scores["iou"])
        for name, scores in inputs.trivial_scores(target, "covid").items()
    ]
    if target == "infection" and not inputs.phantoms:
        entries.append(("report 1, both losses", "printed", PRINTED_IOU))
    entries.sort(key=lambda entry: -comparable(entry[2]))
    return [IouBar(name, kind, _percent(iou), formatted(iou)) for name, kind, iou in entries]


def _percent(share: float) -> float:
    return round(min(max(comparable(share), 0.0), 1.0) * 100, 1)


@dataclass(frozen=True)
class Published:
    source: str
    doi: str | None
    target: str
    measured_on: str
    iou: float
    dice: float | None


TAHIR, TAHIR_DOI = "Tahir et al. 2021", "10.1016/j.compbiomed.2021.105002"
MEDSEGBENCH = "MedSegBench, best of five encoders"
UBENCH, UBENCH_SET = "U-Bench, 100 networks, 256×256, 300 epochs", "466 COVID-19 Val images, 90th percentile"
PUBLISHED = (
    Published(MEDSEGBENCH, None, "infection", "583 COVID-19 Test images, mean per image", 0.647, 0.756),
    Published(UBENCH, None, "infection", UBENCH_SET, 0.697, None),
    Published(TAHIR, TAHIR_DOI, "infection", "infection, control images counted", 0.8305, 0.8821),
    Published(TAHIR, TAHIR_DOI, "lung", "lung", 0.9611, 0.9799),
)


def published_rows(inputs: Inputs, target: str) -> list[tuple[Published | None, tuple[str, ...]]]:
    """The field's figures and, under them, our best experiment's; none for phantoms."""
    if inputs.phantoms:
        return []
    rows: list[tuple[Published | None, tuple[str, ...]]] = [
        (p, (p.source, p.measured_on, formatted(p.iou), formatted(p.dice)))
        for p in PUBLISHED
        if p.target == target
    ]
    best = inputs.ranking(target)[0]
    words = {"covid": "COVID-19 Test images", "all": "Test images, control images counted"}
    for image_set in IMAGE_SET_WORDS:
        scores = best.results[target].get(image_set)
        if scores:
            where = f"{scores['images']:,.0f} {words[image_set]}, mean per image"
            rows.append(
                (None, (f"{best.name} (here)", where, formatted(scores["iou"]), formatted(scores["dice"])))
            )
    return rows


NETWORKS = {"unet": "U-Net", "residual_unet": "U-Net, residual encoder"}
LOSSES = {"bce": "BCE", "bce_iou": "α · BCE + (1 − α) · (1 − soft IoU)"}
Setting = Callable[[Experiment], str]
SETTINGS: dict[str, Setting] = {
    "Network": lambda e: NETWORKS.get(e.plan["network"], e.plan["network"]),
    "Parameters": lambda e: f"{e.model['parameters']:,}",
    "Loss": lambda e: LOSSES.get(e.plan["loss"], e.plan["loss"]),
    "α": lambda e: _plain(e.plan.get("alpha")),
    "Epochs": lambda e: _plain(e.plan["epochs"]),
    "Best epoch": lambda e: _plain(e.model["best_epoch"]),
    "Val Dice": lambda e: formatted(e.model["val_dice"]),
    "Targets": lambda e: listed(e.plan["targets"]),
    "Trained on": lambda e: f"{e.model['train_images']:,} Train images, {listed(e.plan['train_classes'])}",
    "Validated on": lambda e: f"{e.model['val_images']:,} Val images",
    "Image size": lambda e: f"{e.plan['image_size']} × {e.plan['image_size']}",
    "Width": lambda e: f"{e.plan['width']} channels, {e.plan['depth']} levels down",
    "Batch size": lambda e: _plain(e.plan["batch_size"]),
    "Optimiser": lambda e: f"{e.plan['optimiser']}, learning rate {e.plan['learning_rate']:g}",
    "Schedule": lambda e: e.plan["schedule"].replace("_", " "),
    "Left-right flips": lambda e: _plain(e.plan["flip"]),
    "Seed": lambda e: _plain(e.plan["seed"]),
    "Precision": lambda e: e.model["precision"],
    "PyTorch": lambda e: e.model["torch"],
}
SHOWN_KEYS = {  # of a plan, by the settings above or on purpose nowhere
    *("name", "network", "loss", "alpha", "epochs", "targets", "train_classes", "half", "image_size"),
    *("width", "depth", "batch_size", "optimiser", "learning_rate", "schedule", "flip", "seed", "precision"),
    "threads",  # of the CPU: where it ran, not what was trained
}
NUMERIC_COLUMNS = ("Parameters", "α", "Epochs", "Best epoch", "Val Dice", "Batch size", "Seed")
ALWAYS_COLUMNS = ("Network", "Parameters", "Loss", "Epochs", "Best epoch", "Val Dice")


def settings(experiments: Sequence[Experiment]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Settings that differ (or matter most), a column each with a cell an experiment; and the common ones.

    A key of the plans that this module does not know is shown under its own name.
    """
    more = sorted({key for e in experiments for key in e.plan} - SHOWN_KEYS)
    columns = {label: [show(e) for e in experiments] for label, show in SETTINGS.items()}
    columns |= {
        key.replace("_", " ").capitalize(): [_plain(e.plan.get(key)) for e in experiments] for key in more
    }
    differing = {k: v for k, v in columns.items() if k in ALWAYS_COLUMNS or len(set(v)) > 1}
    common = {k: v[0] for k, v in columns.items() if k not in differing and v[0] != "–"}
    return differing, common


def _plain(value: Any) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(_plain, value))
        case float():
            return f"{value:g}"
    return str(value)


def data_rows(table: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """Images per half and class (a row each) and split (a column each), with sums."""
    counts = table.groupby(["half", "class", "split"]).size()
    halves = sorted(set(table["half"]))
    rows = []
    for half in halves:
        for image_class in CLASSES:
            cells = [int(counts.get((half, image_class, split), 0)) for split in SPLITS]
            label = image_class if len(halves) == 1 else f"{image_class}, {half} half"
            rows.append((label, _with_sum(cells)))
    totals = [int((table["split"] == split).sum()) for split in SPLITS]
    return [*rows, ("All", _with_sum(totals))]


def _with_sum(cells: list[int]) -> list[str]:
    return [f"{count:,}" for count in [*cells, sum(cells)]]


def leaks(table: pd.DataFrame) -> list[str]:
    """The Test images whose content also stands in another split."""
    elsewhere = set(table.loc[table["split"] != "Test", "sha256"])
    return sorted(table.loc[(table["split"] == "Test") & table["sha256"].isin(elsewhere), "id"])
