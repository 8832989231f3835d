"""Writing results so that a path never holds half of one."""

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
    """Give a path beside `path` to write a file or fill a folder at; rename it to `path` at the end.

    After an exception nothing is left beside `path`, and what was at `path` is untouched. (Between an old
    folder and its successor there is a moment with neither; a file has none.) An OSError
    that names no file (a full disk does not) gets `path` as its file name.
    """
    beside = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(beside)  # what a killed run left
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
    """Write a table as CSV whose bytes depend on its content alone."""
    table.to_csv(path, index=False, float_format="%.8g", lineterminator="\n")
