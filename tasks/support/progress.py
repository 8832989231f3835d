"""Shows progress: a bar on a terminal, occasional lines in a log, events for programs."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from tasks.support.events import reported

Item = TypeVar("Item")

#: Seconds between two plain lines.
LINE_EVERY = 20.0


def progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yield the items and show how many of `total` are done."""
    if sys.stderr.isatty():
        shown: Iterable[Item] = tqdm(items, total=total, desc=what, leave=False)
    else:
        shown = _with_lines(items, total, what)
    yield from reported(shown, total, what)


def _with_lines(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= LINE_EVERY:
            last = now
            print(f"{what}: {done} of {total}, {done / (now - start):.3g} per second", flush=True)
