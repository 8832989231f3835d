"""Parses and validates params.yaml.

External input is checked here once: the result of `load_params` is complete, typed and within bounds, and
the stages rely on it. Error messages give the key, the invalid value and the valid ones.
"""

import difflib
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML

from tasks.common.raw import Half, ImageClass
from tasks.settings.layout import ExternalLayout, Layout
from tasks.support.cli import InputError

Network = Literal["unet", "residual_unet", "attention_unet", "unet_plus_plus"]
Loss = Literal[
    "batch_bce_iou",
    "batch_dice",
    "batch_dice_bce",
    "bce",
    "bce_iou",
    "dice",
    "dice_bce",
    "focal",
    "focal_tversky",
]
Target = Literal["infection", "lung"]
Selection = Literal["balanced", "lesions", "all"]  # models.metrics defines them

#: Losses that use the shared weight `alpha`; changing alpha retrains only their experiments.
LOSSES_WITH_ALPHA: frozenset[Loss] = frozenset({"batch_bce_iou", "batch_dice_bce", "bce_iou", "dice_bce"})

#: Top-level keys of params.yaml that override the value of every experiment unless they are null.
OVERRIDES = ("alpha", "epochs")

#: Keys of `data` that are valid only for the current source.
PINS = ("fingerprint", "sha256")

#: Value of an experiment's `images` if it uses whole images.
WHOLE = "whole"

#: Prefix of an experiment's `images` if it uses only the lungs that another experiment predicts.
LUNGS = "lungs/"

#: Names of the trivial predictors in tables of scores.
BASELINES = frozenset({"all_background", "all_foreground", "whole_lung"})

#: Selects all experiments where experiments can be chosen.
ALL = "all"

#: Keys that a file of an earlier version lacks, with the value for which results stay as they were.
ADDED = {
    "data.layout": "null",
    "external": "{}",
    "training.selection": "all",
    "prediction.presence": "0",
    "prediction.ensemble": "none",
    "report.groups": "{}",
    "export.experiments": "[]",
    "promotion.experiment": "null",
}

#: Folder of the scores of ensembles, and of their networks.
ENSEMBLES = "ensembles"

#: Key of the experiments' scores on external images in metrics.json, and folder of these scores.
EXTERNAL = "external"

#: Names of the audit's counts and of the trivial predictors' scores in metrics.json.
DATASET = "dataset"
TRIVIAL = "baselines"

#: Largest number of folds of a cross-validation.
MOST_FOLDS = 10

#: Largest side of a network's input in pixels; bundles hold no larger one.
LARGEST_INPUT = 4096

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls.model_validate_json(text)


def _distinct(words: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(words)) < len(words):
        raise ValueError("a value is listed twice")
    return words


def _threshold(value: Any) -> Any:
    if value == "val" or (type(value) is float and 0 < value < 1):
        return value
    raise ValueError(f"{value!r} is neither val nor a number between 0 and 1")


def _presence(value: Any) -> Any:
    if value == "val" or (type(value) in (int, float) and 0 <= value < 1):
        return value if value == "val" else float(value)
    raise ValueError(f"{value!r} is neither val nor a number from 0 to below 1")


def _exported(value: Any) -> Any:
    if value == ALL:
        return value
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return _distinct(tuple(value))
    raise ValueError(f"{value!r} is neither all nor a list of experiments")


_Checked = TypeVar("_Checked", bound=_Section)


class DataSource(_Section):
    source: Annotated[str, Field(min_length=1)]
    fingerprint: Annotated[str, Field(pattern=r"^f[0-9a-f]{31}$")] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    layout: Layout | None = None
    """None: the folders of COVID-QU-Ex. Revisions from before this key lack it."""

    @model_validator(mode="after")
    def _can_be_pinned(self) -> Self:
        if self.phantoms:
            if self.fingerprint:
                raise ValueError("phantom:// never changes and has no fingerprint; set fingerprint to null")
            if self.sha256:
                raise ValueError("phantom:// is not a zip file and has no sha256; set sha256 to null")
            if self.layout:
                raise ValueError("phantom:// has the folders of COVID-QU-Ex; set layout to null")
        return self

    @model_validator(mode="after")
    def _has_no_password(self) -> Self:
        if self.source.startswith(("http://", "https://")) and "@" in urlsplit(self.source).netloc:
            raise ValueError("source: params.yaml must not contain credentials; put them into ~/.netrc")
        return self

    @property
    def phantoms(self) -> bool:
        return self.source.startswith("phantom://")

    @property
    def published(self) -> bool:
        """Whether these are the images of COVID-QU-Ex, whose counts and scores are published."""
        return not self.phantoms and self.layout is None


