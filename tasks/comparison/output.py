"""Writes the output folder of the stage compare: the document, tables as CSV, and the report's pictures."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.common.files import replacing, write_table
from tasks.common.png import SIGNATURE
from tasks.common.raw import KIND_WORDS, Kind, encode_grey, encode_mask, write_member
from tasks.comparison.document import (
    COMPARISON_FILE,
    PICTURES_FILE,
    Bounds,
    Difference,
    Document,
    Score,
    ScoreRow,
    Section,
    ensemble_name,
    prediction_name,
    reference_name,
    spread_name,
    xray_name,
)
from tasks.comparison.inputs import EnsembleResults, ExperimentResults, Inputs
from tasks.comparison.trainings import out_of_fold
from tasks.support.cli import InputError

Row = dict[str, Any]

PLACE = ["half", "target", "split", "image_set"]
ESTIMATE = ["value", "low", "high"]
COLUMNS = {
    "scores": [*PLACE, "name", "kind", "images", "metric", *ESTIMATE, "seed_sd"],
    "differences": [*PLACE, "metric", "first", "second", "images", *ESTIMATE, "winner", "covers_training"],
    "sizes": [*PLACE, "least", "most", "name", "images", "metric", *ESTIMATE],
    "detection": [*PLACE, "name", "metric", *ESTIMATE],
    "steps": [*PLACE, "experiment", "step", "metric", *ESTIMATE],
    "reliability": [*PLACE, "experiment", "mean_probability", "true_share"],
}
#: Of external.csv: the score on the external images, the score on Test images, and the change.
EXTERNAL_COLUMNS = [
    *("dataset", "target", "name", "metric", "images", *ESTIMATE),
    *("test_images", "test_value", "test_low", "test_high", "change", "change_low", "change_high"),
]


ENSEMBLE_COLUMNS = [
    *("half", "target", "experiment", "split", "image_set", "metric", "images", "networks", "networks_low"),
    *("networks_high", *ESTIMATE, "change", "change_low", "change_high"),
]


def write_comparison(document: Document, inputs: Inputs, out: Path) -> None:
    """Write `comparison.json`, a table for each of `COLUMNS` and `pictures.zip` under `out`.

    Also `external.csv`, if there are external datasets, `ensembles.csv`, if there are ensembles, and
    `out_of_fold.csv`, if experiments have folds.
    """
    rows = {
        "scores": _scores,
        "differences": _differences,
        "sizes": _sizes,
        "detection": _detection,
        "steps": _steps,
        "reliability": _reliability,
    }
    with replacing(out) as partial:
        partial.mkdir()
        (partial / COMPARISON_FILE).write_text(document.to_json(), encoding="utf-8")
        for name, columns in COLUMNS.items():
            found = [row for section in document.sections for row in rows[name](section)]
            write_table(pd.DataFrame(found, columns=columns), partial / f"{name}.csv")
        if document.external:
            table = pd.DataFrame(_external(document), columns=EXTERNAL_COLUMNS)
            write_table(table, partial / "external.csv")
        if document.ensembles:
            table = pd.DataFrame(_ensembles(document), columns=ENSEMBLE_COLUMNS)
            write_table(table, partial / "ensembles.csv")
        if document.cross_validations:
            tables = [out_of_fold(e) for e in inputs.experiments if e.folds > 1]
            write_table(pd.concat(tables), partial / "out_of_fold.csv")
        with zipfile.ZipFile(partial / PICTURES_FILE, "w") as archive:
            for member, content in sorted(_pictures(document, inputs).items()):
                write_member(archive, member, content)


def _place(section: Section, image_set: str, split: str = "Test") -> Row:
    return {"half": section.half, "target": section.target, "split": split, "image_set": image_set}


def _estimate(value: float, interval: Bounds | None) -> Row:
    return {"value": value, **(interval.model_dump() if interval else {})}


def _scores(section: Section) -> Iterator[Row]:
    for split, image_sets in (("Val", section.val), ("Test", section.image_sets)):
        for image_set in image_sets:
            place = _place(section, image_set.name, split)
            for row in image_set.rows:
                yield from _of_row(place, row, row.kind)


def _of_row(place: Row, row: ScoreRow, kind: str) -> Iterator[Row]:
    for metric, score in row.scores.items():
        yield place | {
            "name": row.name,
            "kind": kind,
            "images": score.images or row.images,
            "metric": metric,
            **_estimate(score.value, score.interval),
            "seed_sd": score.seed_sd,
        }


def _differences(section: Section) -> Iterator[Row]:
    on_val = [("Val", "all", section.choice.family)] if section.choice else []
    on_test = [
        ("Test", image_set.name, family) for image_set in section.image_sets for family in image_set.families
    ]
    for split, image_set, family in (*on_val, *on_test):
        shared = {"images": family.images, "covers_training": family.covers_training}
        for d in family.differences:
            place = _place(section, image_set, split)
            yield place | shared | d.model_dump() | _estimate(d.value, d.interval)


def _sizes(section: Section) -> Iterator[Row]:
    for group in section.sizes:
        place = _place(section, "covid") | {"least": group.least, "most": group.most}
        for row in group.rows:
            yield from _of_row(place, row, row.kind)


def _detection(section: Section) -> Iterator[Row]:
    for found in section.detection:
        named = [("covid", "sensitivity", found.sensitivity)]
        named += [(image_set, "specificity", score) for image_set, score in found.specificity.items()]
        named += [(curve.image_set, "roc_auc", curve.area) for curve in found.curves]
        for image_set, metric, score in named:
            place = _place(section, image_set)
            yield (
                place | {"name": found.experiment, "metric": metric} | _estimate(score.value, score.interval)
            )


def _steps(section: Section) -> Iterator[Row]:
    for step in section.steps:
        for change in step.changes:
            yield _place(section, change.image_set, change.split) | {
                "experiment": step.experiment,
                "step": step.step,
                "metric": change.metric,
                **_estimate(change.value, change.interval),
            }


def _reliability(section: Section) -> Iterator[Row]:
    for found in section.reliability:
        for line in found.lines:
            for probability, share in zip(line.mean_probability, line.true_share, strict=True):
                yield _place(section, line.image_set) | {
                    "experiment": found.experiment,
                    "mean_probability": probability,
                    "true_share": share,
                }


def _external(document: Document) -> Iterator[Row]:
    for dataset in document.external:
        for found in dataset.targets:
            ensembles = ((ensemble_name(row.experiment), row) for row in found.ensembles)
            for name, row in (*((row.experiment, row) for row in found.rows), *ensembles):
                place = {"dataset": dataset.name, "target": found.target, "name": name}
                for metric, score in row.scores.items():
                    of_masks = metric != "false_positive_rate"
                    yield place | {
                        "metric": metric,
                        "images": found.images if of_masks else found.empty,
                        **_estimate(score.value, score.interval),
                        "test_images": row.test_images if of_masks else None,
                        **_prefixed("test_", row.test.get(metric)),
                        **_change(row.changes.get(metric)),
                    }


def _ensembles(document: Document) -> Iterator[Row]:
    for ensemble in document.ensembles:
        for found in ensemble.targets:
            for score in found.scores:
                yield {
                    "half": found.half,
                    "target": found.target,
                    "experiment": ensemble.experiment,
                    "split": score.split,
                    "image_set": score.image_set,
                    "metric": score.metric,
                    "images": score.images,
                    "networks": score.networks.value,
                    **_prefixed("networks_", score.networks),
                    **_estimate(score.ensemble.value, score.ensemble.interval),
                    **_change(score.change),
                }


def _prefixed(prefix: str, score: Score | None) -> Row:
    found = _estimate(score.value, score.interval) if score else {}
    return {f"{prefix}{name}": value for name, value in found.items()}


def _change(change: Difference | None) -> Row:
    if change is None:
        return {}
    bounds = change.interval.model_dump() if change.interval else {}
    return {"change": change.value, **{f"change_{name}": value for name, value in bounds.items()}}


def _pictures(document: Document, inputs: Inputs) -> dict[str, bytes]:
    """Member name -> PNG file, for all X-rays and masks that the report shows."""
    experiments: dict[str, ExperimentResults | EnsembleResults] = {e.name: e for e in inputs.experiments}
    experiments |= {ensemble_name(e.experiment.name): e for e in inputs.ensembles}
    found = {}
    for pair in document.dataset.shown_pairs:
        for image_id in (pair.first, pair.second):
            found[xray_name(image_id)] = _png(inputs, image_id, "image")
    for shown in document.shown_images():
        image_id = shown.image_id
        found[xray_name(image_id)] = _png(inputs, image_id, "image")
        for target in shown.references:
            found[reference_name(target, image_id)] = _png(inputs, image_id, target)
        for p in shown.predictions:
            mask = experiments[p.experiment].prediction_png(p.target, image_id)
            found[prediction_name(p.experiment, p.target, image_id)] = mask
    of_ensembles = {e.experiment.name: e for e in inputs.ensembles}
    for ensemble in document.ensembles:
        results = of_ensembles[ensemble.experiment]
        for of in ensemble.targets:
            for shown in of.shown:
                member = spread_name(ensemble.experiment, of.target, shown.image_id)
                found[member] = results.spread_png(of.target, shown.image_id)
    return found


def _png(inputs: Inputs, image_id: str, target: str) -> bytes:
    """The file as PNG: itself, if it is one and no mask with other values than 0 and 255."""
    kind: Kind = target  # type: ignore[assignment]  # a target is named like the kind of its mask
    content = inputs.raw.read_bytes(image_id, kind)
    if content is None:
        if inputs.raw.is_empty_by_class(image_id, kind):
            return encode_mask(inputs.raw.read(image_id, kind) > 0)
        raise InputError(f"data/raw: {image_id} has no {KIND_WORDS[kind]}")
    if kind == "image":
        return content if content.startswith(SIGNATURE) else encode_grey(inputs.raw.read(image_id, kind))
    levels = inputs.raw.read(image_id, kind)
    if content.startswith(SIGNATURE) and ((levels == 0) | (levels == 255)).all():
        return content
    return encode_mask(levels > 0)
