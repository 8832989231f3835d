"""What report 2 printed beside what its experiments give here, and the test of every printed pair."""

from collections.abc import Iterator
from typing import NamedTuple

from tasks.reporting.consistency import PRINTED_PAIRS, check_pair
from tasks.reporting.gallery import BOTH
from tasks.reporting.inputs import Experiment, Inputs
from tasks.reporting.settings import PUBLISHED
from tasks.reporting.words import IMAGE_SET_NAMES, formatted, predictor_words, target_words

REPORT_2_HEADINGS = (
    "Dice, lung",
    "IoU, lung",
    "Dice, infection",
    "IoU, infection",
    "Last epoch: loss",
    "Val loss",
    "Dice",
    "IoU",
)
# Its conclusion prints Dice 0.5737 of the lung. It does not say of which split its last-epoch figures are.
REPORT_2_PRINTED = ("0.5767", "0.9344", "0.8692", "0.3421", "0.2947", "–", "0.6785", "0.6473")


def report_2_rows(inputs: Inputs) -> list[tuple[str, tuple[str, ...]]]:
    """A row for each experiment that predicts lung and infection; the last epoch is the first seed's."""
    return [
        (e.name, (*_final(e), *_last_epoch(e)))
        for e in inputs.experiments
        if e.predicts_both and all("all" in e.results[target] for target in BOTH)
    ]


def _final(e: Experiment) -> Iterator[str]:
    return (formatted(e.results[target]["all"][metric], 4) for target in BOTH for metric in ("dice", "iou"))


def _last_epoch(e: Experiment) -> Iterator[str]:
    last = e.history[e.history["seed"] == e.seeds[0]].iloc[-1]
    return (formatted(float(last[column]), 4) for column in ("train_loss", "val_loss", "val_dice", "val_iou"))


class Pair(NamedTuple):
    """An IoU and a Dice that stand for the same predictions."""

    where: str
    iou: float
    dice: float
    decimals: int

    @property
    def fault(self) -> str | None:
        return check_pair(self.iou, self.dice, self.decimals)


def printed_pairs(inputs: Inputs) -> list[Pair]:
    """Those of report 2, which are under test, and the field's, which stand beside no phantoms."""
    published = [
        Pair(f"{p.source}, {p.measured_on}", p.iou, p.dice, p.decimals)
        for p in PUBLISHED
        if p.dice is not None and not inputs.phantoms
    ]
    return [*(Pair(*pair) for pair in PRINTED_PAIRS), *published]


DECIMALS = 6  # of metrics.json
KINDS = {"": "mean per image", "_nonempty": "truth not empty", "_pooled": "pooled"}


def own_pairs(inputs: Inputs) -> list[Pair]:
    """Those of the experiments and of the trivial predictors: per target, image set and kind of average."""
    entries = {e.name: e.results for e in inputs.experiments}
    entries |= {predictor_words(name): results for name, results in inputs.trivial.items()}
    return [
        Pair(f"{name}, {target_words(target)}, {IMAGE_SET_NAMES[image_set]}, {words}", iou, dice, DECIMALS)
        for name, results in entries.items()
        for target, sets in results.items()
        for image_set, scores in sets.items()
        for kind, words in KINDS.items()
        for iou, dice in [(scores.get(f"iou{kind}"), scores.get(f"dice{kind}"))]
        if iou is not None and dice is not None and iou == iou and dice == dice
    ]
