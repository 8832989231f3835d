"""How many CPU cores there are to use, and how work is spread over them."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def available_cores() -> int:
    """The cores that this process may run on, where the system tells; else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    pool: Executor, work: Callable[[Job], Result], jobs: Iterable[Job], ahead: int
) -> Iterator[Result]:
    """The results in the order of the jobs, never more than `ahead` asked for before they are taken."""
    waiting = iter(jobs)
    asked = deque(pool.submit(work, job) for job in itertools.islice(waiting, ahead))
    while asked:
        yield asked.popleft().result()
        asked.extend(pool.submit(work, job) for job in itertools.islice(waiting, 1))
