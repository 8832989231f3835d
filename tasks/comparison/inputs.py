"""Outputs of earlier stages: plans, networks, histories, evaluations, baselines, audit, dataset.

No other module of this package reads files.
"""

import hashlib
import json
import math
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.common.raw import HALF_KINDS, IMAGE_SETS, RawDataset
from tasks.scoring.seeds import mean_metrics
from tasks.settings.schema import Params
from tasks.support.cli import InputError, without_secrets

Scores = dict[str, float]  # metric -> value
Results = dict[str, dict[str, Scores]]  # target -> image set -> metric -> value


@dataclass(frozen=True)
class ExperimentResults:
    """All outputs of earlier stages for one experiment."""

    name: str
    plan: dict[str, Any]
    prediction: dict[str, Any]  # settings that turn probabilities into masks
    networks: dict[int, dict[str, Any]]  # seed -> content of network.json
    history: pd.DataFrame  # one row per epoch and seed
    results: Results  # means over the seeds
    images: pd.DataFrame  # one row per Test image, target and seed
    steps: pd.DataFrame  # like `images`, for each post-processing step
    calibration: pd.DataFrame  # one row per probability bin, target, image set and seed
    thresholds: dict[int, dict[str, float]]  # seed -> target -> threshold
    predictions: Path  # zip of the first seed's masks

    @property
    def half(self) -> str:
        return str(self.plan["half"])

    @property
    def seeds(self) -> list[int]:
        return list(self.networks)

    @property
    def predicts_both(self) -> bool:
        return {"lung", "infection"} <= set(self.plan["targets"])

    def of_seed(self, seed: int) -> pd.DataFrame:
        """The history of one seed."""
        return self.history[self.history["seed"] == seed]

    def rows(self, target: str, image_set: str = "all") -> pd.DataFrame:
        """The rows of a target and an image set, one per image and seed."""
        of_target = self.images["target"] == target
        return self.images[of_target & self.images["class"].isin(IMAGE_SETS[image_set])]

    def first_seed(self, target: str, image_set: str = "all") -> pd.DataFrame:
        """The first seed's rows, by increasing IoU, ties by id."""
        rows = self.rows(target, image_set)
        return rows[rows["seed"] == self.seeds[0]].sort_values(["iou", "id"])

    def seed_means(self, target: str, image_set: str, metric: str) -> list[float]:
        """The mean score of each seed."""
        return [float(mean) for mean in self.rows(target, image_set).groupby("seed")[metric].mean()]

    def prediction_png(self, target: str, image_id: str) -> bytes:
        """The predicted mask as a PNG file.

        Raises:
            InputError: there is no prediction for this image.
        """
        with zipfile.ZipFile(self.predictions) as archive:
            try:
                return archive.read(f"{target}/{image_id}.png")
            except KeyError:
                raise InputError(f"{self.predictions}: no prediction of {target} for {image_id}") from None


@dataclass(frozen=True)
class Audited:
    """The audit's findings on the dataset."""

    counts: pd.DataFrame  # one row per half, split and class, totals included
    problems: pd.DataFrame
    pairs: pd.DataFrame
    params: dict[str, Any]
    figures: dict[str, int]

    @property
    def leaking(self) -> pd.DataFrame:
        """The pairs across splits, the most similar first."""
        return self.pairs[self.pairs["across"]]


@dataclass(frozen=True)
class Scored:
    """All scores for one target in one half."""

    half: str
    target: str
    experiments: tuple[ExperimentResults, ...]  # in the order of params.yaml
    trivial: dict[str, dict[str, Scores]]  # predictor -> image set -> scores
    trivial_images: pd.DataFrame  # one row per Test image and predictor
    _per_image: dict[tuple[str, str], pd.DataFrame] = field(default_factory=dict)  # cache

    @property
    def image_sets(self) -> list[str]:
        """The experiments' image sets; without experiments, those of the trivial predictors."""
        results = [e.results[self.target] for e in self.experiments] or list(self.trivial.values())
        return [name for name in IMAGE_SETS if any(name in of_one for of_one in results)]

    def ranking(self, image_set: str = "covid") -> list[ExperimentResults]:
        """The experiments by decreasing IoU; equal ones keep their order."""
        known = [e for e in self.experiments if image_set in e.results[self.target]]
        return sorted(known, key=lambda e: -comparable(self.scores(e, image_set).get("iou")))

    def scores(self, e: ExperimentResults, image_set: str) -> Scores:
        return e.results[self.target].get(image_set, {})

    def trivial_scores(self, image_set: str) -> dict[str, Scores]:
        """Scores on the image set, for each trivial predictor that has any."""
        return {name: sets[image_set] for name, sets in self.trivial.items() if sets.get(image_set)}

    def per_image(self, image_set: str, metric: str) -> pd.DataFrame:
        """One row per image; one column per experiment (mean over its seeds) and trivial predictor."""
        key = (image_set, metric)
        if key not in self._per_image:
            self._per_image[key] = self._collect(*key)
        return self._per_image[key]

    def _collect(self, image_set: str, metric: str) -> pd.DataFrame:
        columns = {
            e.name: e.rows(self.target, image_set).groupby("id")[metric].mean() for e in self.experiments
        }
        trivial = self.trivial_images
        trivial = trivial[trivial["class"].isin(IMAGE_SETS[image_set])]
        columns |= {str(name): rows.set_index("id")[metric] for name, rows in trivial.groupby("predictor")}
        return pd.DataFrame(columns).dropna().sort_index()


