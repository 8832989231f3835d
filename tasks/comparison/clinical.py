"""Answers to clinical questions about infection, for each experiment.

Is there an infection at all, how much of the lung does it cover, and how well is it found by its size?
"""

from collections.abc import Iterator

import numpy as np

from tasks.comparison.document import Detection, Limits, Roc, SizeGroup
from tasks.comparison.inputs import ExperimentResults, Scored, Table
from tasks.comparison.scores import as_score, marked_area, score_rows_of, share_of_images
from tasks.scoring.agreement import agreement
from tasks.scoring.detection import roc_auc, roc_curve
from tasks.scoring.intervals import Interval

OTHERS = ("controls", "non_covid", "normal")  # image sets that COVID-19 images are distinguished from
QUARTERS = 4
SIZE_METRICS = ("iou", "dice", "sensitivity", "missed")


def detection(scored: Scored) -> tuple[Detection, ...]:
    """Whether each experiment distinguishes COVID-19 Test images from others.

    Empty for lungs, and if there are no others.
    """
    covid = scored.table("Test", "covid")
    others = {name: scored.table("Test", name) for name in OTHERS if name in scored.image_sets()}
    if scored.target != "infection" or not len(covid) or not others:
        return ()
    return tuple(_detection(e.name, covid, others) for e in scored.experiments)


def _detection(name: str, covid: Table, others: dict[str, Table]) -> Detection:
    return Detection(
        experiment=name,
        sensitivity=share_of_images(marked_area(covid, name) > 0),
        specificity={
            image_set: share_of_images(marked_area(table, name) == 0) for image_set, table in others.items()
        },
        curves=tuple(_roc(name, covid, image_set, table) for image_set, table in others.items()),
    )


def _roc(name: str, covid: Table, image_set: str, table: Table) -> Roc:
    """By the mean probability of an image, which is the infected area that the network expects.

    The area and its interval are means over the seeds, because DeLong's variance is that of one network.
    """
    positive, negative = (each.column(name, "mean_probability") for each in (covid, table))
    areas = [roc_auc(*of_seed) for of_seed in zip(positive, negative, strict=True)]
    curve = roc_curve(positive[0], negative[0])
    return Roc(
        image_set=image_set,
        images=len(covid) + len(table),
        area=as_score(Interval(*(float(np.mean(part)) for part in zip(*areas, strict=True)))),
        false_positive_rate=tuple(np.round(curve.false_positive_rate, 6).tolist()),
        sensitivity=tuple(np.round(curve.sensitivity, 6).tolist()),
    )


def limits(scored: Scored) -> tuple[Limits, ...]:
    """How the predicted infected share of the lung agrees with the reference, on COVID-19 Test images."""
    found = (_limits(e) for e in scored.experiments) if scored.target == "infection" else iter(())
    return tuple(of_one for of_one in found if of_one)


def _limits(e: ExperimentResults) -> Limits | None:
    """None if the experiment predicts no lungs. The first seed's shares."""
    rows = e.first_seed("infection", "covid")  # lacks the share columns where no lungs are known
    shares = rows.reindex(columns=["true_share", "predicted_share"]).dropna().astype(float)
    if shares.empty:
        return None
    reference, predicted = shares["true_share"].to_numpy(), shares["predicted_share"].to_numpy()
    found = agreement(predicted, reference)
    return Limits(
        experiment=e.name,
        images=found.images,
        bias=as_score(found.bias),
        lower=as_score(found.lower),
        upper=as_score(found.upper),
        error=float(np.abs(predicted - reference).mean()),
        reference=tuple(reference.tolist()),
        predicted=tuple(predicted.tolist()),
    )


def sizes(scored: Scored) -> tuple[SizeGroup, ...]:
    """Scores on the quarters of the main Test images by the reference mask's area, smallest first."""
    table = scored.table("Test", scored.main)
    if scored.target != "infection" or np.count_nonzero(table.nonempty) < 2 * QUARTERS:
        return ()
    return tuple(_size_groups(scored, table))


def _size_groups(scored: Scored, table: Table) -> Iterator[SizeGroup]:
    areas, has = table.reference_area, table.nonempty
    order = np.flatnonzero(has)[np.argsort(areas[has], kind="stable")]
    for quarter in np.array_split(order, QUARTERS):
        rows = score_rows_of(table.only(quarter), SIZE_METRICS)
        yield SizeGroup(
            least=float(areas[quarter].min()),
            most=float(areas[quarter].max()),
            images=len(quarter),
            rows=tuple(row for row in rows if row.kind == "experiment"),
        )
