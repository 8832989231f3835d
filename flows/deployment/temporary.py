"""A temporary Prefect server for one command, which starts while the command prepares its run.

Prefect starts a temporary server too, but only when it is first needed, and after importing all of the
server's code into the command's process.
"""

import atexit
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from flows.deployment.addresses import api_of, host_and_port
from flows.deployment.prefect_api import (
    LOCAL_HOSTS,
    STARTUP_TIMEOUT,
    ServerUnavailableError,
    check_server,
    ui_of,
)
from flows.deployment.settings import api_url_source
from flows.repository.git import environment
from tasks.support.cli import InputError

PROJECT = Path(__file__).parents[2]

#: Seconds that the server has to end before it is killed.
GRACE = 5.0

#: What Prefect's server says about a database of a newer version.
NEWER_DATABASE = "Can't locate revision"

#: Variables that Prefect sets for its own temporary servers: no UI, and only the services of a single run.
VARIABLES = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}


def start_server() -> Callable[[], None]:
    """Start a server for this process, unless Prefect's settings name one.

    The server ends when this process exits, after Prefect has sent it the last logs and events.

    Returns:
        A function that waits until the server answers.

    Raises:
        InputError: the settings name no valid address. By the returned function: the server does not start,
            or the one in the settings does not answer.
    """
    until_exit = ExitStack()
    atexit.register(until_exit.close)
    if chosen := get_current_settings().api.url:
        source = api_url_source()
        api = api_of(chosen, f"PREFECT_API_URL, as set by {source}")
        if host_and_port(api)[0] not in LOCAL_HOSTS:
            print(f"reporting to {ui_of(api)}, with the figures of the report", file=sys.stderr)
        until_exit.enter_context(temporary_settings({PREFECT_API_URL: api}))
        return lambda: _check(api, source)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log = until_exit.enter_context(TemporaryFile())  # noqa: SIM115  # until_exit closes it
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.deployment.guard", "--host", "127.0.0.1", "--port", str(port)],
        cwd=PROJECT,  # where the module can be imported
        # Pages of other sites must not use it.
        env=environment() | VARIABLES | {"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C must end the run first, which then reports to the server
    )
    until_exit.callback(_end, process)
    until_exit.enter_context(temporary_settings({PREFECT_API_URL: f"{url}/api"}))
    return lambda: _wait(f"{url}/api", process, log)


def _check(api: str, source: str) -> None:
    """Check the server of the settings, which the user may have forgotten."""
    try:
        check_server(api)
    except ServerUnavailableError as error:
        raise InputError(
            f"{error}; PREFECT_API_URL is set by {source}; to run without that server, set PREFECT_API_URL="
        ) from None


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait(api: str, process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
    deadline = time.monotonic() + STARTUP_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(ServerUnavailableError):
            return check_server(api)
        time.sleep(0.1)
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()
    errors = [line for line in lines if "Error" in line]
    why = (errors or lines or [f"no answer within {STARTUP_TIMEOUT:.0f} s"])[-1]
    if NEWER_DATABASE in why:
        why += f"; a newer Prefect has used {get_current_settings().home}: set PREFECT_HOME to another folder"
    raise InputError(f"the temporary Prefect server did not start: {why}")
