"""Progress as events that programs read, beside the lines that people read.

Where the environment variable RETRAIN_EVENTS names a file, a stage appends a line of JSON for each event:

    {"time": "2026-11-28T09:30:01.250+00:00", "what": "report1_bce-seed0 epoch 3 of 8", "done": 12,
     "total": 48, "fraction": 0.28125, "scores": {}}

A line is complete once it ends; what was cut off in the middle is to be ignored.
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

#: The file that events are appended to; without it none are written.
VARIABLE = "RETRAIN_EVENTS"

#: Seconds between two events of one loop, but for its last.
EVERY = 1.0


@dataclass(frozen=True)
class Event:
    """How far a stage has come."""

    time: str
    """When, in ISO 8601, UTC."""
    what: str
    """What is counted, for people to read."""
    done: int
    total: int
    fraction: float
    """How much of the whole is done, 0 to 1: of all epochs, where `done` counts the batches of one."""
    scores: dict[str, float] = field(default_factory=dict)
    """After an epoch, its losses and validation scores, as in history.csv; else empty."""


#: The part of the whole that is being done: where it starts, and how long it is.
_start, _length = 0.0, 1.0


@contextmanager
def part(number: int, of: int) -> Iterator[None]:
    """Within, what is reported is one of so many equal parts of the work: the first has the number 0."""
    global _start, _length
    before = _start, _length
    _start, _length = _start + _length * number / of, _length / of
    try:
        yield
    finally:
        _start, _length = before


def report(what: str, done: int, total: int, scores: Mapping[str, float] | None = None) -> None:
    """Write an event, where somebody asked for events."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    finite = {name: value for name, value in (scores or {}).items() if math.isfinite(value)}
    event = Event(now, what, done, total, _start + _length * done / total, finite)
    with suppress(OSError), open(path, "ab", buffering=0) as file:  # the work goes on without
        file.write(json.dumps(asdict(event)).encode() + b"\n")


def reported(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yield the items and report now and then how many of `total` are done."""
    last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if done == total or now - last >= EVERY:
            last = now
            report(what, done, total)


class Reader:
    """Reads the events of a file that grows."""

    def __init__(self, path: Path) -> None:
        self._path, self._position = path, 0

    def new(self) -> list[Event]:
        """The events since the last call, without lines that are incomplete or no events."""
        from pydantic import TypeAdapter, ValidationError  # here, since stages that only write do without

        with suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._position)
            lines, _, _ = file.read().rpartition(b"\n")
            self._position += len(lines) + 1 if lines else 0
            events = []
            for line in lines.splitlines():
                with suppress(ValidationError):
                    events.append(TypeAdapter(Event).validate_json(line))
            return events
        return []
