"""Measure how long each part of an operation takes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Accumulates the seconds of each part.

    with clock("inputs"):
        ...
    str(clock) == "inputs 0.4 s"
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[part] = self._seconds.get(part, 0.0) + time.monotonic() - started

    def __str__(self) -> str:
        return ", ".join(f"{part} {seconds:.1f} s" for part, seconds in self._seconds.items())
