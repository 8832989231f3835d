"""Progress as events for programs, in addition to the lines for people.

If the environment variable RETRAIN_EVENTS names a file, a stage appends one line of JSON per event:

    {"time": "2026-11-28T09:30:01.250+00:00", "what": "report1_bce-seed0 epoch 3 of 8", "done": 12,
     "total": 48, "fraction": 0.28125, "scores": {}}

A line is complete when it ends with a newline; readers must ignore a partial line.
"""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")

#: Name of the environment variable; if it is not set, no events are written.
VARIABLE = "RETRAIN_EVENTS"

#: Minimum seconds between two events of one loop, except for the last one.
EVERY = 1.0


@dataclass(frozen=True)
class Event:
    """The progress of a stage."""

    time: str
    """Time of the event in ISO 8601, UTC."""
    what: str
    """What is being counted, as text for people."""
    done: int
    total: int
    fraction: float
    """Completed share of the whole work, 0 to 1: of all epochs, for example, while `done` counts batches."""
    scores: dict[str, float] = field(default_factory=dict)
    """After an epoch, its losses and validation scores, as in history.csv; otherwise empty."""


#: The current part of the whole work: its start and its length, as shares.
_start, _length = 0.0, 1.0


@contextmanager
def part(number: int, of: int) -> Iterator[None]:
    """Within this context, reported progress is that of part `number` (from 0) of `of` equal parts."""
    global _start, _length
    before = _start, _length
    _start, _length = _start + _length * number / of, _length / of
    try:
        yield
    finally:
        _start, _length = before


def report(what: str, done: int, total: int, scores: Mapping[str, float] | None = None) -> None:
    """Write an event if the environment variable asks for events."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    finite = {name: value for name, value in (scores or {}).items() if math.isfinite(value)}
    event = Event(now, what, done, total, _start + _length * done / total, finite)
    with suppress(OSError), open(path, "ab", buffering=0) as file:  # events are optional
        file.write(json.dumps(asdict(event)).encode() + b"\n")


def reported(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yield the items, and regularly report how many of `total` are done."""
    last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if done == total or now - last >= EVERY:
            last = now
            report(what, done, total)


class Reader:
    """Reads events from a growing file."""

    def __init__(self, path: Path) -> None:
        from pydantic import TypeAdapter  # imported here because writers do not need it

        self._path, self._position = path, 0
        self._schema = TypeAdapter(Event)

    def new(self) -> list[Event]:
        """The events since the last call; partial and invalid lines are skipped."""
        from pydantic import ValidationError

        with suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._position)
            lines, _, _ = file.read().rpartition(b"\n")
            self._position += len(lines) + 1 if lines else 0
            events = []
            for line in lines.splitlines():
                with suppress(ValidationError):
                    events.append(self._schema.validate_json(line))
            return events
        return []
