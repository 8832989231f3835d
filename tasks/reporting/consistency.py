"""Whether a printed IoU and a printed Dice can come from one set of predictions.

Of one mask Dice = 2 IoU / (1 + IoU), with pooled counts too. Over several images the means keep
IoU <= Dice <= 2 IoU / (1 + IoU): each image's Dice is no smaller than its IoU, and the map from one to
the other is concave, so Jensen's inequality bounds the mean Dice from above.
"""

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

ROUNDING = 1e-9  # float arithmetic's own, far below any printed digit


class PrintedPair(NamedTuple):
    """Scores in [0, 1] that a report prints for the same predictions."""

    where: str
    iou: float
    dice: float
    decimals: int


PRINTED_PAIRS = (
    PrintedPair("Report 2, lung", 0.9344, 0.5767, 4),
    PrintedPair("Report 2, lung, as in its conclusion", 0.9344, 0.5737, 4),
    PrintedPair("Report 2, infection", 0.3421, 0.8692, 4),
    PrintedPair("Report 2, last epoch", 0.6473, 0.6785, 4),
)


def check_pair(iou: float, dice: float, decimals: int) -> str | None:
    """What is impossible about scores printed with so many decimals; None where they can belong together.

    Either score may be off by half a unit of its last digit.
    """
    half = 0.5 * 10**-decimals
    least, most = iou - half, greatest_dice(min(iou + half, 1.0))
    if least - half - ROUNDING <= dice <= most + half + ROUNDING:
        return None
    broken = "is below the IoU" if dice < iou else "is above 2 IoU / (1 + IoU)"
    return (
        f"Dice {dice:.{decimals}f} {broken}: over the same images an IoU of {iou:.{decimals}f} "
        f"allows a Dice of {iou:.{decimals}f} to {most:.{decimals}f} only."
    )


def greatest_dice(iou: float) -> float:
    """2 IoU / (1 + IoU): the Dice of one mask with that IoU, and the largest mean over several."""
    return 2 * iou / (1 + iou)


def possible_pairs(scores: Sequence[float], decimals: int) -> list[tuple[float, float]]:
    """Which two of the printed scores can be (IoU, Dice) of one set of predictions, whatever they are called.

    Of report 2's four final scores no two can, so no mix-up of names or targets explains them.
    """
    return [(iou, dice) for iou, dice in permutations(scores, 2) if check_pair(iou, dice, decimals) is None]
