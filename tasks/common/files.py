"""Writes results atomically: a path never holds a partial result."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write a file or folder to; rename it to `path` at the end.

    After an exception the temporary path is removed and `path` is unchanged. Replacing a folder is not
    atomic: for a moment neither the old nor the new one exists. Replacing a file is. An OSError without a
    file name (as raised for a full disk) gets `path` as its file name.
    """
    beside = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(beside)  # left by a killed run
    try:
        yield beside
        if path.is_dir():
            _remove(path)
        beside.replace(path)
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        _remove(beside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV; equal tables give identical bytes."""
    table.to_csv(path, index=False, float_format="%.8g", lineterminator="\n")
