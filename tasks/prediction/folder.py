"""The folder of a prediction run: what is done, and the files for readers.

images.csv               one row per image
masks/TARGET/IMAGE.png   1-bit masks at the images' own size
overlays/IMAGE.jpg       masks drawn over the X-ray
probabilities/TARGET/IMAGE.png   16-bit, 65535 for 1, if asked for
index.html               a page to leaf through the overlays
run.json                 software, bundle, options, and what failed and why
.progress.jsonl          finished images, from which an interrupted run continues
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tasks.common.files import replacing
from tasks.prediction.inputs import PROGRESS
from tasks.prediction.measures import COLUMNS, Cell
from tasks.support.cli import InputError
from tasks.support.locks import alone_in

OVERLAYS = "overlays"
NO_MEASURES: dict[str, float] = {}


class Record(NamedTuple):
    """A finished image."""

    image: str
    """Its name in the folder."""
    source: str
    sha256: str
    """Of the input file."""
    row: dict[str, Cell]
    """Of images.csv."""
    grey: str
    facts: dict[str, str | int]
    files: list[str]
    """The files written for it, relative to the folder."""
    measures: dict[str, float] = NO_MEASURES
    """Of `tasks.bundles.fingerprint`; none in records of earlier versions."""


class Folder:
    """The output folder of a run.

    Args:
        header: what the results depend on besides the images: bundle and options.
        overwrite: whether to remove the results of an earlier run instead of continuing it.

    Raises:
        InputError: the folder holds something else, or results of another bundle or other options, or another
            run is writing there.
    """

    def __init__(self, root: Path, header: Mapping[str, Any], overwrite: bool) -> None:
        self.root, self._progress = root, root / PROGRESS
        self._header = json.dumps(header, sort_keys=True)
        if root.exists() and not root.is_dir():
            raise InputError(f"{root}: not a folder; name another with --out")
        root.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(alone_in(root))
            except BlockingIOError:
                raise InputError(
                    f"{root}: another run is writing there; name another folder with --out"
                ) from None
            self.finished = self._earlier(overwrite)
            with replacing(self._progress) as partial:
                lines = [self._header, *(_line(record) for record in self.finished.values())]
                partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            self._kept = stack.pop_all()

    def close(self) -> None:
        """Let other runs write to the folder."""
        self._kept.close()

    def _earlier(self, overwrite: bool) -> dict[str, Record]:
        """The finished images of an earlier run, by name."""
        if not self._progress.exists():
            if self.root.exists() and any(self.root.iterdir()):
                raise InputError(f"{self.root}: holds other files; name a new or empty folder with --out")
            return {}
        header, records = _read(self._progress)
        if overwrite:
            for record in records:
                self._remove(record)
            return {}
        if header != self._header:
            raise InputError(
                f"{self.root}: holds results of another bundle or other options; name another folder with "
                "--out, or replace them with --overwrite"
            )
        return {record.image: record for record in records}

    def _remove(self, record: Record) -> None:
        for name in record.files:
            file = self.root / name
            if file.resolve().is_relative_to(self.root.resolve()):
                file.unlink(missing_ok=True)

    def forget(self, image: str) -> None:
        """Remove the results of an image, because its file has changed and cannot be predicted any more."""
        if record := self.finished.pop(image, None):
            self._remove(record)

    def is_finished(self, image: str, sha256: str) -> bool:
        """Whether an earlier run predicted these bytes under this name, and its files are still there."""
        record = self.finished.get(image)
        return (
            record is not None
            and record.sha256 == sha256
            and all((self.root / name).is_file() for name in record.files)
        )

    def write(self, name: str, content: bytes) -> str:
        """Write a file, given its name relative to the folder, and return the name."""
        with replacing(self.root / name) as partial:
            partial.write_bytes(content)
        return name

    def finish(self, record: Record) -> None:
        """Record that all files of an image are written."""
        self.finished[record.image] = record
        with self._progress.open("a", encoding="utf-8") as file:
            file.write(f"{_line(record)}\n")

    def write_table(self, records: Sequence[Record]) -> None:
        buffer = io.StringIO()
        table = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
        table.writeheader()
        for record in records:
            table.writerow({name: _cell(record.row.get(name)) for name in COLUMNS})
        self.write("images.csv", buffer.getvalue().encode())


def _cell(value: Cell) -> str:
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t")):
        return f"'{value}"  # a spreadsheet would run it as a formula
    return f"{value:.8g}" if isinstance(value, float) else "" if value is None else str(value)


def _line(record: Record) -> str:
    return json.dumps(record._asdict(), sort_keys=True)


def _read(progress: Path) -> tuple[str, list[Record]]:
    """The header and the records of a progress file. A line that a killed run left unfinished is skipped."""
    lines = progress.read_text(encoding="utf-8", errors="replace").splitlines()
    return (lines[0] if lines else ""), list(_records(lines[1:]))


def _records(lines: Sequence[str]) -> Iterator[Record]:
    for line in lines:
        with suppress(ValueError, TypeError):
            yield Record(**json.loads(line))
