"""Requests a flow run from the fork server of a worker, and acts as its process.

    python -I -S fork_client.py FOLDER COMMAND...

Prefect's worker starts this program instead of COMMAND, `python -m prefect.engine`. It passes on its
environment, its working directory, its streams and the signals that it receives, and ends like the run. If it
is killed, so is the run. If no server listens in the folder, or if the code has changed since that started,
it becomes COMMAND.

It imports nothing but small modules of the standard library, since its start is part of every run's.
"""

import json
import os
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType

#: The name of the fork server's socket in its folder.
SOCKET = "socket"

#: What the fork server answers when the run has started. Otherwise, it closes the connection.
STARTED = b"+"

#: Bytes of the length of a request, and of the status of a run.
LENGTH, STATUS = 8, 4

#: Signals that end a run.
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Seconds until a fork server that does not answer is given up.
PATIENCE = 10.0


def main() -> None:
    directory = os.getcwd()  # noqa: PTH109  # importing pathlib would double the time that this program takes
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    answer = b""
    with suppress(OSError):
        os.chdir(sys.argv[1])  # the path of a socket may have at most 107 bytes
        connection.connect(SOCKET)
        request = json.dumps({"environment": dict(os.environ), "directory": directory}).encode()
        socket.send_fds(connection, [len(request).to_bytes(LENGTH, "big")], [0, 1, 2])
        connection.sendall(request)
        answer = connection.recv(1)
    if answer != STARTED:
        os.chdir(directory)
        os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606
    _act_as_run(connection)


def _act_as_run(connection: socket.socket) -> None:
    def pass_on(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):  # the run has just ended
            connection.sendall(bytes([number]))

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    connection.settimeout(None)
    status = connection.recv(STATUS, socket.MSG_WAITALL)
    code = int.from_bytes(status, "big", signed=True) if len(status) == STATUS else -signal.SIGKILL
    if code < 0:  # end by the same signal
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
