"""How an ensemble compares with its single networks, and whether their disagreement identifies bad masks."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from tasks.comparison.differences import difference
from tasks.comparison.document import (
    Ensemble,
    EnsembleScore,
    EnsembleTarget,
    Rejection,
    ShownImage,
    ShownPrediction,
    ensemble_name,
)
from tasks.comparison.inputs import EnsembleResults, Scored, Table, Values
from tasks.comparison.scores import as_score, marked_area, selection_values, share_of_images
from tasks.scoring.intervals import Predictor, scores
from tasks.scoring.rejection import rejection

NETWORKS, ENSEMBLE = "networks", "ensemble"
METRICS = ("iou", "dice")
SHOWN = 4
POINTS = 100  # of a curve


def ensemble(results: EnsembleResults, scored: list[Scored]) -> Ensemble:
    """The scores and the disagreement of an ensemble, for each target."""
    name = results.experiment.name
    return Ensemble(
        experiment=name,
        networks=len(results.experiment.seeds),
        thresholds=results.thresholds,
        presence=results.presence,
        targets=tuple(_target(results, one) for one in scored if name in one.names),
    )


def _target(results: EnsembleResults, scored: Scored) -> EnsembleTarget:
    return EnsembleTarget(
        half=scored.half,
        target=scored.target,
        scores=tuple(_scores(results, scored)),
        rejection=_rejection(results, scored.target),
        shown=tuple(_shown(results, scored.target)),
    )


def _scores(results: EnsembleResults, scored: Scored) -> Iterator[EnsembleScore]:
    """On Val the score of the choice. On Test images IoU, Dice and misses, false alarms, and that score.

    Of a cross-validation, only Test images: the average of all networks has seen every other image.
    """
    if results.experiment.folds == 1:
        yield from _balanced(results, scored.target, "Val")
    table = _table(results, scored.target, "Test", scored.main)
    for metric in METRICS:
        yield _score(
            table, "Test", scored.main, metric, {name: table.column(name, metric) for name in table.names}
        )
    yield _proportion(table, scored.main, "missed")
    controls = _table(results, scored.target, "Test", "controls")
    if len(controls) and not controls.nonempty.all():
        yield _proportion(controls, "controls", "false_positive_rate")
    yield from _balanced(results, scored.target, "Test")


def _proportion(table: Table, image_set: str, metric: str) -> EnsembleScore:
    """The share of images with a reference mask that are missed, or of the others that are marked."""
    missed = metric == "missed"
    chosen = table.nonempty if missed else ~table.nonempty
    found = {}
    for name in (NETWORKS, ENSEMBLE):
        marked = marked_area(table, name)[:, chosen] > 0
        found[name] = share_of_images(~marked if missed else marked)
    return EnsembleScore(
        split="Test",
        image_set=image_set,
        metric=metric,
        images=int(chosen.sum()),
        networks=found[NETWORKS],
        ensemble=found[ENSEMBLE],
        change=None,
    )


def _balanced(results: EnsembleResults, target: str, split: str) -> Iterator[EnsembleScore]:
    table = _table(results, target, split, "all")
    if len(table) and table.nonempty.any() and not table.nonempty.all():
        values = {name: selection_values(table, name, "balanced") for name in table.names}
        yield _score(table, split, "all", "balanced", values)


def _table(results: EnsembleResults, target: str, split: str, image_set: str) -> Table:
    """The rows of the networks, one per seed, and of the ensemble, as two predictors."""
    of_networks = results.experiment.rows(target, image_set, split).assign(predictor=NETWORKS)
    of_ensemble = results.rows(target, image_set, split).assign(predictor=ENSEMBLE)
    both = pd.concat([of_networks, of_ensemble], ignore_index=True)
    return Table(both.sort_values(["seed", "id"]), ())


def _score(table: Table, split: str, image_set: str, metric: str, values: dict[str, Values]) -> EnsembleScore:
    """Intervals over images alone: both have the same networks, so variation between trainings cancels."""
    mean = values[NETWORKS].mean(axis=0, keepdims=True)
    found = {
        NETWORKS: Predictor(values[NETWORKS], trained=False),
        ENSEMBLE: Predictor(values[ENSEMBLE], trained=False),
        "change": Predictor(values[ENSEMBLE] - mean, trained=False),
    }
    intervals = scores(found, table.strata).intervals
    return EnsembleScore(
        split=split,
        image_set=image_set,
        metric=metric,
        images=len(table),
        networks=as_score(intervals[NETWORKS].clipped(0, 1)),
        ensemble=as_score(intervals[ENSEMBLE].clipped(0, 1)),
        change=difference(metric, ENSEMBLE, NETWORKS, intervals["change"]),
    )


def _rejection(results: EnsembleResults, target: str) -> Rejection:
    rows = results.rows(target)
    found = rejection(rows["disagreement"].to_numpy(dtype=float), rows["dice"].to_numpy(dtype=float))
    chosen = np.unique(np.linspace(0, len(rows) - 1, POINTS).round().astype(int))
    return Rejection(
        images=len(rows),
        coverage=_rounded(found.coverage[chosen]),
        risk=_rounded(found.risk[chosen]),
        best=_rounded(found.best[chosen]),
        random=found.random,
        ratio=as_score(found.ratio) if np.isfinite(found.ratio.value) else None,
    )


def _rounded(values: Values) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)


def _shown(results: EnsembleResults, target: str) -> Iterator[ShownImage]:
    rows = results.rows(target)
    rows = rows[rows["id"].isin(results.with_spread(target))]
    for _, row in rows.sort_values(["disagreement", "id"], ascending=[False, True])[:SHOWN].iterrows():
        predicted = ShownPrediction(
            experiment=ensemble_name(results.experiment.name),
            target=target,
            iou=float(row["iou"]),
            dice=float(row["dice"]),
            marked=float((row["tp"] + row["fp"]) / row[["tp", "fp", "fn", "tn"]].sum()),
        )
        yield ShownImage(
            image_id=str(row["id"]), why="disagreement", references=(target,), predictions=(predicted,)
        )