@dataclass(frozen=True)
class Inputs:
    experiments: tuple[ExperimentResults, ...]
    trivial: dict[str, dict[str, Results]]  # half -> predictor -> results
    trivial_images: dict[str, pd.DataFrame]  # half -> one row per Test image, target and predictor
    table: pd.DataFrame  # one row per packed image
    rejected: pd.DataFrame
    audit: Audited
    fingerprint: str
    raw: RawDataset
    source: str
    phantoms: bool

    def scored(self) -> list[Scored]:
        """Every half and target: targets with experiments first, and infection first among these."""
        halves = dict.fromkeys(e.half for e in self.experiments)
        return [scored for half in halves for scored in self._scored_in(half)]

    def _scored_in(self, half: str) -> Iterator[Scored]:
        experiments = [e for e in self.experiments if e.half == half]
        trivial, images = self.trivial[half], self.trivial_images[half]
        predicted = {target for e in experiments for target in e.results}
        others = {target for results in trivial.values() for target in results} - predicted
        for target in (*_infection_first(predicted), *_infection_first(others)):
            yield Scored(
                half,
                target,
                tuple(e for e in experiments if target in e.results),
                {name: results[target] for name, results in trivial.items() if target in results},
                images[images["target"] == target],
            )


def _infection_first(targets: set[str]) -> list[str]:
    return sorted(targets, key=lambda target: (not target.startswith("infection"), target))


def has_masks(half: str, target: str) -> bool:
    """Whether the dataset has masks for this target."""
    return target in HALF_KINDS[half]


def comparable(value: float | None) -> float:
    """The score as a sort key; an undefined score sorts below all others."""
    return -math.inf if value is None or math.isnan(value) else value


# Reading


def read_inputs(
    params: Params,
    *,
    plans: Path,
    trained: Path,
    evaluated: Path,
    baselines: Path,
    audit: Path,
    packed: Path,
    raw: Path,
) -> Inputs:
    """Read the inputs of the comparison.

    For each training, in the order of params.yaml: `plans/NAME.json`,
    `trained/NAME/{history.csv,network/network.json}` and
    `evaluated/NAME/{metrics.json,images.csv,steps.csv,calibration.csv,settings.json,predictions.zip}`.
    Also `baselines/HALF/{metrics.json,images.csv}`, `packed/{images.csv,rejected.csv}`, `raw` and the
    outputs of the stage audit.

    Raises:
        InputError: an experiment has no plan.
    """
    trainings: dict[str, dict[int, str]] = {name: {} for name in params.experiments}
    for training, plan in params.plans.items():
        trainings[plan.experiment][plan.seed] = training
    experiments = tuple(
        _experiment(name, of_seeds, plans, trained, evaluated) for name, of_seeds in trainings.items()
    )
    halves = dict.fromkeys(experiment.half for experiment in experiments)
    return Inputs(
        experiments=experiments,
        trivial={half: _json(baselines / half / "metrics.json") for half in halves},
        trivial_images={half: _images(baselines / half / "images.csv") for half in halves},
        table=pd.read_csv(packed / "images.csv", keep_default_na=False),
        rejected=pd.read_csv(packed / "rejected.csv", dtype=str, keep_default_na=False),
        audit=_audited(audit),
        fingerprint=hashlib.sha256((packed / "images.csv").read_bytes()).hexdigest(),
        raw=RawDataset(raw),
        source=without_secrets(params.data.source),
        phantoms=params.data.phantoms,
    )


def _experiment(
    name: str, trainings: dict[int, str], plans: Path, trained: Path, evaluated: Path
) -> ExperimentResults:
    """An experiment with the outputs of all its trainings, seed -> name, which differ only in the seed."""
    of_first = plans / f"{next(iter(trainings.values()))}.json"
    if not of_first.is_file():
        raise InputError(f"{of_first}: no such file; the stage plan writes it for {name} of params.yaml")
    folders = [evaluated / training for training in trainings.values()]
    settings = [_json(folder / "settings.json") for folder in folders]
    return ExperimentResults(
        name=name,
        plan=_json(of_first),
        prediction=settings[0]["prediction"],
        networks={
            seed: _json(trained / training / "network" / "network.json")
            for seed, training in trainings.items()
        },
        history=_together(pd.read_csv(trained / training / "history.csv") for training in trainings.values()),
        results=mean_metrics([_json(folder / "metrics.json") for folder in folders]),
        images=_together(_images(folder / "images.csv") for folder in folders),
        steps=_together(_scores(folder / "steps.csv") for folder in folders),
        calibration=_together(_scores(folder / "calibration.csv") for folder in folders),
        thresholds={seed: of_one["thresholds"] for seed, of_one in zip(trainings, settings, strict=True)},
        predictions=folders[0] / "predictions.zip",
    )


def _together(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True)


def _audited(folder: Path) -> Audited:
    counts, problems, pairs = (
        pd.read_csv(folder / f"{name}.csv") for name in ("counts", "problems", "pairs")
    )
    pairs = pairs.astype({"exact": bool, "across": bool})  # pandas cannot infer types from an empty table
    return Audited(counts, problems, pairs, **_json(folder / "audit.json"))


def _scores(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, na_values=["nan", ""])


def _images(path: Path) -> pd.DataFrame:
    """The rows of single images, with the column `marked`: 1 if any pixel is predicted, else 0."""
    table = _scores(path)
    return table.assign(marked=(table["tp"] + table["fp"] > 0).astype(float))


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
