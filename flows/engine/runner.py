"""Run the stages of a checkout through DVC, each in a process of its own."""

import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from enum import StrEnum
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import NamedTuple, TypeVar

import psutil

from flows.repository.stage_environment import stage_environment
from tasks.support.cli import TEMPORARY
from tasks.support.events import VARIABLE, Event, Reader
from tasks.support.slots import Slot

T = TypeVar("T")

#: Receives the output of a stage, line by line.
Log = Callable[[str], None]

#: Receives the progress events of a stage.
Show = Callable[[Event], None]

#: Folder in a checkout where each stage appends its events to a file of its own.
EVENTS = Path(".dvc/tmp/events")

#: Seconds between two reads of a stage's events.
POLL_EVENTS = 0.5

#: Number of last output lines that the message of a failed stage repeats.
TAIL = 15

#: Hints by DVC for people who commit and push by hand. They are not logged.
HINTS = (
    "Generating lock file",
    "Updating lock file",
    "To track the changes with git",
    "\tgit add",
    "To enable auto staging",
    "\tdvc config core.autostage",
    "Use `dvc push`",
)

#: DVC's line about a stage that failed. The stage itself has already printed the reason.
DVC_REPEATS = re.compile(r"ERROR: failed to reproduce .* exited with (?P<status>-?\d+)$")

#: Exit statuses that are worth a retry: a failed connection, a kill (as by the system when memory runs out),
#: or a crash in a library. A shell that stays the command's parent, such as dash, adds 128 to the signal.
RETRYABLE = {
    TEMPORARY,
    *(
        status
        for number in (signal.SIGKILL, signal.SIGBUS, signal.SIGSEGV)
        for status in (-number, 128 + number)
    ),
}

#: Seconds without a line or event after which a stage counts as stuck, as on a network disk that no longer
#: answers. Every long operation shows its progress many times an hour.
SILENCE = 2 * 3600.0

#: Seconds that a stage has to end after SIGTERM, before it is killed.
GRACE = 5.0


class Outcome(StrEnum):
    RAN = "ran"
    CACHED = "cached"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """Ended by a signal or a failed connection, so a retry may succeed."""


class StageRun(NamedTuple):
    outcome: Outcome
    tail: str
    """The last lines of the stage's output."""
    note: str = ""
    """If the stage ran on another machine: which one, and how long each step took."""


class Watchdog:
    """Ends something that has not been heard for some time."""

    def __init__(self, limit: float) -> None:
        """Create a watchdog. `limit` is the longest silence in seconds."""
        self.has_ended_it = False
        self._limit, self._last = limit, time.monotonic()

    def hearing(self, receive: Callable[[T], None]) -> Callable[[T], None]:
        """Return a callback that passes everything on to `receive`, and that counts as a sign of life."""

        def heard(item: T) -> None:
            self._last = time.monotonic()
            receive(item)

        return heard

    @contextmanager
    def watching(self, end: Callable[[], None]) -> Iterator[None]:
        """Call `end` once if the silence lasts too long, until the context ends."""
        over = Flag()

        def watch() -> None:
            while not over.wait(min(self._limit / 10, 60)):
                if time.monotonic() - self._last > self._limit:
                    self.has_ended_it = True
                    end()
                    return

        thread = Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


class StageRunner:
    """Runs the stages of one checkout, each in a DVC process of its own."""

    def __init__(self, checkout: Path, **variables: str) -> None:
        """Create a runner. `variables` are additional environment variables of every stage."""
        self.checkout, self._variables = checkout, variables
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = Flag()

    def run(self, stage: str, slot: Slot, log: Log, show: Show) -> StageRun:
        """Bring one stage up to date. Each output line is passed to `log` as soon as it is printed.

        `show` receives the stage's events, from another thread. A stage that is silent for too long is ended.

        DVC stays in the process group of this process, so a signal that ends this process ends the stage too.
        DVC itself does not forward SIGTERM to the command that it runs.
        """
        if self._stopped.is_set():
            return StageRun(Outcome.FAILED, "stopped")
        events = self.checkout / EVENTS / f"{stage}.jsonl"
        watchdog = Watchdog(SILENCE)
        with (
            _events_shown(events, watchdog.hearing(show)),
            self._start(stage, slot, events) as process,
            watchdog.watching(lambda: _end([process])),
        ):
            assert process.stdout is not None
            ran, status, tail = _follow(process.stdout, watchdog.hearing(log))
        self._running.discard(process)
        if watchdog.has_ended_it:
            tail = f"{tail}\nended, because it printed nothing for {SILENCE:g} s".lstrip()
            return StageRun(Outcome.INTERRUPTED, tail)
        if not process.returncode:
            return StageRun(Outcome.RAN if ran else Outcome.CACHED, tail)
        # If DVC itself was killed, it did not report the stage's status.
        interrupted = (status or process.returncode) in RETRYABLE and not self._stopped.is_set()
        return StageRun(Outcome.INTERRUPTED if interrupted else Outcome.FAILED, tail)

    def _start(self, stage: str, slot: Slot, events: Path) -> "subprocess.Popen[str]":
        variables = {"PYTHONUNBUFFERED": "1", VARIABLE: str(events)} | self._variables | slot.variables
        process = subprocess.Popen(
            ["dvc", "--wait-for-lock", "repro", "--single-item", stage],
            cwd=self.checkout,
            env=stage_environment(stage) | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=slot.locks,
            text=True,
            errors="replace",
        )
        self._running.add(process)
        return process

    def stop(self) -> None:
        """End the running stages and all their child processes, and start no more.

        DVC does not end its child processes when it is ended, so each descendant is signalled separately.
        """
        self._stopped.set()
        _end(self._running)


def _end(running: Iterable["subprocess.Popen[str]"]) -> None:
    trees: list[psutil.Process] = []
    for process in list(running):
        with suppress(psutil.NoSuchProcess):
            dvc = psutil.Process(process.pid)
            trees += [*dvc.children(recursive=True), dvc]
    for part in trees:
        with suppress(psutil.NoSuchProcess):
            part.terminate()
    _, stubborn = psutil.wait_procs(trees, timeout=GRACE)
    for part in stubborn:
        with suppress(psutil.NoSuchProcess):
            part.kill()


@contextmanager
def _events_shown(path: Path, show: Show) -> Iterator[None]:
    """Pass the events that a stage appends to a file on to `show`, until the context ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # left by an earlier attempt
    reader, ended = Reader(path), Flag()

    def follow() -> None:
        running = True
        while running:
            running = not ended.wait(POLL_EVENTS)
            for event in reader.new():
                show(event)

    # Prefect finds the task run of an artifact through the context variables.
    thread = Thread(target=copy_context().run, args=(follow,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _follow(output: Iterator[str], log: Callable[[str], None]) -> tuple[bool, int, str]:
    """Log DVC's output. Returns whether the stage's command ran, its exit status, and its last lines."""
    tail: deque[str] = deque(maxlen=TAIL)
    ran, status = False, 0
    for line in _lines(output):
        log(line)
        end = DVC_REPEATS.match(line)
        if end:
            status = int(end["status"])
        if line.startswith("Running stage"):
            ran = True
            tail.clear()
        elif not line.startswith("> ") and not (tail and end):
            tail.append(line)
    return ran, status, "\n".join(tail)


def _lines(output: Iterator[str]) -> Iterator[str]:
    for line in output:
        if line.strip() and not line.startswith(HINTS):
            yield line.rstrip()
