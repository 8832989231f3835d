"""Puts a bundle together from the outputs of earlier stages."""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from tasks.bundles.card import card
from tasks.bundles.drift import take_reference
from tasks.bundles.files import (
    BUNDLE_FILE,
    CARD_FILE,
    FINGERPRINT_FILE,
    GRAPH,
    NETWORKS,
    PARITY,
    TRAINED_ON_FILE,
)
from tasks.bundles.fingerprint import take_fingerprint
from tasks.bundles.schema import (
    SCHEMA_VERSION,
    Bundle,
    DatasetRecord,
    Input,
    Licence,
    NetworkRecord,
    ParityRecord,
    Point,
    ScoreRecord,
    Step,
    TrainedOn,
)
from tasks.bundles.trained_on import hashes_to_text, training_hashes
from tasks.common.files import replacing
from tasks.comparison.document import Document, Ensemble, ExperimentRecord, Score, ScoreRow
from tasks.reporting.limitations import RESEARCH_USE, limitations
from tasks.settings.experiments import training_names
from tasks.settings.prediction import Prediction
from tasks.settings.training import lungs_from

#: Scores that the card and bundle.json state.
METRICS = ("iou", "dice", "hd95", "missed", "false_positive_rate", "ece")
#: Files of a network, and the stage whose output has them.
WEIGHTS = ("weights.safetensors", "network.json")

INTENDED_USE = (
    f"{RESEARCH_USE} Marks {{targets}} on frontal chest X-rays of adults, for research on segmentation."
)
LICENCE_OF_DATA = (
    "The networks were trained on COVID-QU-Ex, whose publishers state CC BY-SA 4.0; read its licence "
    "before you share the bundle."
)
LICENCE_OF_OWN_IMAGES = (
    "The networks were trained on other images than COVID-QU-Ex; check whether their owners allow you to "
    "share the bundle."
)
LICENCE_OF_PHANTOMS = "The networks were trained on synthetic images, which have no licence of their own."
#: Addresses that may leave this machine; a path may name a person.
PUBLIC = ("kaggle://", "https://", "phantom://")


class Outputs(NamedTuple):
    """The folders of earlier stages."""

    converted: Path
    trained: Path
    evaluated: Path
    packed: Path
    audit: Path


def write_bundle(name: str, document: Document, outputs: Outputs, out: Path) -> Bundle:
    """Write the bundle of an experiment under `out`, and return what its bundle.json says."""
    experiment = document.experiment(name)
    with replacing(out) as partial:
        partial.mkdir()
        of_lungs = _lungs_of(experiment, document)
        plan = experiment.plan
        images = outputs.packed, plan["half"], tuple(plan["train_classes"])
        taken = take_fingerprint(*images)
        reference = take_reference(*images, taken)
        fingerprint = taken.to_bytes(reference.arrays() if reference else {})
        (partial / FINGERPRINT_FILE).write_bytes(fingerprint)
        steps = [experiment, of_lungs] if of_lungs else [experiment]
        trained_on = _trained_on(steps, outputs, partial)
        main = _step(experiment, len(experiment.trainings), document, outputs, partial)
        bundle = Bundle(
            schema_version=SCHEMA_VERSION,
            name=name,
            intended_use=INTENDED_USE.format(targets=" and ".join(main.targets)),
            limitations=tuple(limitations(document, [step.name for step in steps])),
            input=Input(image_size=plan["image_size"]),
            # All seeds learned from the lungs of the first seed.
            lungs=_step(of_lungs, 1, document, outputs, partial) if of_lungs else None,
            main=main,
            dataset=_dataset(document, plan["half"]),
            scores=tuple(_scores(name, main.targets, plan["half"], document)),
            plans=document.plans,
            versions=experiment.versions,
            fingerprint=sha256(fingerprint).hexdigest(),
            licence=Licence(code="Apache-2.0", data=_licence_of_data(document)),
            trained_on=trained_on,
        )
        (partial / BUNDLE_FILE).write_text(bundle.to_json(), encoding="utf-8")
        (partial / CARD_FILE).write_text(card(bundle), encoding="utf-8")
    return bundle


def _licence_of_data(document: Document) -> str:
    if document.phantoms:
        return LICENCE_OF_PHANTOMS
    return LICENCE_OF_DATA if document.published else LICENCE_OF_OWN_IMAGES


def _lungs_of(experiment: ExperimentRecord, document: Document) -> ExperimentRecord | None:
    name = lungs_from(str(experiment.plan["images"]))
    return document.experiment(name) if name else None


