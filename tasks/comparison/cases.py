"""Selects the images to show, and computes the distribution of scores over images.

All pictures show the masks of an experiment's first seed.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from tasks.common.raw import CLASSES, IMAGE_SETS
from tasks.comparison.document import MOST_SPREADS, Figures, ShownImage, ShownPrediction, Spread, WorstCases
from tasks.comparison.inputs import ExperimentResults, Inputs, Scored
from tasks.comparison.trainings import BOTH

BINS = 25
WORST = 4  # images of each class
REPORT_2 = "report2"  # the experiment with the settings of report 2


def figures(inputs: Inputs, scored: Scored, positions: Sequence[int]) -> Figures:
    """The Test images selected in `report.figures`, with each experiment's prediction of this target."""
    ids = figure_ids(inputs.table, scored.half, scored.main)
    places = [f"{scored.half}/Test/{name}/" for name in IMAGE_SETS[scored.main]]
    shown = tuple(
        ShownImage(
            image_id=image_id,
            why="figure",
            position=position,
            references=(scored.target,),
            predictions=tuple(
                _prediction(e, image_id, scored.target)
                for e in scored.experiments
                if image_id in set(e.images["id"])
            ),
        )
        for position in positions
        for image_id in ids[position - 1 : position]
    )
    return Figures(
        shown=shown,
        missing=tuple(position for position in positions if position > len(ids)),
        images=len(ids),
        rejected=int(inputs.rejected["id"].str.startswith(tuple(places)).sum()),
    )


def figure_ids(table: pd.DataFrame, half: str, image_set: str) -> list[str]:
    """The images of a half's Test split that `report.figures` can select, in file-name order."""
    rows = table[(table["half"] == half) & (table["split"] == "Test")]
    return sorted(rows.loc[rows["class"].isin(IMAGE_SETS[image_set]), "id"])


def _prediction(e: ExperimentResults, image_id: str, target: str) -> ShownPrediction:
    rows = e.first_seed(target)
    row = rows[rows["id"] == image_id].iloc[0]
    return ShownPrediction(
        experiment=e.name,
        target=target,
        iou=float(row["iou"]),
        dice=float(row["dice"]),
        marked=float((row["tp"] + row["fp"]) / row[["tp", "fp", "fn", "tn"]].sum()),
    )


def class_cases(inputs: Inputs, half: str, ranking: Sequence[str]) -> tuple[ShownImage, ...]:
    """The first Test image of each class in file-name order, with the predictions of `shown_of_both`."""
    table = inputs.table[(inputs.table["half"] == half) & (inputs.table["split"] == "Test")]
    shown = shown_of_both({e.name: e for e in inputs.experiments}, ranking)
    return tuple(
        ShownImage(
            image_id=image_id,
            why="class",
            references=BOTH,
            predictions=tuple(_prediction(e, image_id, target) for e in shown for target in BOTH),
        )
        for image_class in CLASSES
        for image_id in sorted(table.loc[table["class"] == image_class, "id"])[:1]
    )


def shown_of_both(
    experiments: Mapping[str, ExperimentResults], ranking: Sequence[str]
) -> list[ExperimentResults]:
    """Of the experiments that predict lung and infection: the one of report 2 and the best on Val.

    If there are fewer than three, all of them. `ranking` has the experiments by decreasing score on Val.
    """
    both = [experiments[name] for name in ranking if experiments[name].predicts_both]
    return [e for e in both if e.name == REPORT_2 or e is both[0] or len(both) < 3]


def spreads(scored: Scored, ranking: Sequence[str]) -> tuple[Spread, ...]:
    """For the experiments with the best scores on Val."""
    experiments = {e.name: e for e in scored.experiments}
    leaders = [experiments[name] for name in ranking[:MOST_SPREADS]]
    found = [(e, e.first_seed(scored.target, scored.main).dropna(subset=["iou"])) for e in leaders]
    return tuple(_spread(e, scored.target, rows) for e, rows in found if len(rows))


def worst(scored: Scored, ranking: Sequence[str]) -> tuple[WorstCases, ...]:
    """The worst images of each class for the experiment with the best score on Val.

    Of images with a reference mask, those with the lowest IoU; of the others, those with the largest
    predicted area, as far as anything is predicted.
    """
    if not ranking:
        return ()
    e = next(e for e in scored.experiments if e.name == ranking[0])
    rows = e.first_seed(scored.target)
    found = []
    for image_class in CLASSES:
        of_class = rows[rows["class"] == image_class]
        with_reference = of_class[of_class["tp"] + of_class["fn"] > 0]
        alarms = of_class[(of_class["tp"] + of_class["fn"] == 0) & (of_class["fp"] > 0)]
        largest = alarms.sort_values(["fp", "id"], ascending=[False, True])
        shown = [
            *(_worst_image(e, scored.target, image_id, "worst") for image_id in with_reference["id"][:WORST]),
            *(_worst_image(e, scored.target, image_id, "false alarm") for image_id in largest["id"][:WORST]),
        ]
        if shown:
            found.append(WorstCases(experiment=e.name, image_class=image_class, shown=tuple(shown)))
    return tuple(found)


def _worst_image(
    e: ExperimentResults, target: str, image_id: str, why: Literal["worst", "false alarm"]
) -> ShownImage:
    return ShownImage(
        image_id=image_id,
        why=why,
        references=(target,),
        predictions=(_prediction(e, image_id, target),),
    )


def _spread(e: ExperimentResults, target: str, rows: pd.DataFrame) -> Spread:
    iou = rows["iou"].to_numpy(dtype=float)
    low, high = np.quantile(iou, [0.25, 0.75])
    ids = rows["id"].tolist()
    picks = {"best": ids[-1], "median": ids[(len(ids) - 1) // 2], "worst": ids[0]}
    return Spread(
        experiment=e.name,
        images=len(iou),
        counts=tuple(int(count) for count in np.histogram(iou, bins=BINS, range=(0, 1))[0]),
        median=float(np.median(iou)),
        lower_quartile=float(low),
        upper_quartile=float(high),
        share_below_half=float((iou < 0.5).mean()),
        zeros=int((iou == 0).sum()),
        shown=tuple(
            ShownImage.model_validate(
                {
                    "image_id": image_id,
                    "why": why,
                    "references": (target,),
                    "predictions": (_prediction(e, image_id, target),),
                }
            )
            for why, image_id in picks.items()
        ),
    )
