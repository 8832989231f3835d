"""A tiny pipeline, run as functions up to its bundles."""

from pathlib import Path
from typing import NamedTuple

from tasks.audit import audit
from tasks.baselines import baselines
from tasks.bundles.assemble import Outputs
from tasks.compare import compare
from tasks.convert import convert
from tasks.download import download
from tasks.evaluate import evaluate
from tasks.export import export
from tasks.gather import gather
from tasks.lungs import restrict
from tasks.packed.reader import Fold, read_folds
from tasks.plan import plan as write_plans
from tasks.preprocess import preprocess
from tasks.settings.changes import parse_assignment, with_changes
from tasks.settings.params import Params, parse_params
from tasks.settings.training import LUNGS
from tasks.sources.open import open_source
from tasks.train import train

#: An experiment on whole images with every step of post-processing and two seeds, and one on predicted lungs.
EXPERIMENTS = ("combined", "two_step_infection")
CHANGES = (
    "export.experiments=all",
    "experiments.combined.seeds=2",
    "epochs=16",  # with fewer, masks are empty
    "training.precision=fp32",  # as ONNX Runtime, on every machine; torch with bf16 differs in single pixels
    "experiments.combined.prediction.min_area=0.01",
    "experiments.two_step_infection.loss=dice_bce",  # marks lesions after few epochs on few images
)


class Pipeline(NamedTuple):
    """The outputs of all stages, under one folder."""

    params: Params
    folder: Path

    @property
    def packed(self) -> Path:
        return self.folder / "data" / "packed" / str(self.params.training.image_size)

    @property
    def raw(self) -> Path:
        return self.folder / "data" / "raw"

    def out(self, stage: str, name: str = "") -> Path:
        return self.folder / "artifacts" / stage / name

    @property
    def outputs(self) -> Outputs:
        folders = (self.out(stage) for stage in ("converted", "train", "evaluation"))
        return Outputs(*folders, self.packed, self.out("audit"))

    def folds(self, training: str) -> tuple[Fold, ...]:
        return read_folds(self.out("audit", "folds") / f"{training}.csv")

    def bundle(self, name: str) -> Path:
        return self.out("bundles", name)


def read_params(text: str, tiny: tuple[str, ...]) -> Params:
    """The params of the pipeline. `text` is params.yaml, `tiny` the changes that make it run in seconds."""
    changes = {assignment: parse_assignment(assignment) for assignment in (*tiny, *CHANGES)}
    return parse_params(with_changes(text, changes, EXPERIMENTS))


def run_pipeline(pipeline: Pipeline) -> None:
    """Run every stage."""
    params = pipeline.params
    source, size = params.data.source, params.training.image_size
    download(open_source(source, Path()), pipeline.raw, source)
    preprocess(pipeline.raw, pipeline.packed, size, 0.0)
    write_plans(params, pipeline.out("plans"))
    folds = pipeline.out("plans") / "folds.csv"
    audit(pipeline.raw, pipeline.packed, pipeline.out("audit"), params.audit, published=False, folds=folds)
    baselines(
        pipeline.packed / "images.csv", pipeline.raw, pipeline.out("baselines", "infection"), "infection"
    )
    for name in sorted(params.plans, key=lambda name: params.plans[name].images.startswith(LUNGS)):
        _training(pipeline, name)
    for name in params.stages.ensemble:
        average(pipeline, name)
    compare_and_export(pipeline, *params.stages.export)


def average(pipeline: Pipeline, experiment: str) -> None:
    """Score the ensemble of an experiment."""
    names = [name for name, plan in pipeline.params.plans.items() if plan.experiment == experiment]
    gathered = pipeline.out("train", names[0]) / "network"
    for name in names[1:]:
        gather(gathered, pipeline.out("train", name) / "network", pipeline.out("ensembles", name))
        gathered = pipeline.out("ensembles", name)
    evaluate(
        pipeline.params.plans[names[0]],
        pipeline.params.experiments[experiment].prediction,
        gathered,
        pipeline.folder / "data" / pipeline.params.experiments[experiment].folder,
        pipeline.raw,
        pipeline.out("evaluation", "ensembles") / experiment,
        folds=pipeline.folds(names[0]),
    )


def compare_and_export(pipeline: Pipeline, *names: str) -> None:
    """Compare the evaluations, and write the bundles of these experiments."""
    compare(
        pipeline.params,
        plans=pipeline.out("plans"),
        trained=pipeline.out("train"),
        evaluated=pipeline.out("evaluation"),
        baselines=pipeline.out("baselines"),
        audit=pipeline.out("audit"),
        packed=pipeline.packed,
        raw=pipeline.raw,
        out=pipeline.out("comparison"),
    )
    for name in names:
        export(name, pipeline.out("comparison"), pipeline.outputs, pipeline.bundle(name))


def _training(pipeline: Pipeline, name: str) -> None:
    plan = pipeline.params.plans[name]
    experiment = pipeline.params.experiments[plan.experiment]
    network, images = pipeline.out("train", name) / "network", pipeline.folder / "data" / experiment.folder
    lungs = pipeline.folder / "data" / "lungs" / plan.experiment
    folds = pipeline.folds(name)
    train(plan, images, pipeline.out("train", name), folds=folds)
    evaluated = pipeline.out("evaluation", name)
    evaluate(plan, experiment.prediction, network, images, pipeline.raw, evaluated, folds=folds)
    convert(plan, experiment.prediction, network, images, evaluated, pipeline.out("converted", name))
    if plan.experiment in pipeline.params.stages.lungs:
        restrict(plan, experiment.prediction, network, images, pipeline.raw, lungs)