def _trained_on(experiments: Sequence[ExperimentRecord], outputs: Outputs, out: Path) -> TrainedOn:
    """Write the hashes of the training images of all steps, and describe the file."""
    hashes: set[str] = set()
    for experiment in experiments:
        plan = experiment.plan
        dropped = outputs.audit / "dropped.csv"
        # Each Train and Val image of a cross-validation is one of some network's training images.
        splits = ("Train", "Val") if experiment.folds > 1 else ("Train",)
        hashes |= training_hashes(outputs.packed, dropped, plan["half"], plan["train_classes"], splits)
    content = hashes_to_text(hashes).encode()
    (out / TRAINED_ON_FILE).write_bytes(content)
    complete = all(not experiment.plan.get("start_from") for experiment in experiments)
    return TrainedOn(images=len(hashes), complete=complete, sha256=sha256(content).hexdigest())


def _step(experiment: ExperimentRecord, count: int, document: Document, outputs: Outputs, out: Path) -> Step:
    """Copy the first networks, and describe them."""
    records, plan = experiment.trainings, experiment.plan
    names = training_names(experiment.name, experiment.first.seed, len(records), experiment.folds)
    trainings = list(zip(names, (record.parameters for record in records), strict=True))[:count]
    return Step(
        experiment=experiment.name,
        targets=plan["targets"],
        prediction=Prediction.model_validate(experiment.prediction),
        classes=plan["train_classes"],
        networks=tuple(_network(name, parameters, outputs, out) for name, parameters in trainings),
        ensemble=_ensemble_points(experiment.name, document) if count > 1 else None,
    )


def _ensemble_points(name: str, document: Document) -> dict[Any, Point] | None:
    """The operating points of an experiment's ensemble; None if its networks are not averaged."""
    found = document.ensemble(name)
    if found is None:
        return None
    return {
        target: Point(threshold=threshold, presence=found.presence[target])
        for target, threshold in found.thresholds.items()
    }


def _network(training: str, parameters: int, outputs: Outputs, out: Path) -> NetworkRecord:
    folder = out / NETWORKS / training
    folder.mkdir(parents=True)
    copied = [outputs.converted / training / GRAPH]
    copied += [outputs.trained / training / "network" / name for name in WEIGHTS]
    for file in copied:
        shutil.copyfile(file, folder / file.name)
    evaluated = _json(outputs.evaluated / training / "settings.json")
    described = _json(folder / "network.json")
    return NetworkRecord(
        training=training,
        seed=described["plan"]["seed"],
        parameters=parameters,
        precision=evaluated["precision"],
        points={
            target: Point(threshold=threshold, presence=evaluated["presence"][target])
            for target, threshold in evaluated["thresholds"].items()
        },
        parity=ParityRecord(**_json(outputs.converted / training / PARITY)),
        files={file.name: sha256((folder / file.name).read_bytes()).hexdigest() for file in copied},
    )


def _dataset(document: Document, half: Any) -> DatasetRecord:
    dataset = document.dataset
    counts = {
        count.split: count.usable
        for count in dataset.counts
        if count.half == half and count.image_class == "all" and count.split != "all"
    }
    return DatasetRecord(
        source=document.source if document.source.startswith(PUBLIC) else "a local copy or bucket",
        half=half,
        images=counts,
        fingerprint=dataset.fingerprint,
        phantoms=document.phantoms,
    )


def _scores(name: str, targets: Sequence[str], half: str, document: Document) -> Iterator[ScoreRecord]:
    if ensemble := document.ensemble(name):
        yield from _ensemble_scores(ensemble)
        return
    for section in document.predicted:
        if section.half != half or section.target not in targets:
            continue
        for image_set in section.image_sets:
            yield from _row_scores(section.target, image_set.name, image_set.row(name), METRICS)
        for group in section.sizes:
            images = f"covid, infection {group.least:.1%} to {group.most:.1%} of the image"
            row = next(row for row in group.rows if row.name == name)
            yield from _row_scores(section.target, images, row, METRICS[:1])


def _ensemble_scores(ensemble: Ensemble) -> Iterator[ScoreRecord]:
    for found in ensemble.targets:
        for score in found.scores:
            if score.split == "Test" and score.metric in METRICS:
                yield _record(found.target, score.image_set, score.images, score.metric, score.ensemble)


def _row_scores(target: Any, image_set: str, row: ScoreRow, metrics: Sequence[str]) -> Iterator[ScoreRecord]:
    for metric in metrics:
        score = row.scores.get(metric)
        if score and math.isfinite(score.value):
            yield _record(target, image_set, score.images or row.images, metric, score)


def _record(target: Any, image_set: str, images: int, metric: str, score: Score) -> ScoreRecord:
    interval = score.interval
    known = interval is not None and math.isfinite(interval.low + interval.high)
    return ScoreRecord(
        target=target,
        image_set=image_set,
        images=images,
        metric=metric,
        value=score.value,
        low=interval.low if interval and known else None,
        high=interval.high if interval and known else None,
    )


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
