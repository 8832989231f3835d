"""The histories of trainings, also of those that still run: in this checkout and in the checkouts of runs.

A training holds its folder in use while it runs, and writes its network at the end. On a file system without
locks, a training without a network counts as running.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path

from flows.repository.checkout import CHECKOUTS
from tasks.support.locks import is_in_use

#: Folder of the trainings in a checkout.
TRAINED = Path("artifacts/train")

PLANS = Path("artifacts/plans")

FILE = "history.csv"

#: Stages of trainings begin with this.
STAGE = "train@"


class State(StrEnum):
    RUNNING = "training"
    FINISHED = "finished"
    STOPPED = "stopped"
    """It was interrupted or failed. The same command continues it."""


@dataclass(frozen=True)
class History:
    """The epochs of a training so far."""

    training: str
    """Its key in dvc.yaml, such as report1_bce-seed0."""
    run: str
    """Name of the run in whose checkout it is; empty for the user's own checkout."""
    state: State
    planned: int | None
    """The number of epochs in its plan, or None if the plan is missing."""
    columns: dict[str, tuple[float, ...]]
    """The columns of history.csv, with a value for each epoch; NaN where the table has none."""

    @property
    def name(self) -> str:
        return f"{self.run}: {self.training}" if self.run else self.training

    @property
    def epochs(self) -> tuple[int, ...]:
        return tuple(int(epoch) for epoch in self.columns.get("epoch", ()))

    @property
    def last_epoch(self) -> int:
        """The last finished epoch, from 1; 0 if none has ended."""
        return self.epochs[-1] if self.epochs else 0

    @property
    def best_epoch(self) -> int:
        """The epoch with the highest val_score, the first of several; 0 if there is none."""
        scores = self.of("val_score")
        finite = [(-score, epoch) for epoch, score in zip(self.epochs, scores, strict=True) if score == score]
        return min(finite)[1] if finite else 0

    @property
    def span(self) -> int:
        """The last epoch of its drawing: the last planned one while it runs."""
        planned = self.planned if self.state is State.RUNNING and self.planned else 0
        return max(self.last_epoch, planned)

    def of(self, column: str) -> tuple[float, ...]:
        """The values of a column; NaN for each epoch if an older table lacks it."""
        return self.columns.get(column, (math.nan,) * len(self.epochs))

    def at(self, column: str, epoch: int) -> float:
        """The value of a column in an epoch; NaN if there is none."""
        return dict(zip(self.epochs, self.of(column), strict=True)).get(epoch, math.nan)

    def dice_columns(self) -> list[str]:
        """The columns with the Val Dice of each target. With a single target, it is val_dice."""
        own = [column for column in self.columns if column.startswith("val_dice_")]
        return own or [column for column in ("val_dice",) if column in self.columns]


def read_columns(text: str) -> dict[str, tuple[float, ...]]:
    """Parse a history.csv. Cells without a number are NaN. Rows without an epoch, or partial, are skipped."""
    header, *rows = list(csv.reader(io.StringIO(text))) or [[]]
    if "epoch" not in header:
        return {}
    epoch = header.index("epoch")
    whole = [row for row in rows if len(row) == len(header) and row[epoch].isdecimal()]
    return {name: tuple(_number(row[place]) for row in whole) for place, name in enumerate(header)}


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def folder_of(checkout: Path, stage: str) -> Path:
    """Return the folder of a training's results, from its stage train@KEY."""
    return checkout / TRAINED / stage.removeprefix(STAGE)


def read_history(checkout: Path, training: str, run: str = "") -> History | None:
    """Return what a training has written so far, or None if it neither runs nor has a history."""
    folder, text = checkout / TRAINED / training, ""
    with suppress(FileNotFoundError, NotADirectoryError):
        text = (folder / FILE).read_text(encoding="utf-8")
    state = _state(folder)
    if not text and state is not State.RUNNING:
        return None
    return History(training, run, state, _planned(checkout, training), read_columns(text))


def _state(folder: Path) -> State:
    finished, in_use = (folder / "network").exists(), is_in_use(folder)
    if in_use or (in_use is None and not finished):
        return State.RUNNING
    return State.FINISHED if finished else State.STOPPED


def _planned(checkout: Path, training: str) -> int | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((checkout / PLANS / f"{training}.json").read_text(encoding="utf-8"))["epochs"])
    return None


def find_histories(repository: Path, keys: Sequence[str] = ()) -> list[History]:
    """Return the histories of this checkout, then those of the checkouts of runs, by name.

    Args:
        keys: trainings, stages of trainings, or patterns of them; by default all.
    """
    return [
        history
        for run, checkout in checkouts(repository)
        for folder in sorted((checkout / TRAINED).glob("[!.]*"))
        if not keys or any(fnmatchcase(folder.name, key.removeprefix(STAGE)) for key in keys)
        if (history := read_history(checkout, folder.name, run))
    ]


def checkouts(repository: Path) -> Iterator[tuple[str, Path]]:
    """Yield the repository and the checkouts of its runs, each with the name of the run."""
    yield "", repository
    for path in sorted((repository / CHECKOUTS).glob("*/")):
        if path.is_dir():
            yield path.name, path
