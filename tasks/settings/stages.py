"""The section `stages`: the lists of dvc.yaml's `foreach` stages, derived from the rest of params.yaml."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from tasks.common.raw import Half
from tasks.settings.experiments import Experiment, training_name
from tasks.settings.schema import Settings
from tasks.settings.section import Section

#: Folder of the scores of ensembles, and of their networks.
ENSEMBLES = "ensembles"


class TrainStage(Section):
    """What dvc.yaml needs for a training: its experiment, and the folder of its images, relative to data/."""

    experiment: str
    images: str


class LungsStage(Section):
    """The training that predicts the lungs, and the folder of its images, relative to data/."""

    training: str
    images: str


class GatherStage(Section):
    """The networks of earlier seeds, to which a training's network is added: a folder below artifacts/."""

    before: str


class EnsembleStage(Section):
    """The first and the last training of an ensemble, and the folder of its images, relative to data/."""

    first: str
    last: str
    images: str


class ExternalStage(Section):
    """An external dataset, and an image size to which its images are packed."""

    dataset: str
    image_size: int


class ExternalLungsStage(Section):
    """The training that predicts the lungs on an external dataset."""

    dataset: str
    training: str
    experiment: str
    image_size: int


class ExternalScoreStage(Section):
    """A training and the folder of the external images that it is scored on, relative to data/external/."""

    dataset: str
    training: str
    experiment: str
    images: str


class ExternalEnsembleStage(Section):
    """An ensemble, by its first and last training, and the folder of the external images as above."""

    dataset: str
    experiment: str
    first: str
    last: str
    images: str


class Stages(Section):
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
    ensemble_external: dict[str, ExternalEnsembleStage]
    """By the name of the external dataset and of the experiment."""


def derive_stages(settings: Settings) -> Stages:
    """Derive the section `stages` from the experiments and the external datasets."""
    experiments = settings.experiments
    sources = dict.fromkeys(e.lungs_from for e in experiments.values() if e.lungs_from)
    train = {
        name: TrainStage(experiment=plan.experiment, images=experiments[plan.experiment].folder)
        for name, plan in settings.plans.items()
    }
    return Stages(
        preprocess=tuple(sorted({e.image_size for e in experiments.values()})),
        baselines=tuple(dict.fromkeys(e.half for e in experiments.values())),
        lungs={
            name: LungsStage(training=training_name(name, source.seed), images=source.folder)
            for name in sources
            for source in [experiments[name]]
        },
        train=train,
        **_ensemble_stages(experiments),
        convert={name: train[name] for name in _converted(settings)},
        export=settings.exported,
        **_external_stages(settings),
    )


def _ensemble_stages(experiments: Mapping[str, Experiment]) -> dict[str, Any]:
    gather: dict[str, GatherStage] = {}
    ensembles: dict[str, EnsembleStage] = {}
    for name, experiment in experiments.items():
        if experiment.is_ensemble:
            first, *others = experiment.trainings(name)
            before = f"train/{first}/network"
            for training in others:
                gather[training] = GatherStage(before=before)
                before = f"{ENSEMBLES}/{training}"
            ensembles[name] = EnsembleStage(first=first, last=others[-1], images=experiment.folder)
    return {"gather": gather, "ensemble": ensembles}


def _external_stages(settings: Settings) -> dict[str, Any]:
    first: dict[str, ExternalStage] = {}
    packed: dict[str, ExternalStage] = {}
    lungs: dict[str, ExternalLungsStage] = {}
    scores: dict[str, ExternalScoreStage] = {}
    ensembles: dict[str, ExternalEnsembleStage] = {}
    plans = settings.plans
    for dataset in settings.external:
        for training in settings.scored_on(dataset):
            name = plans[training].experiment
            experiment = settings.experiments[name]
            size, source = experiment.image_size, experiment.lungs_from
            packed[f"{dataset}-{size}"] = ExternalStage(dataset=dataset, image_size=size)
            first.setdefault(dataset, packed[f"{dataset}-{size}"])
            if source:
                lungs[f"{dataset}-{source}"] = ExternalLungsStage(
                    dataset=dataset,
                    training=training_name(source, settings.experiments[source].seed),
                    experiment=source,
                    image_size=size,
                )
            images = f"{dataset}/{experiment.folder}"
            scores[f"{dataset}-{training}"] = ExternalScoreStage(
                dataset=dataset, training=training, experiment=name, images=images
            )
            if experiment.is_ensemble:
                trainings = experiment.trainings(name)
                ensembles[f"{dataset}-{name}"] = ExternalEnsembleStage(
                    dataset=dataset, experiment=name, first=trainings[0], last=trainings[-1], images=images
                )
    return {
        "external": first,
        "preprocess_external": packed,
        "lungs_external": lungs,
        "evaluate_external": scores,
        "ensemble_external": ensembles,
    }


def _converted(settings: Settings) -> list[str]:
    """The trainings of the exported experiments, and those that predict their lungs."""
    experiments = {name: settings.experiments[name] for name in settings.exported}
    lungs = {e.lungs_from for e in experiments.values()}
    return [
        name
        for name, plan in settings.plans.items()
        if plan.experiment in experiments
        or (plan.experiment in lungs and plan.seed == settings.experiments[plan.experiment].seed)
    ]
