"""Distributes work over the available CPU cores."""

import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Self, TypeVar

from tasks.support.cli import InputError
from tasks.support.cpus import available_cores

Job = TypeVar("Job")
Result = TypeVar("Result")

#: Maximum number of worker threads; more would only wait for Python's global interpreter lock.
MOST_THREADS = 4


def in_order(
    pool: Executor, work: Callable[[Job], Result], jobs: Iterable[Job], ahead: int
) -> Iterator[Result]:
    """Yield results in the order of the jobs, with at most `ahead` jobs submitted before their results."""
    waiting = iter(jobs)
    asked = deque(pool.submit(work, job) for job in itertools.islice(waiting, ahead))
    while asked:
        yield asked.popleft().result()
        asked.extend(pool.submit(work, job) for job in itertools.islice(waiting, 1))


def in_threads(work: Callable[[Job], Result], jobs: Iterable[Job], at_a_time: int) -> Iterator[Result]:
    """Yield results in the order of the jobs; this thread generates jobs while worker threads run them.

    Each worker takes `at_a_time` jobs. This is faster if generating the jobs takes long in libraries that
    release Python's lock, such as a network's batches: earlier jobs are processed meanwhile. Handing
    over single jobs would slow the calling thread down.
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
    """A pool with one process per core. The processes start with the first job."""

    def __init__(self) -> None:
        self._cores = available_cores()
        # Spawned, not forked: handles that torch or pandas hold open must not be shared.
        self._pool = ProcessPoolExecutor(self._cores, mp_context=multiprocessing.get_context("spawn"))

    def map(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield results in the order of the jobs. Only a few jobs are submitted ahead, to limit memory.

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
