"""A discrete-event simulation: processes that wait for a clock, for each other, for items, or for a link."""

import heapq
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

#: Something to wait for: a function that receives a callback, and calls it with the result.
Event = Callable[[Callable[[Any], None]], None]
Process = Generator[Event, Any, None]


class Clock:
    """Runs processes, which are generators that yield the events that they wait for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Schedule an action. Actions at the same time run in the order in which they were scheduled."""
        self._count += 1
        heapq.heappush(self._agenda, (self.now + seconds, self._count, action))

    def sleep(self, seconds: float) -> Event:
        return lambda resume: self.after(seconds, partial(resume, None))

    def start(self, process: Process) -> None:
        self._go_on(process, None)

    def run(self) -> None:
        while self._agenda:
            self.now, _, action = heapq.heappop(self._agenda)
            action()

    def _go_on(self, process: Process, value: Any) -> None:
        try:
            event = process.send(value)
        except StopIteration:
            return
        event(partial(self._go_on, process))


class Flag:
    """An event that happens once."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._waiting = clock, list[Callable[[Any], None]]()
        self.up = False

    def raise_(self) -> None:
        self.up = True
        for resume in self._waiting:
            self._clock.after(0.0, partial(resume, None))

    def wait(self) -> Event:
        return lambda resume: self._clock.after(0.0, partial(resume, None)) if self.up else self._add(resume)

    def _add(self, resume: Callable[[Any], None]) -> None:
        self._waiting.append(resume)


class Pool(Generic[Item]):
    """Items that one process at a time can hold, in the order of requests."""

    def __init__(self, clock: Clock, items: Iterable[Item]) -> None:
        self._clock, self._free = clock, deque(items)
        self._waiting: deque[Callable[[Any], None]] = deque()
        #: Seconds for which items were held, summed over all items.
        self.held = 0.0

    def take(self) -> Event:
        def ask(resume: Callable[[Any], None]) -> None:
            self._waiting.append(resume)
            self._hand_out()

        return ask

    def give(self, item: Item) -> None:
        self.held += self._clock.now
        self._free.append(item)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._free and self._waiting:
            self.held -= self._clock.now
            self._clock.after(0.0, partial(self._waiting.popleft(), self._free.popleft()))


@dataclass(eq=False)
class _Transfer:
    left: float
    rate: float
    resume: Callable[[Any], None]


class Link:
    """A link whose capacity is shared equally between transfers, up to the maximum rate of each."""

    def __init__(self, clock: Clock, capacity: float) -> None:
        self._clock, self._capacity = clock, capacity
        self._running: list[_Transfer] = []
        self._since, self._plan = 0.0, 0
        #: Total MB transferred.
        self.moved = 0.0

    def transfer(self, size: float, rate: float) -> Event:
        """Transfer `size` MB at up to `rate` MB/s."""

        def begin(resume: Callable[[Any], None]) -> None:
            self.moved += size
            self._advance()
            self._running.append(_Transfer(size, rate, resume))
            self._plan_next()

        return begin

    def _speed(self, transfer: _Transfer) -> float:
        return min(transfer.rate, self._capacity / len(self._running))

    def _advance(self) -> None:
        for transfer in self._running:
            transfer.left -= (self._clock.now - self._since) * self._speed(transfer)
        self._since = self._clock.now

    def _plan_next(self) -> None:
        self._plan += 1  # invalidates the planned end, because the speeds have changed
        if self._running:
            seconds, first = min(
                ((t.left / self._speed(t), t) for t in self._running), key=lambda planned: planned[0]
            )
            self._clock.after(max(0.0, seconds), partial(self._end, self._plan, first))

    def _end(self, plan: int, transfer: _Transfer) -> None:
        if plan == self._plan:
            self._advance()
            self._running.remove(transfer)
            self._clock.after(0.0, partial(transfer.resume, None))
            self._plan_next()
