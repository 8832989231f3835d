"""Signals that end `make serve`, with a process that only sleeps."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from flows.deployment.supervision import child_process
from tests.helpers import ROOT

SERVE = """
import sys, time
from pathlib import Path
from flows.deployment.supervision import child_process, run_until_stopped

def serve():
    with child_process("sleeper", ["sleep", "600"], Path(sys.argv[1]), {}):
        print("Ctrl-C stops it", flush=True)
        time.sleep(600)

run_until_stopped(serve)
"""


def test_a_log_keeps_what_earlier_processes_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    log = tmp_path / "runs" / ".logs" / "part.log"
    for number in (1, 2):
        with child_process("part", ["echo", f"why {number}"], tmp_path, {}) as process:
            process.wait()
    assert [line for line in log.read_text().splitlines() if "---" not in line] == ["why 1", "why 2"]
    monkeypatch.setattr("flows.deployment.supervision.LOG_SIZE", 10)
    with child_process("part", ["echo", "why 3"], tmp_path, {}) as process:
        process.wait()
    assert log.read_text().splitlines()[1:] == ["why 3"]
    assert "why 2" in log.with_name("part.log.1").read_text()


def take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup


def ignore_hangups() -> None:
    take_terminal()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@contextmanager
def in_terminal(folder: Path, first: Callable[[], None]) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """Run SERVE in a terminal of its own. Yields the process and the other end of the terminal."""
    (folder / "runs").mkdir()
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(folder)],
        cwd=ROOT,
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        preexec_fn=first,
    )
    os.close(its)
    try:
        output = b""
        while b"Ctrl-C" not in output:
            output += os.read(ours, 1000)
        yield process, ours
    finally:
        process.kill()
        process.wait()
        with suppress(OSError):
            os.close(ours)


def test_closing_the_terminal_ends_it(tmp_path: Path) -> None:
    with in_terminal(tmp_path, take_terminal) as (process, terminal):
        (part,) = psutil.Process(process.pid).children()
        os.close(terminal)
        assert process.wait(20) == 0
        assert not part.is_running()


def test_under_nohup_it_survives_closing_the_terminal(tmp_path: Path) -> None:
    with in_terminal(tmp_path, ignore_hangups) as (process, _):
        status = Path(f"/proc/{process.pid}/status").read_text()
        ignored = int(status.partition("SigIgn:")[2].split()[0], base=16)
        assert ignored & 1 << signal.SIGHUP - 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
