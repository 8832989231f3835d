"""Child processes of `make serve` and `make worker`: each runs once, and none outlives its parent."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from flows.repository.checkout import RUNS
from flows.repository.git import environment
from tasks.support.locks import lock_file

#: Environment variable that labels a child process and all its descendants.
PART_OF = "RETRAIN_PART_OF"

#: Seconds that a worker has to end its runs, and a server to end, before they are killed.
GRACE = 20.0

#: Size in bytes from which a log is moved to NAME.log.1 when its process starts.
LOG_SIZE = 10_000_000

#: Signals for a clean exit: from Ctrl-C, from a service manager, and when the terminal closes.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def exclusive(repository: Path, name: str) -> Iterator[IO[bytes] | None]:
    """Hold a lock on this repository and name. Yields None if another process holds it.

    Other processes can read what the holder writes to the lock file.
    """
    path = lock_path(repository, name)
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as lock:
        try:
            lock_file(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
def child_process(
    name: str,
    command: list[str],
    repository: Path,
    variables: dict[str, str],
    ends_at: signal.Signals = signal.SIGTERM,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a child process with its output in a log file. On exit, end it and all its descendants.

    It has its own session, so Ctrl-C reaches only this process, which ends its children in order.
    """
    path = log_path(name, repository)
    path.parent.mkdir(exist_ok=True)
    print(f"starting {name}; log: {path}", flush=True)
    with _open_log(path) as log:
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
        started = processes_of(name, repository)  # includes processes that are already ending
        process.send_signal(ends_at)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        kill([*started, *processes_of(name, repository)])
        process.wait()


def _open_log(path: Path) -> IO[bytes]:
    """Open a log for appending, since its last lines may say why the process had to be restarted."""
    if path.exists() and path.stat().st_size > LOG_SIZE:
        path.replace(path.with_name(f"{path.name}.1"))
    log = path.open("ab", buffering=0)
    log.write(f"--- started {datetime.now():%Y-%m-%d %H:%M:%S}\n".encode())
    return log


def _label(name: str, repository: Path) -> str:
    return f"{name} of {repository}"


def processes_of(name: str, repository: Path) -> list[psutil.Process]:
    """Return a child process and its descendants, even if the processes between them are gone."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(PART_OF) == _label(name, repository):
                found.append(process)
    return found


def flow_run_ids(processes: list[psutil.Process]) -> set[str]:
    """Return the ids of the flow runs that the processes work for."""
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


def run_until_stopped(work: Callable[[], None]) -> None:
    """Call `work` until a signal in STOPPING arrives, and then exit with status 0."""
    for number in STOPPING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _stop)
    with suppress(KeyboardInterrupt):
        work()
    sys.exit(0)


def _stop(signum: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, once. A second Ctrl-C must not interrupt the orderly end of the children."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if signum == signal.SIGHUP:  # the terminal is gone, so the next print would fail
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.dup2(nowhere, sys.stderr.fileno())
    raise KeyboardInterrupt
