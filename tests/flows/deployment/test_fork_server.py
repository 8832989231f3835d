"""The fork server starts runs as if they were processes of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from flows.deployment import fork_client
from tests.helpers import ROOT, eventually

SERVER = """
import sys
from pathlib import Path
from flows.deployment import fork_server
folder, program, code = map(Path, sys.argv[1:])
fork_server.start(folder, program, [code])
print("ready", flush=True)
sys.stdin.read()
"""

#: The program of the runs. The variable PLAN says what it does.
PROGRAM = """
import atexit, os, signal, sys, time
atexit.register(print, "ended orderly", flush=True)
print(os.getcwd(), sys.stdin.read(), os.environ["PLAN"], "PYTHONUTF8" in os.environ, __name__, flush=True)
if os.environ["PLAN"] == "wait":
    def stop(number, frame):
        print("got", signal.Signals(number).name, flush=True)
        sys.exit(7)
    signal.signal(signal.SIGTERM, stop)
    print("waits", os.getpid(), flush=True)
    time.sleep(600)
if os.environ["PLAN"] == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
sys.exit(int(os.environ["PLAN"]))
"""

COLD = [sys.executable, "-c", "print('cold')"]


class Server:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "server"
        self.folder.mkdir(0o700)
        program, self.code = folder / "program.py", folder / "code"
        program.write_text(PROGRAM)
        self.code.mkdir()
        (self.code / "module.py").write_text("")
        self.worker = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(self.folder), str(program), str(self.code)],
            cwd=ROOT,
            env={**os.environ, "PYTHONUTF8": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.worker.stdout and self.worker.stdout.readline() == b"ready\n"
        (self.process,) = psutil.Process(self.worker.pid).children()

    def client(self, plan: str, cwd: Path) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-I", "-S", fork_client.__file__, str(self.folder), *COLD],
            cwd=cwd,
            env={"PLAN": plan},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        server.worker.kill()
        with suppress(psutil.NoSuchProcess):
            server.process.kill()
        server.worker.communicate()  # ends when the server has, which has the same output


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as server:
        yield server


def waiting(client: "subprocess.Popen[str]") -> psutil.Process:
    """Return the process of a run with the plan `wait`."""
    assert client.stdout
    client.stdout.readline()
    return psutil.Process(int(client.stdout.readline().split()[1]))


def has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two questions
        return True


def test_a_run_gets_what_its_client_has_and_its_status_is_the_clients(server: Server, tmp_path: Path) -> None:
    for plan in ("0", "3"):
        client = server.client(plan, tmp_path)
        output, _ = client.communicate(timeout=60)
        assert output.splitlines() == [f"{tmp_path}  {plan} False __main__", "ended orderly"]
        assert client.returncode == int(plan)


def test_a_client_ends_by_the_signal_that_ended_its_run(server: Server, tmp_path: Path) -> None:
    client = server.client("crash", tmp_path)
    client.communicate(timeout=60)
    assert client.returncode == -signal.SIGSEGV


def test_signals_reach_the_run(server: Server, tmp_path: Path) -> None:
    client, other = server.client("wait", tmp_path), server.client("wait", tmp_path)
    unaffected = waiting(other)
    waiting(client)
    client.terminate()
    output, _ = client.communicate(timeout=60)
    assert output.splitlines() == ["got SIGTERM", "ended orderly"]
    assert client.returncode == 7
    assert unaffected.is_running() and other.poll() is None
    other.terminate()
    other.communicate(timeout=60)


def test_a_run_ends_with_its_client(server: Server, tmp_path: Path) -> None:
    client = server.client("wait", tmp_path)
    run = waiting(client)
    client.kill()
    client.communicate()
    eventually("the run has ended", lambda: has_ended(run), timeout=10)
    assert server.process.is_running()


def test_a_run_ends_with_the_server(server: Server, tmp_path: Path) -> None:
    client = server.client("wait", tmp_path)
    run = waiting(client)
    server.process.kill()
    client.communicate(timeout=60)
    assert client.returncode == -signal.SIGKILL
    eventually("the run has ended", lambda: has_ended(run), timeout=10)


def test_the_server_ends_with_its_worker_but_not_before_its_runs(server: Server, tmp_path: Path) -> None:
    client = server.client("wait", tmp_path)
    run = waiting(client)
    server.process.terminate()  # as a service manager does, which sends this to all processes
    server.worker.kill()
    server.worker.wait()
    assert server.client("0", tmp_path).communicate(timeout=60) == ("cold\n", None)
    assert run.is_running() and server.process.is_running()
    client.terminate()
    client.communicate(timeout=60)
    assert client.returncode == 7
    eventually("the server has ended", lambda: has_ended(server.process), timeout=10)


def edit(code: Path) -> None:
    (code / "module.py").write_text("# edited")


def add(code: Path) -> None:
    (code / "new.py").write_text("")


@pytest.mark.parametrize("change", [edit, add])
def test_a_run_starts_cold_if_the_code_has_changed(
    server: Server, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    change(server.code)
    assert server.client("0", tmp_path).communicate(timeout=60) == ("cold\n", None)


def test_a_run_starts_cold_without_a_server(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", fork_client.__file__, str(tmp_path), *COLD]
    assert subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, check=True).stdout == b"cold\n"


def test_the_code_may_lie_at_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    with serving(folder) as server:
        output, _ = server.client("0", tmp_path).communicate(timeout=60)
    assert output.startswith(str(tmp_path))
