"""Runs the stages of a checkout through DVC, each by a process of its own."""

import re
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from enum import StrEnum
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import NamedTuple

import psutil

from flows.engine.slots import Slot
from flows.repository.git import environment
from tasks.support.cli import TEMPORARY
from tasks.support.events import VARIABLE, Event, Reader

#: What hears of the work line by line.
Log = Callable[[str], None]

#: What hears how far the work has come.
Show = Callable[[Event], None]

#: Where stages write events, a file each, in a checkout.
EVENTS = Path(".dvc/tmp/events")

#: Seconds between two looks at a stage's events.
LOOK_EVERY = 0.5

#: How many of a stage's last lines its failure repeats.
TAIL = 15

#: What DVC adds for a person at a terminal, who would commit and push by hand.
HINTS = (
    "Generating lock file",
    "Updating lock file",
    "To track the changes with git",
    "\tgit add",
    "To enable auto staging",
    "\tdvc config core.autostage",
    "Use `dvc push`",
)

#: What DVC says of a stage that has said itself what was wrong.
DVC_REPEATS = re.compile(r"ERROR: failed to reproduce .* exited with (?P<status>-?\d+)$")

#: Exit statuses of a stage that did not end by a fault of its own, nor because it was told to: a connection
#: failed, or it was killed, as the system does when memory runs out, or crashed in a library. A shell that
#: doesn't become the command, such as dash, tells of a signal by 128 and its number.
WORTH_ANOTHER_TRY = {
    TEMPORARY,
    *(
        status
        for number in (signal.SIGKILL, signal.SIGBUS, signal.SIGSEGV)
        for status in (-number, 128 + number)
    ),
}

#: Seconds that a stage has to end when told to, before it is killed.
GRACE = 5.0


class Outcome(StrEnum):
    RAN = "ran"
    CACHED = "cached"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """Ended by what may be gone at another try: a signal, or a connection that failed."""


class StageRun(NamedTuple):
    outcome: Outcome
    tail: str
    """The last lines of the stage's own output."""
    note: str = ""
    """Where it ran, and how long, if not here."""


class StageRunner:
    """Runs the stages of one checkout, each by a DVC process of its own."""

    def __init__(self, checkout: Path, **variables: str) -> None:
        """`variables` are further environment variables for every stage."""
        self._checkout, self._variables = checkout, variables
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = Flag()

    def run(self, stage: str, slot: Slot, log: Log, show: Show) -> StageRun:
        """Bring one stage up to date, handing each line that it prints to `log` at once.

        `show` gets its events, in a thread of its own.

        DVC stays in this process's group, so that what ends this process ends the stage too: DVC itself
        passes no TERM on to the command it runs.
        """
        if self._stopped.is_set():
            return StageRun(Outcome.FAILED, "stopped")
        events = self._checkout / EVENTS / f"{stage}.jsonl"
        with _events_shown(events, show), self._start(stage, slot, events) as process:
            assert process.stdout is not None
            ran, status, tail = _follow(process.stdout, log)
        self._running.discard(process)
        if not process.returncode:
            return StageRun(Outcome.RAN if ran else Outcome.CACHED, tail)
        interrupted = status in WORTH_ANOTHER_TRY and not self._stopped.is_set()
        return StageRun(Outcome.INTERRUPTED if interrupted else Outcome.FAILED, tail)

    def _start(self, stage: str, slot: Slot, events: Path) -> "subprocess.Popen[str]":
        variables = {"PYTHONUNBUFFERED": "1", VARIABLE: str(events)} | self._variables | slot.variables
        process = subprocess.Popen(
            ["dvc", "--wait-for-lock", "repro", "--single-item", stage],
            cwd=self._checkout,
            env=environment() | variables,
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
        """End the stages that run, with all that they have started, and start no more.

        DVC ends nothing of what it runs when it is ended itself, so its descendants are told one by one.
        """
        self._stopped.set()
        trees: list[psutil.Process] = []
        for process in list(self._running):
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
    """Hand on the events that a stage appends to a file, until the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of an earlier try
    reader, ended = Reader(path), Flag()

    def follow() -> None:
        running = True
        while running:
            running = not ended.wait(LOOK_EVERY)
            for event in reader.new():
                show(event)

    # Prefect knows by the context which task run an artifact belongs to.
    thread = Thread(target=copy_context().run, args=(follow,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _follow(output: Iterator[str], log: Callable[[str], None]) -> tuple[bool, int, str]:
    """Hand on DVC's lines; whether the stage's command ran, its exit status, and its last lines."""
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
