"""The report's X-rays with their masks, and the distribution of scores over images."""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.comparison.document import (
    Document,
    Section,
    ShownImage,
    ShownPrediction,
    Spread,
    prediction_name,
    reference_name,
    spread_name,
    xray_name,
)
from tasks.reporting import charts as figures
from tasks.reporting.words import formatted, percentage


class Gallery:
    """Makes the page's pictures. Each X-ray is embedded once, however often it is shown."""

    def __init__(self, pictures: Path) -> None:
        """`pictures` is the zip archive of X-rays and masks that the stage compare wrote."""
        self._archive = zipfile.ZipFile(pictures)
        self.xrays: dict[str, figures.XRay] = {}

    def xray(self, image_id: str) -> figures.Picture:
        return self._picture(image_id, None, f"X-ray {image_id}", "X-ray")

    def reference(self, image_id: str, target: str) -> figures.Picture:
        reference = self._reference(image_id, target)
        note = "" if reference.any() else "nothing to mark"
        alt = f"{image_id} with its {target} reference mask{note and f': {note}'}"
        overlay = figures.reference_overlay(reference)
        return self._picture(image_id, overlay, alt, f"Reference: {target}", note)

    def prediction(self, image_id: str, p: ShownPrediction, caption: str) -> figures.Picture:
        mask = self._read(prediction_name(p.experiment, p.target, image_id), "1").astype(bool)
        reference = self._reference(image_id, p.target)
        scores = _scores_words(p, bool(reference.any()))
        overlay = figures.prediction_overlay(reference, mask)
        alt = f"{image_id}, {p.target} predicted by {p.experiment}: {scores}"
        return self._picture(image_id, overlay, alt, caption, scores)

    def spread(self, image_id: str, experiment: str, target: str) -> figures.Picture:
        """Where the networks of an ensemble disagree."""
        overlay = figures.spread_overlay(self._read(spread_name(experiment, target, image_id), "L"))
        alt = f"{image_id}, spread of the {target} probabilities of {experiment}"
        return self._picture(image_id, overlay, alt, "Spread of the networks")

    def _reference(self, image_id: str, target: str) -> figures.Mask:
        return self._read(reference_name(target, image_id), "L") > 127

    def _read(self, member: str, mode: str) -> "np.ndarray[Any, Any]":
        with Image.open(io.BytesIO(self._archive.read(member))) as picture:
            return np.asarray(picture.convert(mode))

    def _picture(
        self, image_id: str, overlay: str | None, alt: str, caption: str, note: str = ""
    ) -> figures.Picture:
        if image_id not in self.xrays:
            image = self._read(xray_name(image_id), "L")
            self.xrays[image_id] = figures.xray_picture(f"xray-{len(self.xrays)}", image)
        xray = self.xrays[image_id]
        return figures.Picture(xray.key, xray.width, xray.height, overlay, alt, caption, note)


def _scores_words(p: ShownPrediction, has_reference: bool) -> str:
    if has_reference:
        return f"IoU {formatted(p.iou)} · Dice {formatted(p.dice)}"
    return f"{percentage(p.marked)} of the image falsely marked" if p.marked else "nothing marked"


@dataclass(frozen=True)
class PictureRow:
    label: str
    image_id: str
    pictures: tuple[figures.Picture, ...]


def figure_cases(document: Document, gallery: Gallery) -> list[PictureRow]:
    """The Test images that `report.figures` selects, with the predictions of each experiment."""
    found = [section.figures for section in document.predicted if section.figures]
    return [
        _case(f"Figure {number}: test image {shown.position}", shown, gallery, "{experiment}")
        for number, shown in enumerate((shown for of in found for shown in of.shown), start=1)
    ]


def class_cases(shown: tuple[ShownImage, ...], gallery: Gallery) -> list[PictureRow]:
    """One image of each class, with lung and infection."""
    return [_case(image.image_id.split("/")[2], image, gallery, "{experiment}: {target}") for image in shown]


def _case(label: str, shown: ShownImage, gallery: Gallery, caption: str) -> PictureRow:
    """An X-ray, its reference masks and its predictions."""
    pictures = [gallery.xray(shown.image_id)]
    pictures += [gallery.reference(shown.image_id, target) for target in shown.references]
    pictures += [
        gallery.prediction(shown.image_id, p, caption.format(experiment=p.experiment, target=p.target))
        for p in shown.predictions
    ]
    return PictureRow(label, shown.image_id, tuple(pictures))


@dataclass(frozen=True)
class SpreadCard:
    """The distribution of one experiment's scores for one target over the COVID-19 Test images."""

    experiment: str
    chart: figures.Chart
    words: str
    cases: tuple[PictureRow, ...]


def spread_cards(section: Section, gallery: Gallery) -> list[SpreadCard]:
    tallest = max((max(spread.counts) for spread in section.spreads), default=0)
    return [_spread_card(spread, section.target, tallest, gallery) for spread in section.spreads]


def _spread_card(spread: Spread, target: str, tallest: int, gallery: Gallery) -> SpreadCard:
    title = f"{spread.experiment}, {target}"
    return SpreadCard(
        experiment=spread.experiment,
        chart=figures.histogram(title, spread.counts, median=spread.median, y_high=tallest),
        words=_spread_words(spread),
        cases=tuple(_case(shown.why.capitalize(), shown, gallery, "Prediction") for shown in spread.shown),
    )


def _spread_words(spread: Spread) -> str:
    half = f"Half of the images score between {spread.lower_quartile:.3f} and {spread.upper_quartile:.3f}"
    if not spread.share_below_half:
        return f"{half}; none scores below 0.5."
    zeros = {0: "none scores", 1: "1 image scores"}.get(spread.zeros, f"{spread.zeros} images score")
    return f"{half}; {percentage(spread.share_below_half)} score below 0.5; {zeros} 0."


@dataclass(frozen=True)
class WorstCard:
    """The images of one class on which the chosen experiment does worst."""

    label: str
    cases: tuple[PictureRow, ...]


WORST_WORDS = {"worst": "lowest IoU", "false alarm": "largest falsely marked area"}


def worst_cards(section: Section, gallery: Gallery) -> list[WorstCard]:
    return [
        WorstCard(
            f"{found.image_class}: {WORST_WORDS[found.shown[0].why]}",
            tuple(_case("", shown, gallery, "Prediction") for shown in found.shown),
        )
        for found in section.worst
    ]
