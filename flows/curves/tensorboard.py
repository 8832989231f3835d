"""Write histories as TensorBoard event files, which need no retraining: also those of old trainings.

FOLDER/TRAINING/events.out.tfevents.*        a training of this checkout
FOLDER/RUN/TRAINING/events.out.tfevents.*    a training of a run
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flows.curves.histories import History
from tasks.support.cli import InputError

#: End of the names of our files. No other file is ever deleted.
SUFFIX = ".cxr-watch"

#: Columns that are no scalars.
SKIPPED = ("seed", "epoch")


class EventFiles:
    """Event files of histories. Each value is written once: tag is the column, step the epoch.

    Tags are grouped as TensorBoard groups them: loss/train_loss, loss/val_loss, and val/val_dice, ...
    """

    def __init__(self, folder: Path) -> None:
        """Create it. Files are written by `update`.

        Raises:
            InputError: TensorBoard is not installed, or the folder is a file.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("--tensorboard: TensorBoard is not installed: pip install tensorboard") from None
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--tensorboard {folder}: not a folder")
        self._make, self._folder = SummaryWriter, folder
        self._writers: dict[Path, Any] = {}
        self._written: dict[Path, History] = {}

    def update(self, histories: Iterable[History]) -> None:
        """Write what is new. A training that started over gets a new file."""
        for history in histories:
            place = self._folder / history.run / history.training
            before = self._written.get(place)
            if before is not None and not _continues(history, before):
                self._writers.pop(place).close()
                before = None
            if history.last_epoch and (before is None or history.last_epoch > before.last_epoch):
                self._write(place, history, before.last_epoch if before else 0)
                self._written[place] = history

    def _write(self, place: Path, history: History, after: int) -> None:
        if place not in self._writers:
            for old in place.glob(f"events.out.tfevents.*{SUFFIX}"):
                old.unlink()
            self._writers[place] = self._make(str(place), filename_suffix=SUFFIX)
        writer = self._writers[place]
        for number, epoch in enumerate(history.epochs):
            for column in history.columns:
                value = history.columns[column][number]
                if epoch > after and column not in SKIPPED and value == value:
                    writer.add_scalar(f"{_group(column)}/{column}", value, epoch)
        writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def _continues(history: History, before: History) -> bool:
    """Whether a history has all rows of an earlier one."""
    count = len(before.epochs)
    losses = history.of("train_loss")[:count]
    # As text, because NaN is not equal to NaN.
    return history.epochs[:count] == before.epochs and repr(losses) == repr(before.of("train_loss"))


def _group(column: str) -> str:
    if column.endswith("_loss"):
        return "loss"
    return "val" if column.startswith("val_") else "training"