class External(DataSource):
    """An entry under `external`: images on which every experiment is scored, and none is trained."""

    layout: ExternalLayout | None = None
    """None: the Test images of the infection half, in the folders of COVID-QU-Ex."""

    @property
    def masks(self) -> tuple[Target, ...]:
        """The masks that the images have."""
        return tuple(t for t in get_args(Target) if self.layout is None or t in self.layout.masks)


#: By name, without hyphens, which join these names with those of trainings.
ExternalDatasets = dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], External]


class Preprocess(_Section):
    max_rejected: Share


class Audit(_Section):
    """From which thumbnail correlation two images count as duplicates, and whether they are dropped."""

    correlation: Annotated[float, Field(gt=0, le=1)]
    duplicates: Literal["report", "drop"]


class Augment(_Section):
    """Bounds of the random changes to training images, see `models.augmentation.Strength`; 0 is off."""

    flip: Share
    rotation: Annotated[float, Field(ge=0, le=180)]
    scale: Share
    translation: Share
    elastic: Annotated[float, Field(ge=0, le=0.2)]
    brightness: Share
    contrast: Annotated[float, Field(ge=0, le=10)]
    gamma: Annotated[float, Field(ge=0, le=10)]
    noise: Share


class FocalLoss(_Section):
    gamma: Annotated[float, Field(ge=0)]
    balance: Share


class FocalTverskyLoss(_Section):
    gamma: Annotated[float, Field(ge=1)]
    balance: Share


class Losses(_Section):
    """Constants of individual loss functions."""

    focal: FocalLoss
    focal_tversky: FocalTverskyLoss


class Prediction(_Section):
    """How probabilities become masks. The stage evaluate reads one such file per experiment.

    These files lack `ensemble`, on which no network's own scores depend.
    """

    threshold: Annotated[float | Literal["val"], PlainValidator(_threshold)]
    presence: Annotated[float | Literal["val"], PlainValidator(_presence)]
    flip_average: bool
    within_lungs: bool
    min_area: Annotated[float, Field(ge=0, lt=1)]
    fill_holes: bool
    ensemble: Literal["none", "seeds"] = "none"

    def to_json(self) -> str:
        return self.model_dump_json(indent=2, exclude={"ensemble"}) + "\n"


