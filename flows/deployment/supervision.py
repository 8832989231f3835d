"""The parts that `make serve` and `make worker` start: none outlives them, none is started twice."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from flows.repository.checkout import RUNS
from flows.repository.git import environment

#: Says in the environment of a part, and of all that it starts, whose part it is.
PART_OF = "RETRAIN_PART_OF"

#: Seconds that a worker has to end its runs, and a server to end, before they are killed.
GRACE = 20.0

#: What ends it as it is meant to end: Ctrl-C, what a service manager sends, and a terminal that is closed.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def only_one(repository: Path, name: str) -> Iterator[IO[bytes] | None]:
    """A lock for as long as this repository is served under a name; None where another process holds it.

    What its holder writes to it, others can read.
    """
    path = lock_path(repository, name)
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            lock.truncate(0)
            yield lock


def lock_path(repository: Path, name: str) -> Path:
    return repository / RUNS / f".{name}.lock"


def log_path(name: str, repository: Path) -> Path:
    return repository / RUNS / ".logs" / f"{name.split()[-1]}.log"


@contextmanager
def part(
    name: str,
    command: list[str],
    repository: Path,
    variables: dict[str, str],
    ends_at: signal.Signals = signal.SIGTERM,
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process with its output in a log, told to end at the end, and with it all that it started.

    It has a session of its own: Ctrl-C reaches this process alone, which ends the parts in their order.
    """
    path = log_path(name, repository)
    path.parent.mkdir(exist_ok=True)
    print(f"starting {name}; log: {path}", flush=True)
    with path.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=repository,
            env=environment() | variables | {PART_OF: _label(name, repository)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        print(f"stopping {name}", flush=True)
        started = family(name, repository)  # what is ending already is waited for too
        process.send_signal(ends_at)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        kill([*started, *family(name, repository)])
        process.wait()


def _label(name: str, repository: Path) -> str:
    return f"{name} of {repository}"


def family(name: str, repository: Path) -> list[psutil.Process]:
    """A part and all that it started: its children's children too where those between are gone."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(PART_OF) == _label(name, repository):
                found.append(process)
    return found


def flow_runs(processes: list[psutil.Process]) -> set[str]:
    """The ids of the flow runs that processes work for."""
    runs = set()
    for process in processes:
        with suppress(psutil.Error):
            runs.add(process.environ().get("PREFECT__FLOW_RUN_ID", ""))
    return runs - {""}


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=GRACE)


def until_stopped(work: Callable[[], None]) -> None:
    """Do what goes on until one of STOPPING, and exit with 0 at that."""
    for number in STOPPING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, _stop)
    with suppress(KeyboardInterrupt):
        work()
    sys.exit(0)


def _stop(signum: int, frame: FrameType | None) -> None:
    """End, once: who presses Ctrl-C again must not keep the parts from being ended in their order."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if signum == signal.SIGHUP:  # with the terminal gone, the next print would fail
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.dup2(nowhere, sys.stderr.fileno())
    raise KeyboardInterrupt
