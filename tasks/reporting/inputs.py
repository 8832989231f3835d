"""What the stages before the report left, as its page and its sentences ask for it."""

import io
import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from tasks.common.raw import HALF_KINDS, IMAGE_SETS, RawDataset
from tasks.reporting import charts as figures
from tasks.reporting.words import listed
from tasks.support.cli import InputError
from tasks.support.symptoms import marking

Scores = dict[str, float]  # metric -> value
Results = dict[str, dict[str, Scores]]  # target -> image set -> metric -> value
PHANTOM_SCHEME = "phantom://"


@dataclass(frozen=True)
class Experiment:
    """All that earlier stages left of one experiment."""

    name: str
    plan: dict[str, Any]
    prediction: dict[str, Any]  # how masks are made of probabilities
    networks: dict[int, dict[str, Any]]  # seed -> what is known of its training
    history: pd.DataFrame  # a row an epoch and seed
    results: Results  # means over the seeds
    images: pd.DataFrame  # a row a Test image, target and seed
    steps: pd.DataFrame  # the same of each step of post-processing
    calibration: pd.DataFrame  # a row a bin of probability, target, image set and seed
    thresholds: dict[str, dict[str, float]]  # seed -> target -> threshold
    predictions: Path  # the first seed's

    @property
    def seeds(self) -> list[int]:
        return list(self.networks)

    @property
    def network(self) -> dict[str, Any]:
        """What is known of the first seed's training."""
        return self.networks[self.seeds[0]]

    @property
    def predicts_both(self) -> bool:
        return {"lung", "infection"} <= set(self.plan["targets"])

    def rows(self, target: str, image_set: str = "all") -> pd.DataFrame:
        """The rows of a target and an image set, a row an image and seed."""
        of_target = self.images["target"] == target
        return self.images[of_target & self.images["class"].isin(IMAGE_SETS[image_set])]

    def first_seed(self, target: str, image_set: str = "all") -> pd.DataFrame:
        """The first seed's rows, from the lowest IoU to the highest, ties by id."""
        rows = self.rows(target, image_set)
        return rows[rows["seed"] == self.seeds[0]].sort_values(["iou", "id"])

    def seed_means(self, target: str, image_set: str, metric: str) -> list[float]:
        """The mean score of each seed."""
        return [float(mean) for mean in self.rows(target, image_set).groupby("seed")[metric].mean()]

    def marking(self, target: str) -> str:
        """Whether a seed marks no or nearly every pixel of the Test images, in words; else ""."""
        counts = self.rows(target).groupby("seed")[["tp", "fp", "fn", "tn"]].sum()
        shares = (counts["tp"] + counts["fp"]) / counts.sum(axis=1)
        found = [words for share in shares if (words := marking(share))]
        which = "" if len(shares) == 1 else f" in {len(found)} of {len(shares)} seeds"
        return f"marks {listed(sorted(set(found)), 'or')} pixel{which}" if found else ""

    def prediction_of(self, target: str, image_id: str) -> figures.Mask:
        """The predicted mask (H, W)."""
        with zipfile.ZipFile(self.predictions) as archive:
            try:
                content = archive.read(f"{target}/{image_id}.png")
            except KeyError:
                raise InputError(f"{self.predictions}: no prediction of {target} for {image_id}") from None
        with Image.open(io.BytesIO(content)) as picture:
            return np.asarray(picture.convert("1"), dtype=bool)


@dataclass(frozen=True)
class Audited:
    """What the audit found in the dataset."""

    counts: pd.DataFrame  # a row a half, split and class, sums included
    problems: pd.DataFrame
    pairs: pd.DataFrame
    dropped: pd.DataFrame
    params: dict[str, Any]
    figures: dict[str, int]

    @property
    def leaking(self) -> pd.DataFrame:
        """The pairs across splits, the most alike first."""
        return self.pairs[self.pairs["across"]]


@dataclass(frozen=True)
class Inputs:
    experiments: tuple[Experiment, ...]
    trivial: dict[str, Results]  # predictor -> its results
    trivial_images: pd.DataFrame  # a row a Test image, target and predictor
    table: pd.DataFrame  # a row a packed image
    rejected: pd.DataFrame
    audit: Audited
    fingerprint: str
    raw: RawDataset
    figure_ids: dict[int, str]  # position among the COVID-19 Test images -> image id
    figures_rejected: int  # COVID-19 Test images set aside by preprocessing, which no position counts
    source: str
    _per_image: dict[tuple[str, str, str], pd.DataFrame] = field(default_factory=dict)  # as asked for so far

    @property
    def phantoms(self) -> bool:
        return self.source.startswith(PHANTOM_SCHEME)

    @property
    def half(self) -> str:
        return str(self.experiments[0].plan["half"])

    @property
    def targets(self) -> list[str]:
        """Every target of any experiment, infection first."""
        found = {target for experiment in self.experiments for target in experiment.results}
        return sorted(found, key=lambda target: (not target.startswith("infection"), target))

    @property
    def masks(self) -> list[str]:
        """The targets of which the dataset holds masks."""
        return [target for target in self.targets if target in HALF_KINDS[self.half]]

    def image_sets(self, target: str) -> list[str]:
        return [s for s in IMAGE_SETS if any(s in e.results[target] for e in self.with_target(target))]

    def with_target(self, target: str) -> list[Experiment]:
        return [experiment for experiment in self.experiments if target in experiment.results]

    def trivial_scores(self, target: str, image_set: str) -> dict[str, Scores]:
        """The trivial predictors that there are for this target, with their scores on the image set."""
        found = {name: results.get(target, {}).get(image_set) for name, results in self.trivial.items()}
        return {name: scores for name, scores in found.items() if scores}

    def ranking(self, target: str, image_set: str = "covid") -> list[Experiment]:
        """The experiments by falling IoU; equals keep their order."""
        return sorted(
            self.with_target(target),
            key=lambda e: -comparable(e.results[target].get(image_set, {}).get("iou")),
        )

    def per_image(self, target: str, image_set: str, metric: str) -> pd.DataFrame:
        """A row an image, a column an experiment and a trivial predictor: the mean over its seeds."""
        key = (target, image_set, metric)
        if key not in self._per_image:
            self._per_image[key] = self._collect(*key)
        return self._per_image[key]

    def _collect(self, target: str, image_set: str, metric: str) -> pd.DataFrame:
        columns = {
            e.name: e.rows(target, image_set).groupby("id")[metric].mean() for e in self.with_target(target)
        }
        trivial = self.trivial_images
        trivial = trivial[(trivial["target"] == target) & trivial["class"].isin(IMAGE_SETS[image_set])]
        columns |= {str(name): rows.set_index("id")[metric] for name, rows in trivial.groupby("predictor")}
        return pd.DataFrame(columns).dropna().sort_index()


def comparable(value: float | None) -> float:
    """A score that orders below every other where it is undefined."""
    return -math.inf if value is None or math.isnan(value) else value
