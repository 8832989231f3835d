"""How long work shows: a bar on a terminal, plain lines now and then in a log."""

import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

#: Seconds between two plain lines.
LINE_EVERY = 20.0

_EPOCH = re.compile(r"\bepoch (\d+)(?P<done>/| of )(\d+):")
_SEED = re.compile(r"\bseed (\d+) of (\d+) epoch")
_STEP = re.compile(r": (\d+) of (\d+), ")


def progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yield the items and show how many of `total` are done."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, leave=False)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= LINE_EVERY:
            last = now
            print(f"{what}: {done} of {total}, {done / (now - start):.3g} a second", flush=True)


def fraction_done(line: str) -> float | None:
    """How much of a stage's work is done, 0 to 1, as one of its plain lines tells; None where it doesn't.

    A line is `WHAT: 12 of 40, ...`, where WHAT may end in `epoch 3 of 8`, or `WHAT epoch 3/8: ...` at the
    end of an epoch; before the epoch may stand `seed 1 of 3`.
    """
    step = _STEP.search(line)
    within = int(step[1]) / int(step[2]) if step else None
    if epoch := _EPOCH.search(line):
        finished = int(epoch[1]) if epoch["done"] == "/" else int(epoch[1]) - 1 + (within or 0)
        fraction = finished / int(epoch[3])
        seed = _SEED.search(line)
        return (int(seed[1]) - 1 + fraction) / int(seed[2]) if seed else fraction
    return within