class StartFrom(_Section):
    """Weights of a trained network, from which another training starts instead of random ones."""

    weights: Annotated[str, Field(pattern=r"\.safetensors$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Fit(_Section):
    """What determines a training, except network and loss. Every experiment may override it."""

    epochs: Positive
    half: Half
    image_size: Annotated[int, Field(ge=16, le=LARGEST_INPUT)]
    images: Annotated[str, Field(pattern=rf"^({WHOLE}|{LUNGS}[A-Za-z0-9_-]+)$")]
    targets: Annotated[tuple[Target, ...], Field(min_length=1, strict=False), AfterValidator(_distinct)]
    train_classes: Annotated[
        tuple[ImageClass, ...], Field(min_length=1, strict=False), AfterValidator(_distinct)
    ]
    batch_size: Positive
    width: Positive
    depth: Annotated[int, Field(ge=1, le=6)]
    patch: Annotated[int, Field(ge=1, le=8)]
    deep_supervision: bool
    optimiser: Literal["adam", "adamw"]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["constant", "cosine", "one_cycle"]
    ema: Annotated[float, Field(ge=0, lt=1)]
    augment: Augment
    seed: Annotated[int, Field(ge=0, lt=2**62)]
    selection: Selection
    patience: Annotated[int, Field(ge=0)]
    precision: Literal["auto", "fp32", "bf16"]
    compile: Literal["auto", "none", "fused", "graphs"]
    threads: Annotated[int, Field(ge=0)]
    processes: Positive
    accumulate: Positive
    start_from: StartFrom | None = None
    """None: random weights."""


class TrainingSettings(Fit):
    """The section `training`: settings shared by all experiments; each may override them."""

    alpha: Share | None
    seeds: Annotated[int, Field(ge=1, le=100)]
    folds: Annotated[int, Field(ge=1, le=MOST_FOLDS)] = 1
    """1: the dataset's own Train and Val. Revisions from before this key lack it."""


class Experiment(TrainingSettings):
    """An entry under `experiments`, merged with the shared values."""

    network: Network
    loss: Loss
    losses: Losses
    prediction: Prediction
    alpha: Share | None = None

    @property
    def is_ensemble(self) -> bool:
        """Whether the probabilities of its networks are averaged, too: always those of several folds."""
        return self.folds > 1 or (self.prediction.ensemble == "seeds" and self.seeds > 1)

    @property
    def lungs_from(self) -> str | None:
        """The experiment whose predicted lungs are the input of this one, if any."""
        return self.images.removeprefix(LUNGS) if self.images.startswith(LUNGS) else None

    @property
    def folder(self) -> str:
        """The folder of its images, relative to data/."""
        return self.images if self.lungs_from else f"packed/{self.image_size}"

    @property
    def stride(self) -> int:
        """Side, in pixels, of the square that one pixel of the lowest level covers."""
        return int(self.patch * 2**self.depth)

    @model_validator(mode="after")
    def _has_the_alpha_it_reads(self) -> Self:
        reads = self.loss in LOSSES_WITH_ALPHA
        if reads != (self.alpha is not None):
            raise ValueError(
                f"loss {self.loss} {'needs alpha, which is missing' if reads else 'does not use alpha'}"
            )
        return self

    @model_validator(mode="after")
    def _can_have_folds(self) -> Self:
        if self.folds > 1 and self.seeds > 1:
            raise ValueError(f"folds: {self.folds} and seeds: {self.seeds} exclude each other; set seeds: 1")
        if self.folds > 1 and self.lungs_from:
            raise ValueError(
                f"folds: {self.folds} needs images: {WHOLE}, because the network that predicts the lungs has "
                "seen images of every fold; set folds: 1"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.deep_supervision and self.network != "unet_plus_plus":
            raise ValueError(f"network {self.network} does not support deep_supervision; use unet_plus_plus")
        if self.processes * self.accumulate > self.batch_size:
            shares = f"{self.processes} processes and accumulate: {self.accumulate}"
            raise ValueError(f"batch_size: {self.batch_size} images are not enough for {shares}")
        if self.compile == "graphs" and self.accumulate > 1:
            raise ValueError("compile: graphs cannot split a batch; set accumulate: 1 or compile: fused")
        if self.network == "attention_unet" and self.width < 2:
            raise ValueError("network attention_unet needs a width of at least 2")
        if self.prediction.within_lungs and set(self.targets) != {"infection", "lung"}:
            raise ValueError("prediction.within_lungs needs targets: [infection, lung]")
        if self.lungs_from and self.targets != ("infection",):
            raise ValueError(f"images: {self.images} has only infection masks; set targets: [infection]")
        if "infection" in self.targets and self.half == "lung":
            raise ValueError("the lung half has no infection masks; set targets: [lung]")
        if self.image_size % self.stride or self.image_size == self.stride:
            raise ValueError(
                f"image_size {self.image_size} must be 2, 3, ... times patch * 2^depth = {self.stride}"
            )
        return self


class Plan(Fit):
    """One training: an experiment and a seed, with everything that determines the result and nothing else.

    `loss_options` contains only the options of its own loss, so changing alpha affects no other plan.
    """

    name: str
    experiment: str
    network: Network
    loss: Loss
    loss_options: dict[str, float]
    selection: Selection = "all"  # by which earlier versions chose, whose plans do not name it
    folds: int = 1
    fold: int = 0
    """The fold, counted from 0, that is this training's Val; the others are its Train."""

    def to_json(self) -> str:
        # As before these keys existed, so that no finished training runs again.
        without = {"start_from"} if self.start_from is None else set()
        without |= {"folds", "fold"} if self.folds == 1 else set()
        return self.model_dump_json(indent=2, exclude=without) + "\n"


class TrainStage(_Section):
    """What dvc.yaml needs for a training: its experiment, and the folder of its images, relative to data/."""

    experiment: str
    images: str


class LungsStage(_Section):
    """The training that predicts the lungs, and the folder of its images, relative to data/."""

    training: str
    images: str


class GatherStage(_Section):
    """The networks of earlier seeds, to which a training's network is added: a folder below artifacts/."""

    before: str


class EnsembleStage(_Section):
    """The first and the last training of an ensemble, and the folder of its images, relative to data/."""

    first: str
    last: str
    images: str


class ExternalStage(_Section):
    """An external dataset, and an image size to which its images are packed."""

    dataset: str
    image_size: int


class ExternalLungsStage(_Section):
    """The training that predicts the lungs on an external dataset."""

    dataset: str
    training: str
    experiment: str
    image_size: int


class ExternalScoreStage(_Section):
    """A training and the folder of the external images that it is scored on, relative to data/external/."""

    dataset: str
    training: str
    experiment: str
    images: str


class Export(_Section):
    """The experiments whose networks leave the project as bundles."""

    experiments: Annotated[tuple[str, ...] | Literal["all"], PlainValidator(_exported)]


class Promotion(_Section):
    """Which bundle may become the champion, and by which limits it is judged, see `tasks.gate.rules`.

    No stage depends on this section. Without it, nothing is promoted, and the limits are these.
    """

    experiment: str | None = None
    """None: no bundle is promoted."""
    target: Target = "infection"
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Largest loss of mean Dice, for each image class that has masks and each external dataset."""
    false_alarms: Annotated[float, Field(gt=0, lt=1)] = 0.04
    """Largest increase of the share of controls that are marked."""
    false_alarms_by_class: Annotated[float, Field(gt=0, lt=1)] = 0.06
    """The same for each class of controls. A class has fewer images, so its interval is wider."""
    leaks: Share = 0.01
    """Largest share of Val or Test images that duplicate, or nearly duplicate, a training image."""
    least_images: Annotated[int, Field(ge=2)] = 30
    """With fewer images of a class or dataset, nothing is decided."""


class Stages(_Section):
    """The lists for dvc.yaml's `foreach` stages, which it cannot derive from the experiments itself."""

    preprocess: Annotated[tuple[int, ...], Field(strict=False)]
    """Image sizes."""
    baselines: Annotated[tuple[Half, ...], Field(strict=False)]
    """Halves of the dataset."""
    lungs: dict[str, LungsStage]
    """By the name of the experiment that predicts them."""
    train: dict[str, TrainStage]
    """By the name of the training."""
    gather: dict[str, GatherStage]
    """By the name of the training, for each seed of an ensemble but the first."""
    ensemble: dict[str, EnsembleStage]
    """By the name of the experiment."""
    convert: dict[str, TrainStage]
    """The trainings that bundles need, by name."""
    export: Annotated[tuple[str, ...], Field(strict=False)]
    """Experiments."""
    external: dict[str, ExternalStage]
    """By the name of the external dataset, with one of its image sizes."""
    preprocess_external: dict[str, ExternalStage]
    """By the name of the external dataset and the image size."""
    lungs_external: dict[str, ExternalLungsStage]
    """By the name of the external dataset and of the experiment that predicts the lungs."""
    evaluate_external: dict[str, ExternalScoreStage]
    """By the name of the external dataset and of the training."""


class Report(_Section):
    figures: Annotated[tuple[Positive, ...], Field(strict=False)]
    groups: dict[
        str, Annotated[tuple[str, ...], Field(min_length=1, strict=False), AfterValidator(_distinct)]
    ]
    """Title -> experiments that the report compares with each other, most of all with the first."""


class Settings(_Section):
    """params.yaml without the section `stages`, which is derived from the rest."""

    alpha: Share | None
    epochs: Positive | None
    data: DataSource
    external: ExternalDatasets
    preprocess: Preprocess
    audit: Audit
    training: TrainingSettings
    losses: Losses
    prediction: Prediction
    experiments: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], Experiment], Field(min_length=1)
    ]
    report: Report
    export: Export
    promotion: Promotion = Promotion()
    """Revisions from before this section lack it."""

    @property
    def exported(self) -> tuple[str, ...]:
        """The experiments of which a bundle is made, in the order of params.yaml."""
        chosen = self.export.experiments
        return tuple(name for name in self.experiments if chosen == ALL or name in chosen)

    @property
    def plans(self) -> dict[str, Plan]:
        """Training name -> plan: one per experiment and seed or fold, in the order of params.yaml."""
        return {
            training: self._plan(name, experiment, training, more)
            for name, experiment in self.experiments.items()
            for more, training in enumerate(
                training_names(name, experiment.seed, experiment.seeds, experiment.folds)
            )
        }

    def _plan(self, name: str, experiment: Experiment, training: str, more: int) -> Plan:
        """The plan of the experiment's training number `more`, whose seed is higher by this number."""
        shared = experiment.model_dump(include={*Fit.model_fields, "network", "loss"})
        shared |= {"seed": experiment.seed + more, "loss_options": self._loss_options(experiment)}
        if experiment.folds > 1:
            shared |= {"folds": experiment.folds, "fold": more}
        return Plan(name=training, experiment=name, **shared)

    @staticmethod
    def _loss_options(experiment: Experiment) -> dict[str, float]:
        if experiment.alpha is not None:
            return {"alpha": experiment.alpha}
        constants = getattr(experiment.losses, experiment.loss, None)
        return constants.model_dump() if constants else {}

    def scored_on(self, dataset: str) -> list[str]:
        """The trainings that predict a mask of an external dataset."""
        masks = set(self.external[dataset].masks)
        return [name for name, plan in self.plans.items() if masks & set(plan.targets)]

    def derive_stages(self) -> Stages:
        """Derive the section `stages` from the experiments and the external datasets."""
        experiments = self.experiments.values()
        sources = dict.fromkeys(e.lungs_from for e in experiments if e.lungs_from)
        train = {
            name: TrainStage(experiment=plan.experiment, images=self.experiments[plan.experiment].folder)
            for name, plan in self.plans.items()
        }
        return Stages(
            preprocess=tuple(sorted({e.image_size for e in experiments})),
            baselines=tuple(dict.fromkeys(e.half for e in experiments)),
            lungs={
                name: LungsStage(training=training_name(name, source.seed), images=source.folder)
                for name in sources
                for source in [self.experiments[name]]
            },
            train=train,
            **self._ensemble_stages(),
            convert={name: train[name] for name in self._converted()},
            export=self.exported,
            **self._external_stages(),
        )

    def _ensemble_stages(self) -> dict[str, Any]:
        gather: dict[str, GatherStage] = {}
        ensembles: dict[str, EnsembleStage] = {}
        for name, experiment in self.experiments.items():
            if experiment.is_ensemble:
                first, *others = training_names(name, experiment.seed, experiment.seeds, experiment.folds)
                before = f"train/{first}/network"
                for training in others:
                    gather[training] = GatherStage(before=before)
                    before = f"{ENSEMBLES}/{training}"
                ensembles[name] = EnsembleStage(first=first, last=others[-1], images=experiment.folder)
        return {"gather": gather, "ensemble": ensembles}

    def _external_stages(self) -> dict[str, Any]:
        first: dict[str, ExternalStage] = {}
        packed: dict[str, ExternalStage] = {}
        lungs: dict[str, ExternalLungsStage] = {}
        scores: dict[str, ExternalScoreStage] = {}
        for dataset in self.external:
            for name in self.scored_on(dataset):
                experiment = self.experiments[self.plans[name].experiment]
                size, source = experiment.image_size, experiment.lungs_from
                packed[f"{dataset}-{size}"] = ExternalStage(dataset=dataset, image_size=size)
                first.setdefault(dataset, packed[f"{dataset}-{size}"])
                if source:
                    lungs[f"{dataset}-{source}"] = ExternalLungsStage(
                        dataset=dataset,
                        training=training_name(source, self.experiments[source].seed),
                        experiment=source,
                        image_size=size,
                    )
                scores[f"{dataset}-{name}"] = ExternalScoreStage(
                    dataset=dataset,
                    training=name,
                    experiment=self.plans[name].experiment,
                    images=f"{dataset}/{experiment.folder}",
                )
        return {
            "external": first,
            "preprocess_external": packed,
            "lungs_external": lungs,
            "evaluate_external": scores,
        }

    def _converted(self) -> list[str]:
        """The trainings of the exported experiments, and those that predict their lungs."""
        experiments = {name: self.experiments[name] for name in self.exported}
        lungs = {e.lungs_from for e in experiments.values()}
        return [
            name
            for name, plan in self.plans.items()
            if plan.experiment in experiments
            or (plan.experiment in lungs and plan.seed == self.experiments[plan.experiment].seed)
        ]

    @model_validator(mode="before")
    @classmethod
    def _share(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Give each experiment the shared values that it does not override."""
        entries, training = raw.get("experiments"), raw.get("training")
        if not isinstance(entries, dict) or not isinstance(training, dict):
            return raw
        merged = {name: cls._merged(raw, entry) for name, entry in entries.items()}
        return {**raw, "experiments": merged}

    @staticmethod
    def _merged(raw: dict[str, Any], entry: Any) -> Any:
        if not isinstance(entry, dict):
            return entry
        overrides = {key: raw[key] for key in OVERRIDES if raw.get(key) is not None}
        shared = {**raw["training"], "losses": raw.get("losses"), "prediction": raw.get("prediction")}
        if not uses_alpha(entry):
            overrides.pop("alpha", None)
            shared.pop("alpha", None)
        merged = {**shared, **entry, **overrides}
        for section in ("augment", "losses", "prediction"):
            if section in shared and section in entry:
                merged[section] = overlaid(shared[section], entry[section])
        return merged

    @model_validator(mode="after")
    def _names_keys_that_files_lack(self) -> Self:
        if "layout" not in self.data.model_fields_set:  # stages of dvc.yaml depend on it
            raise ValueError(f"data.layout: {_missing('data.layout')}")
        if "ensemble" not in self.prediction.model_fields_set:
            raise ValueError(f"prediction.ensemble: {_missing('prediction.ensemble')}")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name, experiment in self.experiments.items():
            place = f"experiments.{name}"
            if name in BASELINES:
                raise ValueError(f"{place}: this is the name of a trivial predictor; choose another")
            if name == ALL:
                raise ValueError(f"{place}: this word selects all experiments; choose another name")
            if name == DATASET:
                raise ValueError(f"{place}: metrics.json uses this name for the dataset; choose another")
            if name == TRIVIAL:
                raise ValueError(
                    f"{place}: metrics.json uses this name for the trivial predictors; choose another"
                )
            if experiment.lungs_from:
                self._check_lungs(place, experiment, experiment.lungs_from)
            if self.data.layout:
                _check_layout(place, experiment, self.data.layout)
        self._check_groups()
        for name in () if self.export.experiments == ALL else self.export.experiments:
            if name not in self.experiments:
                raise ValueError(f"export.experiments: {name!r} is not one of {', '.join(self.experiments)}")
        self._check_promotion()
        return self

    def _check_promotion(self) -> None:
        name = self.promotion.experiment
        if name is None:
            return
        if name not in self.exported:
            there = ", ".join(self.exported) or "there are none"
            raise ValueError(
                f"promotion.experiment: {name!r} is not one of export.experiments ({there}); "
                "set null to promote nothing"
            )
        if self.promotion.target not in (targets := self.experiments[name].targets):
            raise ValueError(f"promotion.target: {name} predicts only {' and '.join(targets)}")

    def _check_groups(self) -> None:
        group_of: dict[str, str] = {}
        for title, names in self.report.groups.items():
            for name in names:
                if name not in self.experiments:
                    raise ValueError(
                        f"report.groups.{title}: {name!r} is not one of {', '.join(self.experiments)}"
                    )
                if name in group_of:
                    raise ValueError(f"report.groups.{title}: {name} is in {group_of[name]!r} already")
                group_of[name] = title

    def _check_lungs(self, place: str, experiment: Experiment, name: str) -> None:
        if name not in self.experiments:
            others = ", ".join(other for other in self.experiments if self.experiments[other] != experiment)
            raise ValueError(f"{place}: images: {name!r} is not one of {others}")
        source = self.experiments[name]
        if "lung" not in source.targets or source.lungs_from:
            raise ValueError(f"{place}: images: {name} does not predict lungs from whole images")
        if source.folds > 1:
            raise ValueError(
                f"experiments.{name}: folds: {source.folds}: it predicts the lungs of {place}, which one "
                "network does; set folds: 1"
            )
        for key in ("half", "image_size"):
            own, its = getattr(experiment, key), getattr(source, key)
            if own != its:
                raise ValueError(f"{place}: {key} is {own}, but {name}, which predicts its lungs, has {its}")


def uses_alpha(entry: Any) -> bool:
    """Whether the loss that an entry of `experiments` names, which may be invalid, uses alpha."""
    loss = entry.get("loss") if isinstance(entry, dict) else None
    return isinstance(loss, str) and loss in LOSSES_WITH_ALPHA


def overlaid(shared: Any, own: Any) -> Any:
    """Shared values with those that replace them. Mappings are merged."""
    if not (isinstance(shared, dict) and isinstance(own, dict)):
        return own
    return shared | {key: overlaid(shared.get(key), value) for key, value in own.items()}


def _check_layout(place: str, experiment: Experiment, layout: Layout) -> None:
    """Check that the dataset has the masks and the classes of an experiment."""
    if missing := [target for target in experiment.targets if target not in layout.masks]:
        raise ValueError(
            f"{place}: targets: data.layout has no {missing[0]} masks; "
            f"set targets: [{', '.join(layout.masks)}]"
            + (f" and half: {layout.half}" if experiment.half != layout.half else "")
        )
    if experiment.half != layout.half:
        raise ValueError(
            f"{place}: half: the images of data.layout are the {layout.half} half; set half: {layout.half}"
        )
    if not set(experiment.train_classes) & set(layout.image_classes):
        raise ValueError(
            f"{place}: train_classes: data.layout has no images of {', '.join(experiment.train_classes)}; "
            f"set train_classes: [{', '.join(layout.image_classes)}]"
        )


class Params(Settings):
    """The complete params.yaml."""

    stages: Stages

    @model_validator(mode="after")
    def _lists_its_stages(self) -> Self:
        derived = self.derive_stages()
        for section in Stages.model_fields:
            found, wanted = getattr(self.stages, section), getattr(derived, section)
            if fault := _list_fault(found, wanted):
                raise ValueError(f"stages.{section}: {fault}; `cxr params` writes this section")
        return self


def _list_fault(found: Any, wanted: Any) -> str | None:
    """The first difference between a list of `stages` and its derived value; None if they are equal."""
    if not isinstance(wanted, dict):
        return None if found == wanted else f"expected [{', '.join(map(str, wanted))}]"
    for name, entry in wanted.items():
        if found.get(name) != entry:
            words = ", ".join(f"{key}: {value}" for key, value in entry.model_dump().items())
            return f"expected {name}: {{{words}}}"
    unknown = next((name for name in found if name not in wanted), None)
    return f"no experiment needs {unknown}" if unknown else None


def training_name(experiment: str, seed: int) -> str:
    """Name of an experiment's training with a seed, as used in stages, files and logs."""
    return f"{experiment}-seed{seed}"


def training_names(experiment: str, seed: int, seeds: int, folds: int) -> tuple[str, ...]:
    """Names of all trainings of an experiment: one for each fold, or for each seed from `seed` on."""
    if folds > 1:
        return tuple(f"{experiment}-fold{fold}" for fold in range(folds))
    return tuple(training_name(experiment, seed + more) for more in range(seeds))


def load_params(path: Path) -> Params:
    """Read and validate params.yaml.

    Raises:
        InputError: the file is missing, is not valid YAML, or has invalid values; one line per error.
    """
    return parse_params(read_text(path, "run this in the folder that contains params.yaml"), str(path))


def load_data(path: Path) -> DataSource:
    """Read and validate only the section `data`, whose layout one may try before the experiments fit it.

    Raises:
        InputError: as `load_params`.
    """
    raw = parse_mapping(read_text(path, "run this in the folder that contains params.yaml"), str(path))
    return _validated(_Data, {"data": raw.get("data")}, str(path)).data


def load_external(path: Path, name: str) -> External:
    """Read and validate only one entry of the section `external`.

    Raises:
        InputError: as `load_params`; or there is no such entry.
    """
    raw = parse_mapping(read_text(path, "run this in the folder that contains params.yaml"), str(path))
    entries = raw.get("external")
    if not isinstance(entries, dict) or name not in entries:
        there = ", ".join(map(str, entries)) if isinstance(entries, dict) and entries else "there are none"
        raise InputError(f"{path}: external: {name!r} is not one of its datasets ({there})")
    return _validated(_Externals, {"external": {name: entries[name]}}, str(path)).external[name]


class _Data(_Section):
    data: DataSource


class _Externals(_Section):
    external: ExternalDatasets


def parse_params(text: str, where: str = "params.yaml") -> Params:
    """Validate the text of a params.yaml; `where` names it in error messages."""
    return _validated(Params, parse_mapping(text, where), where)


def derive_stages(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """Derive the section `stages` from the rest of a params.yaml, as plain lists and mappings.

    Raises:
        InputError: the rest is invalid.
    """
    settings = _validated(Settings, {key: raw[key] for key in raw if key != "stages"}, where)
    return settings.derive_stages().model_dump(mode="json")


def _validated(schema: type[_Checked], raw: dict[str, Any], where: str) -> _Checked:
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise InputError("\n".join(_fault_lines(error, where))) from None


def parse_mapping(text: str, where: str) -> dict[str, Any]:
    """Parse YAML 1.2 text whose top level is a mapping."""
    try:
        raw = parse_yaml(text)
    except ValueError as error:
        raise InputError(f"{where}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected keys and values, found {type(raw).__name__}")
    return raw


def parse_yaml(text: str) -> Any:
    """Parse YAML 1.2 text.

    Raises:
        ValueError: it is invalid. The message is one line.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # a date such as 2026-02-31, or a wrong tag, causes other errors than YAMLError
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def read_text(path: Path, hint: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {hint}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _fault_lines(error: ValidationError, where: str) -> list[str]:
    faults = error.errors()
    # Experiments inherit shared values, so an error in a shared value repeats in each of them. Show it once.
    faults = [fault for fault in faults if _place(fault)[:1] != ("experiments",)] or faults
    misspelt = {(*_place(f)[:-1], _near_key(_place(f))) for f in faults if f["type"] == "extra_forbidden"}
    # A misspelt key is also reported as missing. Keep only the line about the misspelt word.
    faults = [f for f in faults if f["type"] != "missing" or _place(f) not in misspelt]
    return [f"{where}: {fault_line(fault)}" for fault in faults]


def fault_line(fault: ErrorDetails) -> str:
    """One line for an error that pydantic found: the key, the value, and what is valid."""
    return ": ".join(filter(None, [".".join(_place(fault)), _message(fault)]))


def _place(fault: ErrorDetails) -> tuple[str, ...]:
    return tuple(str(part) for part in fault["loc"])


def _message(fault: ErrorDetails) -> str:
    place = _place(fault)
    match fault["type"]:
        case "extra_forbidden":
            near = _near_key(place)
            hint = f" (did you mean {near}?)" if near else ""
            if not near and len(place) == 1 and place[0] in TrainingSettings.model_fields:
                hint = f" (did you mean training.{place[0]}?)"
            return f"unknown key{hint}; the keys here are {', '.join(_keys_at(place[:-1]))}"
        case "missing":
            return _missing(".".join(place))
        case "literal_error":
            return f"{_shown(fault['input'])} is not one of {fault['ctx']['expected']}"
        case "value_error":
            return str(fault["ctx"]["error"])
        case "dict_type" | "model_type":
            return f"{_shown(fault['input'])} is invalid: expected keys and values"
    return f"{_shown(fault['input'])} is invalid: {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _shown(value: Any) -> str:
    """A value as Python writes it, without the middle of long texts and the end of long lists."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 3, 120, 120, 120
    return short.repr(value)


def _missing(key: str) -> str:
    # A new key may bring lists of stages with it.
    is_new = key.startswith("stages.") or any(f"{added}.".startswith(f"{key}.") for added in ADDED)
    before = f"; to keep the results of earlier versions: cxr params {as_before()}" if is_new else ""
    return f"this key is missing{before}"


def as_before() -> str:
    """The options of `cxr params` that convert a params.yaml of an earlier version."""
    return " ".join(f"--set {key}={value}" for key, value in ADDED.items())


def _near_key(place: tuple[str, ...]) -> str | None:
    """The valid key that is most similar to the last part of `place`, if any is similar."""
    return next(iter(difflib.get_close_matches(place[-1], _keys_at(place[:-1]), n=1)), None)


def _keys_at(place: tuple[str, ...]) -> list[str]:
    section: Any = Params
    for part in place:
        if get_origin(section) is dict:
            section = get_args(section)[1]  # an entry, by its name
        else:
            section = _section_of(section.model_fields[part].annotation)
    names = [field.alias or name for name, field in section.model_fields.items()]
    return sorted(names) if section is Experiment else names


def _section_of(annotation: Any) -> Any:
    """The section itself, if a key may hold a section or null."""
    if get_origin(annotation) is dict:
        return annotation
    return next((kind for kind in get_args(annotation) if hasattr(kind, "model_fields")), annotation)
