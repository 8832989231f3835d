"""Outputs of earlier stages: plans, networks, histories, evaluations, baselines, audit, dataset.

No other module of this package reads files.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.common.raw import CLASSES, GROUPS, IMAGE_SETS, RawDataset
from tasks.comparison.document import OTHERS, ImageGroups, main_image_set
from tasks.settings.params import Params
from tasks.settings.schema import EXTERNAL
from tasks.settings.stages import ENSEMBLES
from tasks.support.cli import InputError, without_secrets

Values = NDArray[np.float64]


@dataclass(frozen=True)
class ExperimentResults:
    """All outputs of earlier stages for one experiment."""

    name: str
    plan: dict[str, Any]
    prediction: dict[str, Any]  # settings that turn probabilities into masks
    networks: dict[int, dict[str, Any]]  # seed -> content of network.json
    history: pd.DataFrame  # one row per epoch and seed
    images: pd.DataFrame  # one row per split (Val, Test), image, target and seed; of folds, see `_folded`
    steps: pd.DataFrame  # like `images`, for each post-processing step
    calibration: pd.DataFrame  # one row per probability bin, target, image set and seed, for the Test split
    thresholds: dict[int, dict[str, float]]  # seed -> target -> threshold
    presence: dict[int, dict[str, float]]  # seed -> target -> least mean probability of a marked image
    versions: dict[str, str]  # of the software that scored it
    predictions: Path  # zip of the first seed's masks

    @property
    def half(self) -> str:
        return str(self.plan["half"])

    @property
    def seeds(self) -> list[int]:
        return list(self.networks)

    @property
    def folds(self) -> int:
        """The number of folds of a cross-validation; 1 without one."""
        return int(self.plan.get("folds", 1))

    @property
    def predicts_both(self) -> bool:
        return {"lung", "infection"} <= set(self.plan["targets"])

    def of_seed(self, seed: int) -> pd.DataFrame:
        """The history of one seed."""
        return self.history[self.history["seed"] == seed]

    def rows(self, target: str, image_set: str = "all", split: str = "Test") -> pd.DataFrame:
        """The rows of a target, split and image set, one per image and seed. Not to be changed."""
        key = (target, image_set, split)
        if key not in self._rows:
            self._rows[key] = _select(self.images, target, image_set, split)
        return self._rows[key]

    def first_seed(self, target: str, image_set: str = "all") -> pd.DataFrame:
        """The first seed's rows on Test images, by increasing IoU, ties by id. Not to be changed."""
        key = (target, image_set)
        if key not in self._first:
            rows = self.rows(target, image_set)
            self._first[key] = rows[rows["seed"] == self.seeds[0]].sort_values(["iou", "id"])
        return self._first[key]

    @cached_property
    def _rows(self) -> dict[tuple[str, str, str], pd.DataFrame]:
        return {}

    @cached_property
    def _first(self) -> dict[tuple[str, str], pd.DataFrame]:
        return {}

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
    """All rows for one target in one half."""

    half: str
    target: str
    experiments: tuple[ExperimentResults, ...]  # in the order of the groups
    trivial: pd.DataFrame  # one row per image and trivial predictor
    trivial_calibration: pd.DataFrame
    _tables: dict[tuple[str, str], "Table"] = field(default_factory=dict)  # cache

    @property
    def names(self) -> list[str]:
        return [e.name for e in self.experiments]

    @property
    def predictors(self) -> list[str]:
        """The trivial predictors."""
        return [str(name) for name in self.trivial["predictor"].unique()]

    def image_sets(self, split: str = "Test") -> list[str]:
        """The sets that have images in the split. Of equal sets, only the first is kept."""
        classes = set(self.trivial.loc[self.trivial["split"] == split, "class"])
        found = {name: classes & set(of_set) for name, of_set in IMAGE_SETS.items()}
        first = {frozenset(of_set): name for name, of_set in reversed(found.items()) if of_set}
        return [name for name, of_set in found.items() if of_set and first[frozenset(of_set)] == name]

    @property
    def main(self) -> str:
        """The set of Test images on which scores are mostly reported."""
        return main_image_set(self.image_sets())

    def table(self, split: str, image_set: str) -> "Table":
        """The rows of all predictors on the same images."""
        key = (split, image_set)
        if key not in self._tables:
            rows = self._collect(split) if image_set == "all" else self.table(split, "all").rows
            self._tables[key] = Table(rows[rows["class"].isin(IMAGE_SETS[image_set])], tuple(self.names))
        return self._tables[key]

    def _collect(self, split: str) -> pd.DataFrame:
        ours = [e.rows(self.target, split=split).assign(predictor=e.name) for e in self.experiments]
        trivial = self.trivial[self.trivial["split"] == split].assign(seed=0)
        # Trivial predictors are scored on no Train image, and cross-validated experiments on all of them.
        known = set(trivial["id"])
        if ours and not set.intersection(*(set(rows["id"]) for rows in ours)) <= known:
            trivial = trivial[:0]
        rows: pd.DataFrame = pd.concat([*ours, trivial], ignore_index=True).sort_values(["seed", "id"])
        # Networks leave out the Val images that the audit drops; trivial predictors are scored on all. Only
        # cross-validated experiments have scores on Train images.
        predictors = rows.groupby("id")["predictor"].nunique()
        shared = predictors.index[predictors == rows["predictor"].nunique()]
        return rows[rows["id"].isin(shared)]


