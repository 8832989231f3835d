"""Report 2's printed scores beside those of its experiments here, and the test of each printed pair."""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.comparison.document import Consistency, Fault, OwnPair, PrintedPair, Report2Scores
from tasks.reporting.words import IMAGE_SET_NAMES, formatted, row_words

REPORT_2_COLUMNS = {
    "dice_lung": "Dice, lung",
    "iou_lung": "IoU, lung",
    "dice_infection": "Dice, infection",
    "iou_infection": "IoU, infection",
    "last_train_loss": "Last epoch: loss",
    "last_val_loss": "Last epoch: Val loss",
    "last_val_dice": "Last epoch: Dice",
    "last_val_iou": "Last epoch: IoU",
}


def report_2_cells(scores: Report2Scores) -> list[str]:
    return [formatted(getattr(scores, field), 4) for field in REPORT_2_COLUMNS]


def fault_words(pair: PrintedPair | OwnPair, fault: Fault) -> str:
    broken = "is below the IoU" if fault.kind == "below" else "is above 2 IoU / (1 + IoU)"
    iou, dice, most = (f"{score:.{pair.decimals}f}" for score in (pair.iou, pair.dice, fault.highest_dice))
    allowed = f"over the same images, an IoU of {iou} allows only a Dice of {iou} to {most}"
    return f"Dice {dice} {broken}: {allowed}."


@dataclass(frozen=True)
class PairRow:
    where: str
    iou: float
    dice: float
    fault: str  # empty where the pair is possible


def printed_pairs(found: Consistency) -> list[PairRow]:
    """Pairs from report 2, and pairs from the literature, which a report on phantoms does not show."""
    return [
        PairRow(pair.where, pair.iou, pair.dice, fault_words(pair, pair.fault) if pair.fault else "")
        for pair in found.printed_pairs
    ]


AVERAGES = {"mean": "mean per image", "nonempty": "non-empty reference", "pooled": "pooled"}


def broken_pairs(pairs: Sequence[OwnPair]) -> list[str]:
    """What is wrong with scores of this report, one sentence each."""
    return [
        f"{row_words(pair.name, pair.kind)}, {pair.target}, {pair.split}, {IMAGE_SET_NAMES[pair.image_set]}, "
        f"{AVERAGES[pair.average]}: {fault_words(pair, pair.fault)}"
        for pair in pairs
    ]
