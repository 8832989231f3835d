"""Symptoms of a failing training in its history: dead predictions, divergence, and a loss that is not finite.

All functions take the history of one seed, one row per epoch, as written by the stage train. A running
training prints the symptoms as warnings; the report shows those of a finished one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

if TYPE_CHECKING:  # pandas takes half a second to load, and the report needs only the words
    import pandas as pd

#: Minimum number of consecutive epochs that count as a symptom.
LASTING = 3
#: A network that marks less than the share NO of the Val pixels counts as marking none, more than EVERY as
#: marking all. (The lungs cover a quarter of an X-ray; a failed network marked 97.6%, and scored like all
#: foreground.)
NO, EVERY = 1e-4, 0.95
#: The training loss has diverged if it exceeds its lowest value so far by more than this factor.
DIVERGED = 2.0


#: How pydantic reads and writes symptoms as part of comparison.json.
JSON = {"extra": "forbid", "ser_json_inf_nan": "strings"}


@dataclass(frozen=True)
class DeadEpochs:
    """Consecutive epochs (inclusive bounds) in which the network marked no pixel or nearly every pixel."""

    __pydantic_config__: ClassVar = JSON

    kind: Literal["dead"] = field(default="dead", kw_only=True)
    marks: Literal["no", "nearly every"]
    targets: tuple[str, ...]  # empty if there is only one
    first_epoch: int
    last_epoch: int
    kept_epoch: int
    throughout: bool  # from the first epoch to the last
    ended: bool  # before the last epoch
    spoils: bool  # the kept epoch is one of them, so the scores are affected

    def concerns(self, targets: Collection[str]) -> bool:
        """Whether it is about one of these targets."""
        return bool(targets) and (not self.targets or any(target in targets for target in self.targets))


@dataclass(frozen=True)
class DivergedEpochs:
    """Consecutive epochs (inclusive bounds) with a training loss far above its lowest value so far."""

    __pydantic_config__: ClassVar = JSON

    kind: Literal["diverged"] = field(default="diverged", kw_only=True)
    first_epoch: int
    last_epoch: int
    lowest_loss: float
    lowest_loss_epoch: int
    highest_loss: float
    ended: bool  # before the last epoch
    spoils: Literal[False] = False


@dataclass(frozen=True)
class NonFiniteLoss:
    """The loss became NaN or infinite, which ended the training."""

    __pydantic_config__: ClassVar = JSON

    kind: Literal["non_finite"] = field(default="non_finite", kw_only=True)
    epoch: int
    kept_epoch: int  # 0: no epoch ended before, so the network is untrained

    @property
    def spoils(self) -> bool:
        return not self.kept_epoch


AnySymptom = DeadEpochs | DivergedEpochs | NonFiniteLoss


def new_symptoms(history: pd.DataFrame) -> list[str]:
    """Warnings about symptoms that begin to count with the last row, so that each is printed once.

    A network that is dead from the first epoch on may still recover; most do if an epoch has only a few
    steps. It is not known in advance whether it will, so the warning is printed and mentions this.
    """
    return [
        *(_dead_since(spell, targets) for spell, targets in _dead(history).items() if spell.just_counts),
        *(_diverged_since(history, spell) for spell in _diverged(history) if spell.just_counts),
    ]


def symptoms(history: pd.DataFrame) -> list[AnySymptom]:
    """The symptoms of a finished training, and whether they affect the kept epoch (best `val_score`).

    A network that was dead only in its first epochs, none of which was kept, started slowly: that is no
    symptom. A dead kept epoch is always a symptom, even if it is the only one.
    """
    scores = history["val_score"]
    kept = int(history["epoch"].iloc[scores.argmax()]) if scores.notna().any() else 0
    dead = [
        _dead_through(spell, targets, kept)
        for spell, targets in _dead(history).items()
        if spell.holds(kept) or (spell.lasts and not (spell.opens and spell.ends))
    ]
    diverged = [_diverged_through(history, spell) for spell in _diverged(history) if spell.lasts]
    unfinished = history["epoch"][scores.isna()].astype(int)
    return [*dead, *diverged, *(NonFiniteLoss(epoch, kept) for epoch in unfinished)]


def marking(share: float) -> Literal["no", "nearly every", ""]:
    """What a network with this share of marked pixels marks: "no" or "nearly every" pixel; otherwise ""."""
    if share < NO:
        return "no"
    return "nearly every" if share > EVERY else ""


class Spell(NamedTuple):
    """Consecutive epochs (inclusive bounds) with the same symptom."""

    what: str
    first: int
    last: int
    opens: bool  # starts with the first epoch
    ends: bool  # ended before the last epoch

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


def _spells(history: pd.DataFrame, shown: pd.Series[str]) -> Iterator[Spell]:
    """The longest runs of epochs with the same symptom; "" means no symptom."""
    epochs = history["epoch"].astype(int).tolist()
    for what, run in groupby(zip(shown, epochs, strict=True), key=lambda pair: pair[0]):
        of_run = [epoch for _, epoch in run]
        if what:
            yield Spell(what, of_run[0], of_run[-1], of_run[0] == epochs[0], of_run[-1] < epochs[-1])


# Dead predictions


def _dead(history: pd.DataFrame) -> dict[Spell, list[str]]:
    """The spells of dead predictions, with their targets; "" if there is only one target."""
    columns = [str(column) for column in history if str(column).startswith("val_marked_")]
    found: dict[Spell, list[str]] = {}
    for column in columns or ["val_marked"]:
        for spell in _spells(history, history[column].map(marking)):
            found.setdefault(spell, []).append(column.removeprefix("val_marked").removeprefix("_"))
    return found


def pixel_words(marks: str, targets: Sequence[str]) -> str:
    """For example "no Val pixel as infection"."""
    names = (" or " if marks == "no" else " and ").join(targets)
    return f"{marks} Val pixel{' as ' if names else ''}{names}"


def _dead_since(spell: Spell, targets: list[str]) -> str:
    slow = "normal at first if epochs have few steps; otherwise " if spell.opens else ""
    pixels = pixel_words(spell.what, targets)
    return f"marks {pixels} since epoch {spell.first}; {slow}lower learning_rate or change loss"


def _dead_through(spell: Spell, targets: list[str], kept: int) -> DeadEpochs:
    named = tuple(target for target in targets if target)
    marks: Literal["no", "nearly every"] = "no" if spell.what == "no" else "nearly every"
    return DeadEpochs(
        marks, named, spell.first, spell.last, kept, spell.throughout, spell.ends, spell.holds(kept)
    )


# Divergence


def _diverged(history: pd.DataFrame) -> list[Spell]:
    loss = history["train_loss"]
    above = loss > DIVERGED * loss.cummin().shift()
    return list(_spells(history, above.map({True: "diverged", False: ""})))


def _lowest_before(history: pd.DataFrame, spell: Spell) -> tuple[float, int]:
    """The lowest training loss before the spell, and its epoch."""
    before = history[history["epoch"] < spell.first]
    lowest = before.iloc[before["train_loss"].argmin()]
    return float(lowest["train_loss"]), int(lowest["epoch"])


def _diverged_since(history: pd.DataFrame, spell: Spell) -> str:
    lowest, epoch = _lowest_before(history, spell)
    return (
        f"the training loss was {lowest:.4g} in epoch {epoch}, is {history['train_loss'].iloc[-1]:.4g} and "
        f"more than twice as high since epoch {spell.first}; lower learning_rate"
    )


def _diverged_through(history: pd.DataFrame, spell: Spell) -> DivergedEpochs:
    of_spell = history["epoch"].between(spell.first, spell.last)
    highest = float(history.loc[of_spell, "train_loss"].max())
    return DivergedEpochs(spell.first, spell.last, *_lowest_before(history, spell), highest, spell.ends)