@dataclass(frozen=True)
class Table:
    """Rows of all predictors on one split and image set, sorted by seed and id."""

    rows: pd.DataFrame
    experiments: tuple[str, ...]
    dataset: str = ""
    """The external dataset to which the images belong, if any."""

    def __len__(self) -> int:
        return len(self._images)

    @cached_property
    def _by_predictor(self) -> dict[str, pd.DataFrame]:
        return {str(name): rows for name, rows in self.rows.groupby("predictor", sort=False)}

    @cached_property
    def _images(self) -> pd.DataFrame:
        """One row per image, with what is the same for all predictors."""
        first = next(iter(self._by_predictor.values()), self.rows)
        images: pd.DataFrame = first[first["seed"] == first["seed"].min()]
        return images

    @cached_property
    def ids(self) -> NDArray[np.object_]:
        return self._images["id"].to_numpy()

    @cached_property
    def strata(self) -> NDArray[np.intp]:
        """The class of each image, as a number."""
        return np.array([CLASSES.index(name) for name in self._images["class"]], dtype=np.intp)

    @cached_property
    def nonempty(self) -> NDArray[np.bool_]:
        """Which images have a non-empty reference mask."""
        return (self._images["tp"] + self._images["fn"] > 0).to_numpy()

    @cached_property
    def reference_area(self) -> Values:
        """The reference mask's share of each image."""
        counts = self._images[["tp", "fp", "fn", "tn"]]
        return ((counts["tp"] + counts["fn"]) / counts.sum(axis=1)).to_numpy(dtype=float)

    @cached_property
    def names(self) -> list[str]:
        """The experiments in the order of the groups, then the trivial predictors."""
        found = [name for name in self.experiments if name in self._by_predictor]
        return found + [name for name in self._by_predictor if name not in found]

    def column(self, name: str, column: str) -> Values:
        """A column's values for one predictor, (seeds, images). Not to be changed."""
        if (name, column) not in self._columns:
            values = self._by_predictor[name][column].to_numpy(dtype=float)
            self._columns[name, column] = values.reshape(-1, len(self))
        return self._columns[name, column]

    @cached_property
    def _columns(self) -> dict[tuple[str, str], Values]:
        return {}

    def only(self, images: NDArray[np.intp]) -> "Table":
        """The rows of some of the images, by their positions."""
        return replace(self, rows=self.rows[self.rows["id"].isin(self.ids[images])])


@dataclass(frozen=True)
class ExternalResults:
    """The outputs of earlier stages for one external dataset."""

    name: str
    source: str
    images: int
    unusable: int
    overlap: pd.DataFrame  # one row per usable image that is also in the dataset
    rows: pd.DataFrame  # one row per experiment (the column predictor), seed, target and other usable image
    experiments: tuple[str, ...]  # in the order of the groups
    ensembles: pd.DataFrame | None  # the same of ensembles, all with seed 0; None if there are none

    def table(self, target: str) -> Table:
        """The rows of a target."""
        return Table(self.rows[self.rows["target"] == target], self.experiments, self.name)

    def ensemble_table(self, target: str) -> Table | None:
        """The rows of ensembles, of a target; None if no ensemble predicts it."""
        if self.ensembles is None:
            return None
        rows = self.ensembles[self.ensembles["target"] == target]
        return Table(rows, (), self.name) if len(rows) else None


