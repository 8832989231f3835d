"""Checks whether a printed IoU and a printed Dice can come from one set of predictions.

For one mask, Dice = 2 IoU / (1 + IoU); the same holds for pooled counts. For means over several images,
IoU <= Dice <= 2 IoU / (1 + IoU): each image's Dice is at least its IoU, and the map from IoU to Dice is
concave, so Jensen's inequality bounds the mean Dice from above.
"""

from collections.abc import Iterator, Sequence
from itertools import permutations

from tasks.comparison.document import (
    Consistency,
    Fault,
    OwnPair,
    PrintedIou,
    PrintedMae,
    PrintedPair,
    ScoreRow,
    Section,
)
from tasks.comparison.published import PRINTED_PAIRS, PUBLISHED, REPORT_1

ROUNDING = 1e-9  # error of float arithmetic, far below any printed digit
DECIMALS = 6  # in metrics.json
AVERAGES = {"mean": "", "nonempty": "_nonempty", "pooled": "_pooled"}  # kind of average -> metric suffix
SAME_IOU = 0.005  # a predictor's IoU this close to the printed one counts as equal
MAE_BOUND = 255.0  # the largest error of one pixel on the widest scale of an 8-bit image


def check_pair(iou: float, dice: float, decimals: int) -> Fault | None:
    """The contradiction between scores printed with this many decimals; None if they are possible together.

    Either score may be off by half a unit in its last digit.
    """
    half = 0.5 * 10**-decimals
    least, most = iou - half, greatest_dice(min(iou + half, 1.0))
    if least - half - ROUNDING <= dice <= most + half + ROUNDING:
        return None
    return Fault(kind="below" if dice < iou else "above", highest_dice=most)


def greatest_dice(iou: float) -> float:
    """2 IoU / (1 + IoU): the Dice of one mask with this IoU, and the largest mean Dice over several masks."""
    return 2 * iou / (1 + iou)


def possible_pairs(scores: Sequence[float], decimals: int) -> list[tuple[float, float]]:
    """All ordered pairs of the printed scores that are possible as (IoU, Dice), ignoring their names.

    No two of report 2's four final scores form such a pair, so swapped names or targets do not explain them.
    """
    return [(iou, dice) for iou, dice in permutations(scores, 2) if check_pair(iou, dice, decimals) is None]


def consistency(sections: Sequence[Section], published: bool) -> Consistency:
    """Check the printed scores and all scores in these sections.

    `published`: whether scores on these images are published.
    """
    infection = next((s for s in sections if s.target == "infection" and s.experiments), None)
    final = [pair for pair in PRINTED_PAIRS if pair.final]
    scores = [score for pair in final for score in (pair.iou, pair.dice)]
    own = [pair for section in sections for pair in _own_pairs(section)]
    return Consistency(
        printed_iou=_printed_iou(infection) if infection else None,
        printed_maes=_printed_maes() if infection else (),
        printed_pairs=tuple(_checked(pair) for pair in (*PRINTED_PAIRS, *_published_pairs(published))),
        finals_in_any_order=bool(possible_pairs(scores, final[0].decimals)),
        own_pairs=len(own),
        broken_pairs=tuple(pair for pair in own if isinstance(pair, OwnPair)),
    )


def _checked(pair: PrintedPair) -> PrintedPair:
    return pair.model_copy(update={"fault": check_pair(pair.iou, pair.dice, pair.decimals)})


def _published_pairs(published: bool) -> Iterator[PrintedPair]:
    """Pairs from the literature; none for other images than those of COVID-QU-Ex."""
    for of_target in PUBLISHED.values() if published else ():
        for p in of_target:
            if p.dice is not None:
                where = f"{p.source}, {p.measured_on}"
                yield PrintedPair(where=where, iou=p.iou, dice=p.dice, decimals=p.decimals)


def _own_pairs(section: Section) -> Iterator[OwnPair | None]:
    """One item per pair of scores: the contradiction, or None if the pair is possible."""
    for split, image_sets in (("Val", section.val), ("Test", section.image_sets)):
        for image_set in image_sets:
            for row in image_set.rows:
                place = {"target": section.target, "split": split, "image_set": image_set.name}
                yield from _pairs_of(row, place)


def _pairs_of(row: ScoreRow, place: dict[str, str]) -> Iterator[OwnPair | None]:
    for average, suffix in AVERAGES.items():
        iou, dice = row.value(f"iou{suffix}"), row.value(f"dice{suffix}")
        if iou is not None and dice is not None and iou == iou and dice == dice:
            yield _own_pair(row, place, average, iou, dice)


def _own_pair(row: ScoreRow, place: dict[str, str], average: str, iou: float, dice: float) -> OwnPair | None:
    fault = check_pair(iou, dice, DECIMALS)
    if fault is None:
        return None
    return OwnPair(
        name=row.name,
        kind=row.kind,
        **place,
        average=average,
        iou=iou,
        dice=dice,
        decimals=DECIMALS,
        fault=fault,
    )


def _printed_iou(infection: Section) -> PrintedIou | None:
    """Report 1's IoU, and the IoU of marking every pixel of the COVID-19 Test images."""
    covid = infection.image_set("covid")
    row = next((row for row in covid.baselines if row.name == "all_foreground"), None) if covid else None
    if row is None:
        return None
    printed = REPORT_1[0].scores
    iou = row.scores["iou"].value
    return PrintedIou(
        printed_iou=printed["iou"],
        printed_mae_255=printed["mae_255"],
        images=row.images,
        iou=iou,
        mae_255=row.scores["mae_255"].value,
        same=abs(iou - printed["iou"]) <= SAME_IOU,
    )


def _printed_maes() -> tuple[PrintedMae, ...]:
    """The printed values that exceed the bound of any mean absolute error."""
    return tuple(
        PrintedMae(name=printed.name, mae_255=printed.scores["mae_255"], bound=MAE_BOUND)
        for printed in REPORT_1
        if printed.scores["mae_255"] > MAE_BOUND
    )
