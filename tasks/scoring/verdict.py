"""Judges whether one experiment is better than another, from the scores of both on the same images.

A difference in scores may be noise. An experiment counts as better only if the 95% confidence interval of
the paired difference excludes zero. See `tasks.scoring.intervals` for what the interval covers.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.metrics import Selection, selection_weights
from tasks.scoring.intervals import Interval, paired_difference
from tasks.support.cli import InputError

Word = Literal["better", "worse", "no significant difference", "same", "new", "not comparable"]

#: The columns of images.csv that a verdict depends on.
COLUMNS = ("seed", "split", "target", "id", "class", "tp", "fp", "fn", "tn", "dice")
COUNTS = ["tp", "fp", "fn", "tn"]


class Verdict(NamedTuple):
    """How a challenger compares with a champion on one target. Scores are means over images and seeds."""

    word: Word
    """What the challenger is. `new`: there is no champion."""
    challenger: float
    """The selection score of the challenger, in [0, 1]; higher is better."""
    champion: float | None = None
    """The selection score of the champion; None if there is none, or if the two are not comparable."""
    difference: Interval | None = None
    """Challenger minus champion, with its 95% interval; None likewise."""
    covers_training: bool = False
    """Whether the interval includes the variation between trainings, not only between images."""
    reason: str = ""
    """Why the two are not comparable."""


def judge(challenger: pd.DataFrame, champion: pd.DataFrame, selection: Selection) -> Verdict:
    """Compare the scores of two experiments on one target, image by image.

    To choose between experiments, judge their Val rows: Test rows used for a choice no longer give an
    unbiased score.

    Args:
        challenger: rows of images.csv for one split and target, of one or several seeds.
        champion: likewise. Its seeds need not be those of the challenger.
        selection: the score that decides; see `models.metrics.DiceSums.score`.

    Returns:
        `same` if seeds and pixel counts are identical. `not comparable` if an image is missing from any seed
        of either, if reference masks differ, or if only one image counts. Otherwise the word follows from
        the interval.
    """
    first, second = _scores(challenger, selection), _scores(champion, selection)
    if fault := _fault(challenger, champion) or _too_few(challenger, selection):
        return Verdict("not comparable", _mean(first), reason=fault)
    classes = challenger.drop_duplicates("id").set_index("id")["class"]
    strata, _ = pd.factorize(classes[first.index])
    second = second.loc[first.index]
    found = paired_difference(_by_seed(first), _by_seed(second), strata)
    word = "same" if _are_identical(challenger, champion) else _word(found.interval)
    return Verdict(word, _mean(first), _mean(second), found.interval, found.covers_training)


def selection_score(rows: pd.DataFrame, selection: Selection) -> float:
    """The score of one split and target, a mean over the seeds; see `models.metrics.DiceSums.score`."""
    return _mean(_scores(rows, selection))


def _word(difference: Interval) -> Word:
    if not difference.excludes_zero:
        return "no significant difference"
    return "better" if difference.value > 0 else "worse"


# --- reading ------------------------------------------------------------------------------------------------


def read_rows(tables: Iterable[Path]) -> pd.DataFrame:
    """Read the Val rows, for all targets, from the tables images.csv of an experiment's trainings.

    If no image is in two tables, they are those of a cross-validation: each image is scored by the network
    that did not see it. All rows then have the seed of the first network.

    Raises:
        InputError: a table has no such rows, or lacks a column.
    """
    rows = pd.concat([_read(table) for table in tables], ignore_index=True)
    if not rows.duplicated(["target", "id"]).any():
        rows["seed"] = rows["seed"].min()
    return rows


def _read(table: Path) -> pd.DataFrame:
    try:
        rows = pd.read_csv(table, usecols=lambda column: column in COLUMNS)
    except ValueError as error:  # of pandas, for an empty or broken file
        raise InputError(f"{table.name} cannot be read: {error}") from None
    if "split" not in rows:
        raise InputError(f"no Val rows in {table.name}, which an older stage evaluate wrote")
    if missing := [column for column in COLUMNS if column not in rows]:
        raise InputError(f"no column {missing[0]} in {table.name}")
    rows = rows[rows["split"] == "Val"]
    if rows.empty:
        raise InputError(f"no Val rows in {table.name}")
    return rows


# --- the scores of images -----------------------------------------------------------------------------------


def _scores(rows: pd.DataFrame, selection: Selection) -> pd.DataFrame:
    """Weighted Dice: one row per image, one column per seed."""
    dice = rows.pivot(index="id", columns="seed", values="dice")
    return dice.mul(_weights(rows, selection), axis=0)


def _weights(rows: pd.DataFrame, selection: Selection) -> pd.Series:
    """The weight of each image, by its id."""
    nonempty = _has_reference(rows)
    return pd.Series(selection_weights(nonempty.to_numpy(), selection), nonempty.index)


def _has_reference(rows: pd.DataFrame) -> pd.Series:
    """Whether the reference mask of each image is not empty."""
    return (rows["tp"] + rows["fn"]).groupby(rows["id"]).max() > 0


def _by_seed(scores: pd.DataFrame) -> NDArray[np.float64]:
    """(S, N)."""
    return scores.to_numpy(dtype=float).T


def _mean(scores: pd.DataFrame) -> float:
    return float(scores.mean().mean())


# --- whether two sets of rows can be compared ---------------------------------------------------------------


def _fault(challenger: pd.DataFrame, champion: pd.DataFrame) -> str:
    """Why two sets of rows cannot be compared; empty if they can."""
    images = set(challenger["id"]) | set(champion["id"])
    shared = _in_every_seed(challenger) & _in_every_seed(champion)
    if len(shared) < len(images):
        return f"other images: {len(shared)} of {len(images)} are in both"
    first, second = _references(challenger), _references(champion)
    differing = int((first != second.loc[first.index]).any(axis=1).sum())
    if differing:
        return f"other reference masks: {differing} of {len(images)} differ"
    return ""


def _too_few(rows: pd.DataFrame, selection: Selection) -> str:
    single = int((_weights(rows, selection) > 0).sum()) == 1
    return "a single image gives no interval" if single else ""


def _in_every_seed(rows: pd.DataFrame) -> set[str]:
    seeds = rows.groupby("id")["seed"].nunique()
    return set(seeds.index[seeds == rows["seed"].nunique()])


def _references(rows: pd.DataFrame) -> pd.DataFrame:
    """The number of reference pixels and of all pixels of each image, which no network changes."""
    of_images = rows.drop_duplicates("id").set_index("id")
    return pd.DataFrame({"area": of_images["tp"] + of_images["fn"], "pixels": of_images[COUNTS].sum(axis=1)})


def _are_identical(challenger: pd.DataFrame, champion: pd.DataFrame) -> bool:
    first, second = (
        rows.set_index(["seed", "id"])[[*COUNTS, "dice"]].sort_index() for rows in (challenger, champion)
    )
    return first.index.equals(second.index) and bool((first == second).all(axis=None))
