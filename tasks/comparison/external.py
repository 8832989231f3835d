"""Scores on images of other hospitals, and how much each experiment loses against its own Test score."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.common.raw import CLASSES
from tasks.comparison.differences import difference
from tasks.comparison.document import Difference, ExternalRow, ExternalSet, ExternalTarget, Score
from tasks.comparison.inputs import ExternalResults, Scored, Table
from tasks.comparison.scores import predictor, score_rows_of
from tasks.scoring.intervals import between_samples, scores

#: Metrics of images with a reference mask, and of images without one.
MASKED, EMPTY = ("iou", "dice", "missed"), ("false_positive_rate",)
#: Metrics whose change is computed.
CHANGING = ("iou", "dice")
TEST = "Test"

Positions = NDArray[np.intp]
Found = dict[str, dict[str, Score]]  # experiment -> metric -> score


def external(results: ExternalResults, scored: Sequence[Scored]) -> ExternalSet:
    """The scores on an external dataset, for each target of which it has masks."""
    return ExternalSet(
        name=results.name,
        source=results.source,
        images=results.images,
        unusable=results.unusable,
        overlapping=len(results.overlap),
        identical=int(results.overlap["exact"].sum()),
        targets=tuple(_targets(results, scored)),
    )


def _targets(results: ExternalResults, scored: Sequence[Scored]) -> Iterator[ExternalTarget]:
    for target in dict.fromkeys(of_half.target for of_half in scored):
        halves = [of_half for of_half in scored if of_half.target == target and of_half.experiments]
        table = results.table(target)
        if not len(table) or not halves:
            continue
        masked = np.flatnonzero(table.nonempty)
        classes = _classes(table, masked)
        found, covered = _scores(table), True
        rows = []
        for of_half in halves:
            compared = _compared(table.only(masked), of_half, classes)
            covered &= compared.covers_training
            own = _scores(compared.test)
            rows += [
                ExternalRow(
                    experiment=name,
                    scores=found[name],
                    test_images=int(compared.test.nonempty.sum()),
                    test_classes=_classes(compared.test, np.flatnonzero(compared.test.nonempty)),
                    test=own[name],
                    changes={metric: of_all[name] for metric, of_all in compared.changes.items()},
                )
                for name in of_half.names
            ]
        yield ExternalTarget(
            target=target,
            images=len(masked),
            empty=len(table) - len(masked),
            classes=classes,
            covers_training=covered,
            rows=tuple(rows),
        )


def _classes(table: Table, positions: Positions) -> tuple[str, ...]:
    found = set(table.strata[positions].tolist())
    return tuple(name for number, name in enumerate(CLASSES) if number in found)


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
    """The experiments of a half on an external dataset and on Test images."""

    test: Table
    changes: dict[str, dict[str, Difference]]  # metric -> experiment -> change
    covers_training: bool


def _compared(masked: Table, of_half: Scored, classes: Sequence[str]) -> _Compared:
    """Compare the external images with a reference mask with Test images of the same classes.

    If no Test image of these classes has a reference mask, all Test images are taken.
    """
    everything = of_half.table("Test", "all")
    numbers = [number for number, name in enumerate(CLASSES) if name in classes]
    same = np.isin(everything.strata, numbers)
    test = everything.only(np.flatnonzero(same)) if (same & everything.nonempty).any() else everything
    own = test.only(np.flatnonzero(test.nonempty))
    if not len(masked) or not len(own):
        return _Compared(test, {}, True)
    # Two samples of images: each class of each sample is drawn by itself.
    strata = np.concatenate([masked.strata, own.strata + len(CLASSES)])
    changes, covered = {}, True
    for metric in CHANGING:
        predictors = {
            name: predictor(own, name, between_samples(masked.column(name, metric), own.column(name, metric)))
            for name in of_half.names
        }
        intervals = scores(predictors, strata)
        covered &= intervals.covers_training
        changes[metric] = {
            name: difference(metric, masked.dataset, TEST, interval)
            for name, interval in intervals.intervals.items()
        }
    return _Compared(test, changes, covered)
