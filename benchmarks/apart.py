"""Contestants in processes of their own, and stopwatches for the parts of their work."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil
import torch
from rates import DEVICE, synchronise

Item = TypeVar("Item")


class Pairs:
    """Iterates over the image and label of each batch, which is a dictionary."""

    def __init__(self, loader: Iterable[dict[str, torch.Tensor]]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self._loader:
            yield batch["image"], batch["label"]


class Apart:
    """A contestant in a process of its own, so that its memory and settings are separate."""

    def __init__(self, make: Callable[[Any], object], setting: object) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self._process = psutil.Process(self._pool.submit(os.getpid).result())
        #: Peak memory in bytes, of the process and its child processes together.
        self.memory = 0
        self._wait_for(_begin, make, setting)

    def call(self, method: str, *args: object) -> Any:
        return self._wait_for(_call, method, *args)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def _wait_for(self, work: Callable[..., Any], *args: object) -> Any:
        future = self._pool.submit(work, *args)
        while not future.done():
            with suppress(psutil.Error):
                processes = [self._process, *self._process.children(recursive=True)]
                self.memory = max(self.memory, sum(p.memory_full_info().pss for p in processes))
            wait([future], timeout=1.0)
        return future.result()


_contestants: list[Any] = []


def _begin(make: Callable[[Any], object], setting: object) -> None:
    # The output of the stages would mix with the results.
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    _contestants.append(make(setting))


def _call(method: str, *args: object) -> Any:
    return getattr(_contestants[0], method)(*args)


class Stopwatch:
    """Accumulates seconds per part of the work, by wall clock or by CUDA events, which do not block."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def on_device(self, part: str, function: Callable[..., Item]) -> Callable[..., Item]:
        """Wrap a function so that its time on the device is added up."""

        def timed(*args: Any, **kwargs: Any) -> Item:
            if DEVICE.type == "cpu":
                with self.timing(part):
                    return function(*args, **kwargs)
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            result = function(*args, **kwargs)
            ended.record()
            self._events.append((part, began, ended))
            return result

        return timed

    def on_host(self, part: str, function: Callable[..., Item]) -> Callable[..., Item]:
        """Wrap a function so that its wall time is added up."""

        def timed(*args: Any, **kwargs: Any) -> Item:
            with self.timing(part):
                return function(*args, **kwargs)

        return timed

    def each(self, part: str, items: Iterable[Item]) -> Iterator[Item]:
        """Iterate over items, and add up the time spent waiting for them."""
        waiting = iter(items)
        while True:
            try:
                with self.timing(part):
                    item = next(waiting)
            except StopIteration:
                return
            yield item

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - start)

    def add(self, part: str, seconds: float) -> None:
        self._seconds[part] = self._seconds.get(part, 0.0) + seconds

    def read(self) -> dict[str, float]:
        """Return the seconds of each part since the last call, and reset them."""
        synchronise()
        for part, began, ended in self._events:
            self.add(part, began.elapsed_time(ended) / 1000)
        seconds, self._seconds, self._events = self._seconds, {}, []
        return seconds
