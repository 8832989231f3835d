"""The report's X-rays with their masks, and how scores spread over images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tasks.common.raw import CLASSES, RawDataset
from tasks.reporting import charts as figures
from tasks.reporting.inputs import Experiment, Inputs
from tasks.reporting.words import formatted


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
        overlay = figures.prediction_overlay(self._truth(image_id, target), e.prediction_of(target, image_id))
        rows = e.first_seed(target)
        row = rows[rows["id"] == image_id].iloc[0]
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
    """The asked test images as each experiment predicts their first target."""
    target = inputs.targets[0]
    cases = []
    for number, (position, image_id) in enumerate(inputs.figure_ids.items(), start=1):
        shown = [e for e in inputs.with_target(target) if image_id in set(e.images["id"])]
        pictures = [gallery.xray(image_id), gallery.truth(image_id, target)]
        pictures += [gallery.prediction(e, image_id, target, e.name) for e in shown]
        cases.append(Case(f"Figure {number}: test image {position}", image_id, tuple(pictures)))
    return cases


def class_cases(inputs: Inputs, gallery: Gallery) -> list[Case]:
    """The first Test image of each class by file name, as `shown_of_both` predict lung and infection."""
    table = inputs.table[(inputs.table["half"] == inputs.half) & (inputs.table["split"] == "Test")]
    shown = shown_of_both(inputs)
    cases = []
    for image_class in CLASSES if shown else ():
        for image_id in sorted(table.loc[table["class"] == image_class, "id"])[:1]:
            pictures = [gallery.xray(image_id), *(gallery.truth(image_id, target) for target in BOTH)]
            pictures += [gallery.prediction(e, image_id, t, f"{e.name}: {t}") for e in shown for t in BOTH]
            cases.append(Case(image_class, image_id, tuple(pictures)))
    return cases


BOTH = ("lung", "infection")
REPORT_2 = "report2"  # the experiment at report 2's own settings


def shown_of_both(inputs: Inputs) -> list[Experiment]:
    """Of the experiments that predict lung and infection the one of report 2 and the best by infection."""
    both = [e for e in inputs.ranking("infection") if e.predicts_both]
    return [e for e in both if e.name == REPORT_2 or e is both[0] or len(both) < 3]


@dataclass(frozen=True)
class Spread:
    """How one experiment's scores of one target spread over the COVID-19 Test images."""

    experiment: str
    target: str
    chart: figures.Chart
    words: str
    cases: tuple[Case, ...]


LEADERS = 3


def spreads(inputs: Inputs, target: str, gallery: Gallery) -> list[Spread]:
    """Of the experiments of the highest IoU."""
    leaders = inputs.ranking(target)[:LEADERS]
    scores = {e.name: e.first_seed(target, "covid").dropna(subset=["iou"]) for e in leaders}
    tallest = max(max(figures.bin_counts(rows["iou"].to_numpy(dtype=float))) for rows in scores.values())
    return [_spread(e, target, scores[e.name], tallest, gallery) for e in leaders if len(scores[e.name])]


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