@dataclass(frozen=True)
class EnsembleResults:
    """The outputs of earlier stages for the ensemble of an experiment's networks."""

    experiment: ExperimentResults
    images: pd.DataFrame  # one row per split, image and target, with the networks' disagreement
    thresholds: dict[str, float]
    presence: dict[str, float]
    folder: Path

    def rows(self, target: str, image_set: str = "all", split: str = "Test") -> pd.DataFrame:
        """The rows of a target, split and image set, one per image."""
        return _select(self.images, target, image_set, split)

    def prediction_png(self, target: str, image_id: str) -> bytes:
        """The predicted mask as a PNG file."""
        return self._read("predictions.zip", f"{target}/{image_id}.png")

    def spread_png(self, target: str, image_id: str) -> bytes:
        """The standard deviation of the networks' probabilities as a PNG file; white is 0.5."""
        return self._read("spread.zip", f"{target}/{image_id}.png")

    def with_spread(self, target: str) -> set[str]:
        """The images of which there is a picture of the spread."""
        with zipfile.ZipFile(self.folder / "spread.zip") as archive:
            names = [Path(name) for name in archive.namelist()]
        return {
            name.relative_to(target).with_suffix("").as_posix() for name in names if name.parts[0] == target
        }

    def _read(self, file: str, name: str) -> bytes:
        with zipfile.ZipFile(self.folder / file) as archive:
            return archive.read(name)


@dataclass(frozen=True)
class Inputs:
    experiments: tuple[ExperimentResults, ...]
    groups: dict[str, tuple[str, ...]]  # title -> experiments
    trivial_images: dict[str, pd.DataFrame]  # half -> one row per split, image, target and predictor
    trivial_calibration: dict[str, pd.DataFrame]  # half -> one row per bin, target, image set and predictor
    table: pd.DataFrame  # one row per packed image
    rejected: pd.DataFrame
    audit: Audited
    fingerprint: str
    plans: str  # SHA-256 of all plans
    raw: RawDataset
    source: str
    phantoms: bool
    published: bool  # whether counts and scores of these images are published
    image_groups: ImageGroups | None
    external: tuple[ExternalResults, ...]
    ensembles: tuple[EnsembleResults, ...]

    def scored(self) -> list[Scored]:
        """Every half and target: targets with experiments first, and infection first among these."""
        halves = dict.fromkeys(e.half for e in self.experiments)
        return [scored for half in halves for scored in self._scored_in(half)]

    def _scored_in(self, half: str) -> Iterator[Scored]:
        experiments = [e for e in self.experiments if e.half == half]
        images, calibration = self.trivial_images[half], self.trivial_calibration[half]
        predicted = {target for e in experiments for target in e.plan["targets"]}
        others = set(images["target"]) - predicted
        for target in (*_infection_first(predicted), *_infection_first(others)):
            yield Scored(
                half,
                target,
                tuple(e for e in experiments if target in e.plan["targets"]),
                images[images["target"] == target],
                calibration[calibration["target"] == target],
            )


def _infection_first(targets: set[str]) -> list[str]:
    return sorted(targets, key=lambda target: (target != "infection", target))


