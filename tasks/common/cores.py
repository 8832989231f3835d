"""How many CPU cores there are to use, and how work is spread over them."""

import itertools
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Self, TypeVar

from tasks.support.cli import InputError

Job = TypeVar("Job")
Result = TypeVar("Result")

#: Threads that share work; more of them would wait for Python's lock.
MOST_THREADS = 4


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


def in_threads(work: Callable[[Job], Result], jobs: Iterable[Job], at_a_time: int) -> Iterator[Result]:
    """The results in the order of the jobs, which this thread takes while others work, `at_a_time` each.

    It pays where the jobs take long to make in libraries that let go of Python's lock, as a network's batches
    do: while one is made, those before are worked on. Threads that worked on single jobs would be in the way.
    """
    threads = min(available_cores(), MOST_THREADS)
    with ThreadPoolExecutor(threads) as pool:
        for results in in_order(
            pool, lambda jobs: [work(job) for job in jobs], _lists(jobs, at_a_time), threads + 1
        ):
            yield from results


def _lists(items: Iterable[Job], size: int) -> Iterator[list[Job]]:
    waiting = iter(items)
    while items_of_one := list(itertools.islice(waiting, size)):
        yield items_of_one


class Processes:
    """As many processes as there are cores, which start at the first job."""

    def __init__(self) -> None:
        self._cores = available_cores()
        # Each starts afresh: what torch or pandas hold open is not shared.
        self._pool = ProcessPoolExecutor(self._cores, mp_context=multiprocessing.get_context("spawn"))

    def map(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """The results in the order of the jobs; a few jobs ahead keep all busy and the memory flat.

        Raises:
            InputError: a process was killed.
        """
        try:
            yield from in_order(self._pool, work, jobs, ahead=2 * self._cores)
        except BrokenProcessPool:
            raise InputError("a worker process was killed; is there enough memory?") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
