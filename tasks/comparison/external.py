"""Scores on images of other hospitals, and how much each experiment loses against its own Test score."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from tasks.common.raw import CLASSES
from tasks.comparison.differences import difference
from tasks.comparison.document import Difference, ExternalRow, ExternalSet, ExternalTarget, Score
from tasks.comparison.inputs import EnsembleResults, ExternalResults, Scored, Table
from tasks.comparison.scores import predictor, score_rows_of
from tasks.scoring.intervals import ROUNDING, Interval, between_samples, scores

#: Metrics of images with a reference mask, and of images without one.
MASKED, EMPTY = ("iou", "dice", "missed"), ("false_positive_rate",)
#: Metrics whose change is computed.
CHANGING = ("iou", "dice")
TEST = "Test"

Found = dict[str, dict[str, Score]]  # experiment -> metric -> score


def external(
    results: ExternalResults, scored: Sequence[Scored], ensembles: Sequence[EnsembleResults]
) -> ExternalSet:
    """The scores on an external dataset, for each target of which it has masks."""
    halves: dict[str, list[Scored]] = {}
    for of_half in scored:
        if of_half.experiments:
            halves.setdefault(of_half.target, []).append(of_half)
    found = (_target(results, target, of_target, ensembles) for target, of_target in halves.items())
    return ExternalSet(
        name=results.name,
        source=results.source,
        images=results.images,
        unusable=results.unusable,
        overlapping=len(results.overlap),
        identical=int(results.overlap["exact"].sum()),
        targets=tuple(of_target for of_target in found if of_target),
    )


def _target(
    results: ExternalResults, target: str, halves: Sequence[Scored], ensembles: Sequence[EnsembleResults]
) -> ExternalTarget | None:
    """The scores of all experiments that predict the target; None if there are no images."""
    table = results.table(target)
    if not len(table):
        return None
    masked = _masked(table)
    compared = [_compared(table, of_half.table("Test", "all"), of_half.names) for of_half in halves]
    return ExternalTarget(
        target=target,
        images=len(masked),
        empty=len(table) - len(masked),
        classes=_classes(masked),
        covers_training=all(of_half.covers_training for of_half in compared),
        rows=tuple(row for of_half in compared for row in _rows(table, of_half)),
        ensembles=tuple(_ensembles(results.ensemble_table(target), target, halves, ensembles)),
    )


def _ensembles(
    table: Table | None, target: str, halves: Sequence[Scored], ensembles: Sequence[EnsembleResults]
) -> Iterator[ExternalRow]:
    """The scores of the ensembles. Each is a network of its own, so its intervals are over images alone."""
    for half in halves if table else ():
        tests = {
            of.experiment.name: of.rows(target).assign(predictor=of.experiment.name, seed=0)
            for of in ensembles
            if of.experiment.name in half.names
        }
        if table and tests:
            test = Table(pd.concat(tests.values(), ignore_index=True).sort_values(["seed", "id"]), ())
            yield from _rows(table, _compared(table, test, list(tests)))


def _masked(table: Table) -> Table:
    """The images with a reference mask."""
    return table.only(np.flatnonzero(table.nonempty))


def _classes(table: Table) -> tuple[str, ...]:
    found = set(table.strata.tolist())
    return tuple(name for number, name in enumerate(CLASSES) if number in found)


def _rows(table: Table, compared: "_Compared") -> Iterator[ExternalRow]:
    found = _scores(table)
    own, masked = _scores(compared.test), _masked(compared.test)
    for name in compared.names:
        yield ExternalRow(
            experiment=name,
            scores=found[name],
            test_images=len(masked),
            test_classes=_classes(masked),
            test=own[name],
            changes={metric: of_all[name] for metric, of_all in compared.changes.items()},
        )


def _scores(table: Table) -> Found:
    """The scores of each experiment; only those that exist on these images."""
    masked = table.nonempty
    found: Found = {}
    for metrics, images in ((MASKED, masked), (EMPTY, ~masked)):
        rows = score_rows_of(table.only(np.flatnonzero(images)), metrics) if images.any() else ()
        for row in rows:
            found.setdefault(row.name, {}).update(row.scores)
    return found


class _Compared(NamedTuple):
    """Predictors of a half on an external dataset and on Test images."""

    names: list[str]
    test: Table
    changes: dict[str, dict[str, Difference]]  # metric -> experiment -> change
    covers_training: bool


def _compared(table: Table, of_test: Table, names: list[str]) -> _Compared:
    """Compare the external images that have a reference mask with such Test images, see `_like`."""
    test = _like(table, of_test)
    masked, own = _masked(table), _masked(test)
    if not len(masked) or not len(own):
        return _Compared(names, test, {}, covers_training=True)
    # Two samples of images: each class of each sample is drawn by itself.
    strata = np.concatenate([masked.strata, own.strata + len(CLASSES)])
    changes, covered = {}, True
    for metric in CHANGING:
        values = {
            name: between_samples(masked.column(name, metric), own.column(name, metric)) for name in names
        }
        found = scores({name: predictor(own, name, values[name]) for name in names}, strata)
        covered &= found.covers_training
        changes[metric] = {
            name: difference(metric, masked.dataset, TEST, _without_rounding(interval))
            for name, interval in found.intervals.items()
        }
    return _Compared(names, test, changes, covered)


def _without_rounding(interval: Interval) -> Interval:
    """Equal scores on all images of both samples have the change 0, whatever the order of the sums was."""
    rounded = max(abs(interval.low), abs(interval.high)) <= ROUNDING
    return Interval(0.0, 0.0, 0.0) if rounded else interval


def _like(table: Table, test: Table) -> Table:
    """The Test images of the same classes; all of them, if none of these has a reference mask."""
    same = np.isin(test.strata, table.strata)
    return test.only(np.flatnonzero(same)) if (same & test.nonempty).any() else test