def _select(images: pd.DataFrame, target: str, image_set: str, split: str) -> pd.DataFrame:
    wanted = (images["target"] == target) & (images["split"] == split)
    return images[wanted & images["class"].isin(IMAGE_SETS[image_set])]


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

    For each training: `plans/NAME.json`, `trained/NAME/{history.csv,network/network.json}` and
    `evaluated/NAME/{images.csv,steps.csv,calibration.csv,settings.json,predictions.zip}`. For each external
    dataset: `evaluated/external/DATASET/{audit/counts.json,audit/overlap.csv,NAME/images.csv}`. For each
    ensemble: `evaluated/ensembles/EXPERIMENT/{images.csv,settings.json,predictions.zip,spread.zip}`. Also
    `baselines/HALF/{images.csv,calibration.csv}`, `packed/{images.csv,rejected.csv}`, `raw` and the outputs
    of the stage audit.

    Raises:
        InputError: an experiment has no plan.
    """
    trainings: dict[str, dict[int, str]] = {name: {} for name in params.experiments}
    for training, plan in params.plans.items():
        trainings[plan.experiment][plan.seed] = training
    groups = grouped(params)
    experiments = tuple(
        _experiment(name, trainings[name], plans, trained, evaluated)
        for of_group in groups.values()
        for name in of_group
    )
    halves = dict.fromkeys(experiment.half for experiment in experiments)
    return Inputs(
        experiments=experiments,
        groups=groups,
        trivial_images={half: _scores(baselines / half / "images.csv") for half in halves},
        trivial_calibration={half: _scores(baselines / half / "calibration.csv") for half in halves},
        table=pd.read_csv(packed / "images.csv", keep_default_na=False),
        rejected=pd.read_csv(packed / "rejected.csv", dtype=str, keep_default_na=False),
        audit=_audited(audit),
        fingerprint=hashlib.sha256((packed / "images.csv").read_bytes()).hexdigest(),
        plans=_digest(plans),
        raw=RawDataset(raw),
        source=_shown(params.data.source),
        phantoms=params.data.phantoms,
        published=params.data.published,
        image_groups=_image_groups(raw / GROUPS),
        external=tuple(
            _external(dataset, params, [e.name for e in experiments], evaluated / EXTERNAL / dataset)
            for dataset in params.external
            if params.scored_on(dataset)
        ),
        ensembles=tuple(
            _ensemble(e, evaluated / ENSEMBLES / e.name)
            for e in experiments
            if params.experiments[e.name].is_ensemble
        ),
    )


def _shown(source: str) -> str:
    """A URL without secrets, or the name of a file or folder without the folders of this machine."""
    return without_secrets(source) if "://" in source else Path(source).name


def _ensemble(experiment: ExperimentResults, folder: Path) -> EnsembleResults:
    settings = _json(folder / "settings.json")
    images = _scores(folder / "images.csv")
    return EnsembleResults(experiment, images, settings["thresholds"], settings["presence"], folder)


def _external(dataset: str, params: Params, experiments: Sequence[str], folder: Path) -> ExternalResults:
    """The results on an external dataset, without the images that are also in the dataset."""
    overlap = pd.read_csv(folder / "audit" / "overlap.csv").astype({"exact": bool})
    counts = _json(folder / "audit" / "counts.json")
    trainings = {training: params.plans[training].experiment for training in params.scored_on(dataset)}
    rows = _together(
        _scores(folder / training / "images.csv").assign(predictor=experiment)
        for training, experiment in trainings.items()
    )
    ensembles = [
        _scores(folder / ENSEMBLES / name / "images.csv").assign(predictor=name, seed=0)
        for name in experiments
        if name in trainings.values() and params.experiments[name].is_ensemble
    ]

    def others(found: pd.DataFrame) -> pd.DataFrame:
        return found[~found["id"].isin(overlap["id"])].sort_values(["seed", "id"])

    return ExternalResults(
        name=dataset,
        source=_shown(params.external[dataset].source),
        images=counts["images"],
        unusable=counts["unusable"],
        overlap=overlap,
        rows=others(rows),
        experiments=tuple(experiments),
        ensembles=others(_together(ensembles)) if ensembles else None,
    )


def _image_groups(file: Path) -> ImageGroups | None:
    """None without a file: the dataset names no groups."""
    return ImageGroups(**_json(file)) if file.exists() else None


def _experiment(
    name: str, trainings: dict[int, str], plans: Path, trained: Path, evaluated: Path
) -> ExperimentResults:
    """An experiment with the outputs of all its trainings, seed -> name, which differ only in the seed."""
    of_first = plans / f"{next(iter(trainings.values()))}.json"
    if not of_first.is_file():
        raise InputError(f"{of_first}: no such file; the stage plan writes it for {name} of params.yaml")
    folders = [evaluated / training for training in trainings.values()]
    settings = [_json(folder / "settings.json") for folder in folders]
    plan = _json(of_first)
    folds = int(plan.get("folds", 1))
    return ExperimentResults(
        name=name,
        plan=plan,
        prediction=settings[0]["prediction"],
        networks={
            seed: _json(trained / training / "network" / "network.json")
            for seed, training in trainings.items()
        },
        history=_together(pd.read_csv(trained / training / "history.csv") for training in trainings.values()),
        images=_folded(_together(_scores(folder / "images.csv") for folder in folders), folds),
        steps=_folded(_together(_scores(folder / "steps.csv") for folder in folders), folds),
        calibration=_together(_scores(folder / "calibration.csv") for folder in folders),
        thresholds={seed: of_one["thresholds"] for seed, of_one in zip(trainings, settings, strict=True)},
        presence={seed: of_one["presence"] for seed, of_one in zip(trainings, settings, strict=True)},
        versions=settings[0]["versions"],
        predictions=folders[0] / "predictions.zip",
    )


def _folded(rows: pd.DataFrame, folds: int) -> pd.DataFrame:
    """The rows of a cross-validation, with the column `fold`; other rows as they are.

    A Val row is of the image's own fold, and there is one for each image. All of them get the first seed:
    they are the scores of one predictor. On Test images, the networks count like those of several seeds.
    """
    if folds == 1 or rows.empty:
        return rows
    first = rows["seed"].min()
    return rows.assign(fold=rows["seed"] - first, seed=rows["seed"].where(rows["split"] != "Val", first))


def grouped(params: Params) -> dict[str, tuple[str, ...]]:
    """The groups of `report.groups`, and a last one with the experiments in none of them."""
    groups = dict(params.report.groups)
    named = {name for of_group in groups.values() for name in of_group}
    others = tuple(name for name in params.experiments if name not in named)
    return groups | ({OTHERS: others} if others else {})


def _digest(plans: Path) -> str:
    """SHA-256 of all plans, with their names."""
    files = sorted(plans.glob("*.json"))
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


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


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
