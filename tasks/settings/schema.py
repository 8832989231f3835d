"""All sections of params.yaml except `stages`, and which of their values fit together.

The smaller sections are here. The others have modules of their names; `losses` is in training.py.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from tasks.settings.data import DataSource, ExternalDatasets
from tasks.settings.earlier import missing_key
from tasks.settings.experiments import Experiment, Plan
from tasks.settings.layout import Layout
from tasks.settings.prediction import Prediction
from tasks.settings.section import Positive, Section, Share, distinct
from tasks.settings.training import Losses, Target, TrainingSettings, uses_alpha

#: Top-level keys of params.yaml that override the value of every experiment unless they are null.
OVERRIDES = ("alpha", "epochs")

#: Names of the trivial predictors in tables of scores.
BASELINES = frozenset({"all_background", "all_foreground", "whole_lung"})

#: Selects all experiments where experiments can be chosen.
ALL = "all"

#: Key of the experiments' scores on external images in metrics.json, and folder of these scores.
EXTERNAL = "external"

#: Names of the audit's counts and of the trivial predictors' scores in metrics.json.
DATASET = "dataset"
TRIVIAL = "baselines"

#: Names that no experiment may have, and why.
_RESERVED = {
    **dict.fromkeys(BASELINES, "this is the name of a trivial predictor; choose another"),
    ALL: "this word selects all experiments; choose another name",
    DATASET: "metrics.json uses this name for the dataset; choose another",
    TRIVIAL: "metrics.json uses this name for the trivial predictors; choose another",
}


def _exported(value: Any) -> Any:
    if value == ALL:
        return value
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return distinct(tuple(value))
    raise ValueError(f"{value!r} is neither all nor a list of experiments")


class Preprocess(Section):
    max_rejected: Share


class Audit(Section):
    """From which thumbnail correlation two images count as duplicates, and whether they are dropped."""

    correlation: Annotated[float, Field(gt=0, le=1)]
    duplicates: Literal["report", "drop"]


class Report(Section):
    figures: Annotated[tuple[Positive, ...], Field(strict=False)]
    groups: dict[str, Annotated[tuple[str, ...], Field(min_length=1, strict=False), AfterValidator(distinct)]]
    """Title -> experiments that the report compares with each other, most of all with the first."""


class Export(Section):
    """The experiments whose networks leave the project as bundles."""

    experiments: Annotated[tuple[str, ...] | Literal["all"], PlainValidator(_exported)]


class Promotion(Section):
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


class Settings(Section):
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
            training: plan
            for name, experiment in self.experiments.items()
            for training, plan in experiment.plans(name).items()
        }

    def scored_on(self, dataset: str) -> list[str]:
        """The trainings that predict a mask of an external dataset."""
        masks = set(self.external[dataset].masks)
        return [name for name, plan in self.plans.items() if masks & set(plan.targets)]

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
            raise ValueError(f"data.layout: {missing_key('data.layout')}")
        if "ensemble" not in self.prediction.model_fields_set:
            raise ValueError(f"prediction.ensemble: {missing_key('prediction.ensemble')}")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name, experiment in self.experiments.items():
            place = f"experiments.{name}"
            if name in _RESERVED:
                raise ValueError(f"{place}: {_RESERVED[name]}")
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
