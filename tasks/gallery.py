"""The report's training curves, its X-rays with their masks, and how scores spread over images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tasks import figures
from tasks.raw import RawDataset
from tasks.results import Experiment, Inputs
from tasks.wording import formatted


def loss_charts(inputs: Inputs) -> list[tuple[Experiment, figures.Chart, figures.Chart]]:
    """Per experiment its losses and its validation Dice; epochs shared by all, losses by equal formulas."""
    last = max(int(e.history["epoch"].max()) for e in inputs.experiments)
    highest: dict[str, float] = {}
    for e in inputs.experiments:
        losses = e.history[["train_loss", "val_loss"]].to_numpy(dtype=float)
        finite = losses[np.isfinite(losses)]
        key = _formula(e)
        highest[key] = max(highest.get(key, 0.0), float(finite.max()) if finite.size else 0.0)
    return [(e, *_charts_of(e, last, highest[_formula(e)])) for e in inputs.experiments]


def _charts_of(e: Experiment, last: int, highest: float) -> tuple[figures.Chart, figures.Chart]:
    epochs = e.history["epoch"].astype(int).tolist()
    best = int(e.model["best_epoch"])
    losses = {"train": e.history["train_loss"].tolist(), "validation": e.history["val_loss"].tolist()}
    dice = {"validation": e.history["val_dice"].tolist()}
    return (
        figures.curves("Loss", epochs, losses, last_epoch=last, y_high=highest, best_epoch=best),
        figures.curves("Validation Dice", epochs, dice, last_epoch=last, y_high=1.0, best_epoch=best),
    )


def _formula(e: Experiment) -> str:
    return f"{e.plan['loss']} {e.plan.get('alpha')}"


class Gallery:
    """Makes the page's pictures; each X-ray is embedded once, however often it is shown."""

    def __init__(self, raw: RawDataset) -> None:
        self._raw = raw
        self.xrays: dict[str, figures.XRay] = {}

    def xray(self, image_id: str) -> figures.Picture:
        return self._picture(image_id, None, f"X-ray {image_id}", "X-ray")

    def truth(self, image_id: str, target: str) -> figures.Picture:
        overlay = figures.truth_overlay(self._truth(image_id, target))
        return self._picture(image_id, overlay, f"{image_id} with its true {target} mask", f"Truth: {target}")

    def prediction(self, e: Experiment, image_id: str, target: str, caption: str) -> figures.Picture:
        overlay = figures.prediction_overlay(self._truth(image_id, target), e.prediction(target, image_id))
        row = e.images[(e.images["target"] == target) & (e.images["id"] == image_id)].iloc[0]
        scores = f"IoU {formatted(row['iou'])} · Dice {formatted(row['dice'])}"
        return self._picture(
            image_id, overlay, f"{image_id}, {target} by {e.name}: {scores}", caption, scores
        )

    def _truth(self, image_id: str, target: str) -> figures.Mask:
        kind: Any = target  # a target is named like the kind of its mask
        return self._raw.read(image_id, kind) > 127

    def _picture(
        self, image_id: str, overlay: str | None, alt: str, caption: str, note: str = ""
    ) -> figures.Picture:
        if image_id not in self.xrays:
            image = self._raw.read(image_id, "image")
            self.xrays[image_id] = figures.xray_picture(f"xray-{len(self.xrays)}", image)
        xray = self.xrays[image_id]
        return figures.Picture(xray.key, xray.width, xray.height, overlay, alt, caption, note)


@dataclass(frozen=True)
class Case:
    label: str
    image_id: str
    pictures: tuple[figures.Picture, ...]


def figure_cases(inputs: Inputs, gallery: Gallery) -> list[Case]:
    """The asked test images as each experiment predicts them, a case for every target."""
    cases = []
    for number, (position, image_id) in enumerate(inputs.figure_ids.items(), start=1):
        for target in inputs.targets:
            shown = [e for e in inputs.with_target(target) if image_id in set(e.images["id"])]
            pictures = [gallery.xray(image_id), gallery.truth(image_id, target)]
            pictures += [gallery.prediction(e, image_id, target, e.name) for e in shown]
            which = f", {target}" if len(inputs.targets) > 1 else ""
            cases.append(Case(f"Figure {number}: test image {position}{which}", image_id, tuple(pictures)))
    return cases


@dataclass(frozen=True)
class Spread:
    """How one experiment's scores of one target spread over the COVID-19 Test images."""

    experiment: str
    target: str
    chart: figures.Chart
    words: str
    cases: tuple[Case, ...]


def spreads(inputs: Inputs, target: str, gallery: Gallery) -> list[Spread]:
    scores = {e.name: e.covid_images(target).dropna(subset=["iou"]) for e in inputs.with_target(target)}
    tallest = max(max(figures.bin_counts(rows["iou"].to_numpy(dtype=float))) for rows in scores.values())
    return [
        _spread(e, target, scores[e.name], tallest, gallery)
        for e in inputs.with_target(target)
        if len(scores[e.name])
    ]


def _spread(e: Experiment, target: str, rows: pd.DataFrame, tallest: int, gallery: Gallery) -> Spread:
    iou = rows["iou"].to_numpy(dtype=float)
    low, high = np.quantile(iou, [0.25, 0.75])
    ids = rows["id"].tolist()
    picks = {"Best": ids[-1], "Median": ids[(len(ids) - 1) // 2], "Worst": ids[0]}
    cases = tuple(
        Case(
            label,
            image_id,
            (
                gallery.xray(image_id),
                gallery.truth(image_id, target),
                gallery.prediction(e, image_id, target, "Prediction"),
            ),
        )
        for label, image_id in picks.items()
    )
    return Spread(
        experiment=e.name,
        target=target,
        chart=figures.histogram(f"{e.name}, {target}", iou, y_high=tallest),
        words=f"Half of the images score between {low:.3f} and {high:.3f}; "
        f"{(iou < 0.5).mean():.0%} score below 0.5; {int((iou == 0).sum())} score 0.",
        cases=cases,
    )
