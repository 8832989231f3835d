"""Starts flow runs in milliseconds: a process that has imported everything forks for each run.

`python -m prefect.engine` spends seconds importing Prefect and this project. A worker therefore forks a
server before it starts its own work. `fork_client.py` asks it for runs, and describes the protocol.

The server has one thread and runs no flow itself, so that nothing is lost or locked in its children.
"""

import ctypes
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from prefect.context import refresh_global_settings_context

from flows.deployment.fork_client import LENGTH, PASSED_ON, PATIENCE, SOCKET, STARTED, STATUS

#: The option of Linux's prctl by which a process gets a signal when its parent dies.
PR_SET_PDEATHSIG = 1


Stamp = tuple[int, int]  # a file's size and time


class Run(NamedTuple):
    """A flow run that a client has requested."""

    environment: Mapping[str, str]
    directory: str
    streams: list[int]
    """File descriptors of its standard input, output and error."""


def start(folder: Path, program: Path, code: Sequence[Path]) -> None:
    """Fork a server, which ends with this process. It returns in this process alone.

    Call this when everything has been imported, and before any thread starts.

    Args:
        folder: Where the server listens. No other user may enter it.
        program: The Python file that each run executes.
        code: Folders of the code that has been imported. The server refuses runs if a file in them changes.
    """
    listener, stamps = _listen(folder), _stamps(code)
    alive, held = os.pipe()  # the server reads the end of this process
    if os.fork():
        listener.close()
        os.close(alive)
        return
    os.close(held)
    gc.freeze()  # the collector of a run would go through everything imported, and so copy it into its memory
    run = _Server(listener, alive, code, stamps).serve()
    if run:
        _execute(program, run)
    sys.exit()


def _listen(folder: Path) -> socket.socket:
    before = Path.cwd()
    listener = socket.socket(socket.AF_UNIX)
    try:
        os.chdir(folder)  # the path of a socket may have at most 107 bytes
        listener.bind(SOCKET)
    finally:
        os.chdir(before)
    listener.listen(128)
    return listener


class _Server:
    def __init__(
        self, listener: socket.socket, alive: int, code: Sequence[Path], stamps: Mapping[str, Stamp]
    ) -> None:
        self._listener, self._alive = listener, alive
        self._code, self._stamps = code, stamps
        self._runs: dict[int, socket.socket] = {}
        self._waiting = selectors.DefaultSelector()
        self._ended, wakeup = socket.socketpair()
        for end in (self._ended, wakeup):
            end.setblocking(False)
        for (
            number
        ) in PASSED_ON:  # a service manager may send one to all processes; runs report their end first
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, _ignore)  # without a handler, nothing is written to the wakeup socket
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        self._wakeup = wakeup
        for source in (listener, alive, self._ended):
            self._waiting.register(source, selectors.EVENT_READ)

    def serve(self) -> Run | None:
        """Fork a process for each request. Returns the run in its process, and None at the server's end."""
        is_needed = True
        while is_needed or self._runs:
            for key, _ in self._waiting.select():
                if key.fileobj is self._listener:
                    run = self._accept()
                    if run:
                        return run
                elif key.fileobj is self._ended:
                    self._reap()
                elif key.fileobj == self._alive:
                    is_needed = False
                    self._waiting.unregister(self._alive)
                    self._waiting.unregister(self._listener)
                    self._listener.close()
                else:
                    self._pass_on(key.data)
        return None

    def _accept(self) -> Run | None:
        """Fork, and return the run in its own process."""
        connection, _ = self._listener.accept()
        connection.settimeout(PATIENCE)
        try:
            run = _receive(connection)
            pid = os.fork() if _stamps(self._code) == self._stamps else None
        except (OSError, ValueError):  # without an answer, the client starts the run itself
            connection.close()
            return None
        if pid == 0:
            self._leave(connection)
            return run
        for stream in run.streams:
            os.close(stream)
        if pid is None:
            connection.close()
            return None
        self._runs[pid] = connection
        self._waiting.register(connection, selectors.EVENT_READ, pid)
        with suppress(OSError):  # a client that is gone is noticed later
            connection.sendall(STARTED)
        return None

    def _leave(self, connection: socket.socket) -> None:
        """Become an ordinary process, which keeps nothing of the server."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *PASSED_ON):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._waiting.close()
        for one in (self._listener, self._ended, self._wakeup, connection, *self._runs.values()):
            one.close()
        os.close(self._alive)

    def _pass_on(self, pid: int) -> None:
        """Send a signal of a client to its run. Kill the run if the client is gone."""
        try:
            numbers = self._runs[pid].recv(1)
        except OSError:
            numbers = b""
        os.kill(pid, numbers[0] if numbers else signal.SIGKILL)
        if not numbers:
            self._waiting.unregister(self._runs[pid])

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            while self._ended.recv(1024):
                pass
        for pid, connection in list(self._runs.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            code = os.waitstatus_to_exitcode(status)
            with suppress(OSError):
                connection.sendall(code.to_bytes(STATUS, "big", signed=True))
            with suppress(KeyError):
                self._waiting.unregister(connection)
            connection.close()
            del self._runs[pid]


def _ignore(*_: Any) -> None:
    pass


def _stamps(code: Sequence[Path]) -> dict[str, Stamp]:
    """Return what shows that a file of the code has changed."""
    files = (path for folder in code for path in folder.rglob("*.py"))
    return {str(path): (found.st_size, found.st_mtime_ns) for path in files for found in [path.stat()]}


def _receive(connection: socket.socket) -> Run:
    length, streams, _, _ = socket.recv_fds(connection, LENGTH, 3)
    parts, missing = [], int.from_bytes(length, "big")
    while missing:
        part = connection.recv(missing)
        if not part:
            raise ConnectionError("the request is incomplete")
        parts.append(part)
        missing -= len(part)
    request = json.loads(b"".join(parts))
    return Run(request["environment"], request["directory"], streams)


def _execute(program: Path, run: Run) -> None:
    """Execute a run in this process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number, stream in enumerate(run.streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(run.environment)
    os.chdir(run.directory)
    refresh_global_settings_context()
    sys.argv = [str(program)]
    runpy.run_path(str(program), run_name="__main__")
