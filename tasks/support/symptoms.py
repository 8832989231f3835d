"""What a training's history shows of its going wrong: dead predictions and divergence.

All functions take the history of one seed, a row an epoch, as the stage train writes it. A running training
says it in plain sentences; of a finished one the report does.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import pandas as pd

#: Epochs on end from which on something counts as a symptom.
LASTING = 3
#: A network that marks a smaller share of the Val pixels marks none, one that marks a greater share all. (The
#: lungs are a quarter of an X-ray; a network that broke down marked 97.6 %, and scored as all foreground.)
NO, EVERY = 1e-4, 0.95
#: A train loss above this many times its lowest value until then has diverged.
DIVERGED = 2.0


class DeadEpochs(NamedTuple):
    """Epochs on end, both bounds included, in which a network told no pixel from another."""

    marks: str  # "no" or "nearly every" pixel
    targets: tuple[str, ...]  # empty where there is a single one
    first_epoch: int
    last_epoch: int
    kept_epoch: int
    throughout: bool  # from the first epoch to the last
    ended: bool  # before the last epoch
    spoils: bool  # the epoch kept is one of them, so the network's scores show it


class DivergedEpochs(NamedTuple):
    """Epochs on end, both bounds included, with a train loss far above its lowest value until then."""

    first_epoch: int
    last_epoch: int
    lowest_loss: float
    lowest_loss_epoch: int
    highest_loss: float
    ended: bool  # before the last epoch


def new_symptoms(history: pd.DataFrame) -> list[str]:
    """What counts as a symptom since the last row, to be said once, when it begins.

    A network that is dead from the first epoch on may yet come alive, as most do where an epoch is a few
    steps. Whether it will is not known in time, so this is said, and said with it.
    """
    return [
        *(_dead_since(spell, targets) for spell, targets in _dead(history).items() if spell.just_counts),
        *(_diverged_since(history, spell) for spell in _diverged(history) if spell.just_counts),
    ]


def symptoms(history: pd.DataFrame) -> list[DeadEpochs | DivergedEpochs]:
    """What a finished training showed, and whether the epoch kept, the best by validation Dice, shows it.

    One that was dead in its first epochs alone, and was not kept then, showed nothing: it began slowly. The
    epoch kept is told of even where it is the only dead one.
    """
    kept = int(history["epoch"].iloc[history["val_dice"].argmax()])
    dead = [
        _dead_through(spell, targets, kept)
        for spell, targets in _dead(history).items()
        if spell.holds(kept) or (spell.lasts and not (spell.opens and spell.ends))
    ]
    return [*dead, *(_diverged_through(history, spell) for spell in _diverged(history) if spell.lasts)]


def marking(share: float) -> str:
    """What a network of this share of marked pixels marks: "no" or "nearly every" pixel; "" where some."""
    if share < NO:
        return "no"
    return "nearly every" if share > EVERY else ""


class Spell(NamedTuple):
    """Epochs on end, both bounds included, that show the same."""

    what: str
    first: int
    last: int
    opens: bool  # begins with the first epoch
    ends: bool  # was over before the last epoch

    @property
    def throughout(self) -> bool:
        return self.opens and not self.ends

    @property
    def lasts(self) -> bool:
        return self.last - self.first + 1 >= LASTING

    @property
    def just_counts(self) -> bool:
        return not self.ends and self.last - self.first + 1 == LASTING

    def holds(self, epoch: int) -> bool:
        return self.first <= epoch <= self.last


def _spells(history: pd.DataFrame, shown: "pd.Series[str]") -> Iterator[Spell]:
    """The longest runs of epochs that show the same, those left out that show ""."""
    epochs = history["epoch"].astype(int).tolist()
    for what, run in groupby(zip(shown, epochs, strict=True), key=lambda pair: pair[0]):
        of_run = [epoch for _, epoch in run]
        if what:
            yield Spell(what, of_run[0], of_run[-1], of_run[0] == epochs[0], of_run[-1] < epochs[-1])


# DeadEpochs predictions


def _dead(history: pd.DataFrame) -> dict[Spell, list[str]]:
    """The spells in which the network told no pixel from another, with their targets, "" for a single one."""
    columns = [str(column) for column in history if str(column).startswith("val_marked_")]
    found: dict[Spell, list[str]] = {}
    for column in columns or ["val_marked"]:
        for spell in _spells(history, history[column].map(marking)):
            found.setdefault(spell, []).append(column.removeprefix("val_marked").removeprefix("_"))
    return found


def _pixels(spell: Spell, targets: list[str]) -> str:
    """For instance "no Val pixel as infection"."""
    names = (" or " if spell.what == "no" else " and ").join(targets)
    return f"{spell.what} Val pixel{' as ' if names else ''}{names}"


def _dead_since(spell: Spell, targets: list[str]) -> str:
    slow = "usual at first where an epoch is a few steps, else " if spell.opens else ""
    return (
        f"marks {_pixels(spell, targets)} since epoch {spell.first}; {slow}lower learning_rate or change loss"
    )


def _dead_through(spell: Spell, targets: list[str], kept: int) -> DeadEpochs:
    named = tuple(target for target in targets if target)
    return DeadEpochs(
        spell.what, named, spell.first, spell.last, kept, spell.throughout, spell.ends, spell.holds(kept)
    )


# Divergence


def _diverged(history: pd.DataFrame) -> list[Spell]:
    loss = history["train_loss"]
    above = loss > DIVERGED * loss.cummin().shift()
    return list(_spells(history, above.map({True: "diverged", False: ""})))


def _lowest_before(history: pd.DataFrame, spell: Spell) -> tuple[float, int]:
    """The lowest train loss before the spell, and its epoch."""
    before = history[history["epoch"] < spell.first]
    lowest = before.iloc[before["train_loss"].argmin()]
    return float(lowest["train_loss"]), int(lowest["epoch"])


def _diverged_since(history: pd.DataFrame, spell: Spell) -> str:
    lowest, epoch = _lowest_before(history, spell)
    return (
        f"the train loss was {lowest:.4g} in epoch {epoch}, is {history['train_loss'].iloc[-1]:.4g} and "
        f"above twice that since epoch {spell.first}; lower learning_rate"
    )


def _diverged_through(history: pd.DataFrame, spell: Spell) -> DivergedEpochs:
    of_spell = history["epoch"].between(spell.first, spell.last)
    highest = float(history.loc[of_spell, "train_loss"].max())
    return DivergedEpochs(spell.first, spell.last, *_lowest_before(history, spell), highest, spell.ends)
