"""The folder of a training: its history grows with each epoch, and its network appears at the end."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.common.files import replacing, write_table
from tasks.support.locks import in_use

#: Scores after an epoch that are means over the targets if there are several.
MEANS = ("val_score", "val_dice", "val_iou", "val_marked")

HISTORY = "history.csv"


@contextmanager
def opened(folder: Path) -> Iterator[None]:
    """Empty the folder of a training, and mark it as in use until the training ends, however it ends.

    Without a finished epoch, no folder remains.
    """
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    try:
        with in_use(folder):
            yield
    finally:
        with suppress(OSError):  # it is not empty
            folder.rmdir()


def write_history(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Replace history.csv by the table of all epochs so far. Readers never see a partial file.

    Columns do not depend on the number of rows, so that the file only grows. An epoch in which the loss
    diverged lacks most of them.
    """
    columns = dict.fromkeys((*("seed", "epoch", "train_loss", "val_loss"), *MEANS, *max(rows, key=len)))
    with replacing(folder / HISTORY) as beside:
        write_table(pd.DataFrame(rows, columns=list(columns)), beside)
