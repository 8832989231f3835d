"""What the stages before the report left, as its page and its sentences ask for it."""

import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from tasks import figures
from tasks.cli import InputError
from tasks.raw import RawDataset

Scores = dict[str, float]  # metric -> value
Results = dict[str, dict[str, Scores]]  # target -> image set -> metric -> value
PHANTOM_SCHEME = "phantom://"


@dataclass(frozen=True)
class Experiment:
    """All that earlier stages left of one experiment."""

    name: str
    plan: dict[str, Any]
    model: dict[str, Any]
    history: pd.DataFrame  # a row an epoch
    results: Results
    images: pd.DataFrame  # a row a Test image and target
    predictions: Path

    def covid_images(self, target: str) -> pd.DataFrame:
        """The COVID-19 Test images from the lowest IoU to the highest, ties by id."""
        rows = self.images[(self.images["target"] == target) & (self.images["class"] == "COVID-19")]
        return rows.sort_values(["iou", "id"])

    def prediction(self, target: str, image_id: str) -> figures.Mask:
        """The predicted mask (H, W)."""
        with zipfile.ZipFile(self.predictions) as archive:
            try:
                content = archive.read(f"{target}/{image_id}.png")
            except KeyError:
                raise InputError(f"{self.predictions}: no prediction of {target} for {image_id}") from None
        with Image.open(io.BytesIO(content)) as picture:
            return np.asarray(picture.convert("1"), dtype=bool)


@dataclass(frozen=True)
class Inputs:
    experiments: tuple[Experiment, ...]
    trivial: dict[str, Results]  # predictor -> its results
    table: pd.DataFrame  # a row a packed image
    rejected: pd.DataFrame
    fingerprint: str
    raw: RawDataset
    figure_ids: dict[int, str]  # position among the COVID-19 Test images -> image id
    figures_rejected: int  # COVID-19 Test images set aside by preprocessing, which no position counts
    source: str

    @property
    def phantoms(self) -> bool:
        return self.source.startswith(PHANTOM_SCHEME)

    @property
    def targets(self) -> list[str]:
        """Every target of any experiment, infection first."""
        found = {target for experiment in self.experiments for target in experiment.results}
        return sorted(found, key=lambda target: (target != "infection", target))

    def with_target(self, target: str) -> list[Experiment]:
        return [experiment for experiment in self.experiments if target in experiment.results]

    def trivial_scores(self, target: str, image_set: str) -> dict[str, Scores]:
        """The trivial predictors that there are for this target, with their scores on the image set."""
        found = {name: results.get(target, {}).get(image_set) for name, results in self.trivial.items()}
        return {name: scores for name, scores in found.items() if scores}

    def ranking(self, target: str) -> list[Experiment]:
        """The experiments by falling IoU on the COVID-19 Test images; equals keep their order."""
        return sorted(self.with_target(target), key=lambda e: -comparable(e.results[target]["covid"]["iou"]))


def comparable(value: float | None) -> float:
    """A score that orders below every other where it is undefined."""
    return -math.inf if value is None or math.isnan(value) else value
