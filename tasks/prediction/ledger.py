"""The files in which an inbox's results folder records batches, handled files, and the unfinished batch."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from tasks.bundles.drift import Row
from tasks.common.files import replacing
from tasks.support.cli import InputError

LEDGER, BATCH_FILE, PLAN = "ledger.json", "batch.json", "plan.json"

Verdict = Literal["drifted", "like Val", "none"]


class Handled(NamedTuple):
    """A file of the inbox in the ledger."""

    stamp: str
    """When it was read: see `Arrival`."""
    sha256: str
    """Of its content; empty if it could not be read."""
    tries: int


class Drift(NamedTuple):
    """What the last images look like, compared with the Val images of the bundle."""

    verdict: Verdict
    images: int
    reason: str
    """Why there is no verdict."""
    rows: list[Row]

    def describe(self) -> str:
        """The verdict in words."""
        if self.verdict == "none":
            return f"no verdict on drift: {self.reason}"
        if self.verdict == "like Val":
            return f"the last {self.images} images are like those of Val"
        names = ", ".join(row.measure for row in self.rows if row.drifted)
        return f"the last {self.images} images have drifted ({names})"


@dataclass(frozen=True)
class Batch:
    """What is in batch.json."""

    name: str
    inbox: str
    bundle: str
    sha256: str
    """Of the bundle's bundle.json."""
    predicted: int
    unusual: int
    """Predicted images with a warning."""
    files: list[dict[str, Any]]
    """Each with source, stamp and sha256; a predicted one with image, warnings and measures, else reason."""
    drift: Drift

    @property
    def failed(self) -> list[tuple[str, str]]:
        """The files that could not be predicted, and why."""
        return [(file["source"], file["reason"]) for file in self.files if "reason" in file]

    @property
    def warned(self) -> list[tuple[str, str]]:
        """The predicted files with a warning, and the warning."""
        return [(file["source"], file["warnings"]) for file in self.files if file.get("warnings")]

    def describe(self) -> str:
        """The counts and the verdict in words."""
        counts = f"{self.predicted} predicted"
        counts += f" ({self.unusual} with warnings)" if self.unusual else ""
        counts += f", {len(self.failed)} failed" if self.failed else ""
        return f"{counts}; {self.drift.describe()}"

    @classmethod
    def read(cls, folder: Path) -> Self:
        content = _read(folder / BATCH_FILE)
        drift = content.pop("drift")
        rows = [Row(**row) for row in drift.pop("rows")]
        return cls(**content, drift=Drift(**drift, rows=rows))

    def write(self, folder: Path) -> None:
        drift = self.drift._asdict() | {"rows": [row._asdict() for row in self.drift.rows]}
        _write(folder / BATCH_FILE, asdict(self) | {"drift": drift})


@dataclass
class Ledger:
    """The handled files, by the names that the user knows, and the batches, oldest first."""

    files: dict[str, Handled] = field(default_factory=dict)
    batches: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, results: Path) -> Self:
        try:
            content = _read(results / LEDGER)
        except FileNotFoundError:
            return cls()
        files = {source: Handled(*handled) for source, handled in content["files"].items()}
        return cls(files, content["batches"])

    def add(self, batch: Batch) -> None:
        """Add a batch, unless it was added before."""
        if batch.name in self.batches:
            return
        for file in batch.files:
            before = self.files.get(file["source"])
            tries = before.tries + 1 if before and not file["sha256"] else 1
            self.files[file["source"]] = Handled(file["stamp"], file["sha256"], tries)
        self.batches.append(batch.name)

    def write(self, results: Path) -> None:
        _write(results / LEDGER, {"files": self.files, "batches": self.batches})


@dataclass(frozen=True)
class Plan:
    """What is in plan.json: what a batch is to predict, and with which bundle."""

    name: str
    inbox: str
    model: str
    bundle: str
    sha256: str
    engine: Literal["onnx", "torch"]
    last: int
    files: list[tuple[str, str]]
    """The source of each file, and the name of its output files."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        content = _read(folder / PLAN)
        return cls(**content | {"files": [tuple(file) for file in content["files"]]})

    def write(self, folder: Path) -> None:
        _write(folder / PLAN, asdict(self))


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"{path}: damaged; restore it from a backup, or remove it") from None
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
