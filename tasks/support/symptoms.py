"""What a training's history shows of its going wrong: dead predictions and divergence, in plain sentences.

All functions take the history of one seed, a row an epoch, as the stage train writes it.
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


class Symptom(NamedTuple):
    text: str
    spoils: bool = False  # the epoch kept shows it, and so do the network's figures


def new_symptoms(history: pd.DataFrame) -> list[str]:
    """What counts as a symptom since the last row, to be said once, when it begins.

    A network that is dead from the first epoch on may yet come alive, as most do where an epoch is a few
    steps. Whether it will is not known in time, so this is said, and said with it.
    """
    return [
        *(_dead_since(spell, targets) for spell, targets in _dead(history).items() if spell.just_counts),
        *(_diverged_since(history, spell) for spell in _diverged(history) if spell.just_counts),
    ]


def symptoms(history: pd.DataFrame) -> list[Symptom]:
    """What a finished training showed, and whether the epoch kept, the best by validation Dice, shows it.

    One that was dead in its first epochs alone, and was not kept then, showed nothing: it began slowly. The
    epoch kept is told of even where it is the only dead one.
    """
    kept = int(history["epoch"].iloc[history["val_dice"].argmax()])
    dead = [
        Symptom(_dead_through(spell, targets, kept), spell.holds(kept))
        for spell, targets in _dead(history).items()
        if spell.holds(kept) or (spell.lasts and not (spell.opens and spell.ends))
    ]
    return [*dead, *(Symptom(_diverged_through(history, s)) for s in _diverged(history) if s.lasts)]


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


# Dead predictions


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


def _dead_through(spell: Spell, targets: list[str], kept: int) -> str:
    epochs, pixels = f"{spell.first} to {spell.last}", _pixels(spell, targets)
    if spell.holds(kept):
        others = f", as epochs {epochs} do" if spell.last > spell.first else ""
        said = f"The epoch kept, {kept}, marks {pixels}{others}: such figures say nothing of network or loss"
    elif spell.ends:
        said = f"Epochs {epochs} mark {pixels}; later ones do not"
    else:
        said = f"Epochs {epochs}, the last, mark {pixels}; the epoch kept, {kept}, is from before"
    way = "more steps (epochs, a smaller batch_size), another" if spell.throughout else "a lower"
    return f"{said}. What may help: {way} learning_rate, another loss."


# Divergence


def _diverged(history: pd.DataFrame) -> list[Spell]:
    loss = history["train_loss"]
    above = loss > DIVERGED * loss.cummin().shift()
    return list(_spells(history, above.map({True: "diverged", False: ""})))


def _before(history: pd.DataFrame, spell: Spell) -> str:
    """The lowest train loss before the spell, and its epoch."""
    before = history[history["epoch"] < spell.first]
    lowest = before.iloc[before["train_loss"].argmin()]
    return f"{lowest['train_loss']:.4g} in epoch {lowest['epoch']:.0f}"


def _diverged_since(history: pd.DataFrame, spell: Spell) -> str:
    return (
        f"the train loss was {_before(history, spell)}, is {history['train_loss'].iloc[-1]:.4g} and above "
        f"twice that since epoch {spell.first}; lower learning_rate"
    )


def _diverged_through(history: pd.DataFrame, spell: Spell) -> str:
    highest = history.loc[history["epoch"].between(spell.first, spell.last), "train_loss"].max()
    end = "; later it recovered" if spell.ends else ", the last"
    return (
        f"The train loss diverged: it was {_before(history, spell)} and up to {highest:.4g} in epochs "
        f"{spell.first} to {spell.last}{end}. What may help: a lower learning_rate."
    )
