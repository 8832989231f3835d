"""Connections of `make serve` and `make worker` to a Prefect server."""

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    get_current_settings,
    temporary_settings,
)

from flows.deployment.addresses import host_and_port
from tasks.support.cli import InputError

#: Seconds that a server may take to start. The first start on an empty database is the slowest.
STARTUP_TIMEOUT = 120.0

#: Timeout of a simple request in seconds, unless PREFECT_API_REQUEST_TIMEOUT is set.
REQUEST_TIMEOUT = 10.0

LOCAL_HOSTS = ("127.0.0.1", "localhost", "0.0.0.0", "::1")  # noqa: S104

#: Statuses of a server, or of a proxy before it, that is temporarily unavailable.
TRANSIENT_STATUSES = (408, 429, 500, 502, 503, 504)

NOT_PREFECT = "something other than a Prefect server is listening there"


class ServerUnavailableError(InputError):
    """No server answers at the moment."""


@contextmanager
def client_of(api: str) -> Iterator[SyncPrefectClient]:
    """Return a client that uses the password, key, certificates and headers of Prefect's settings."""
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        yield client


def ui_of(api: str) -> str:
    with temporary_settings({PREFECT_API_URL: api}):
        return get_current_settings().ui_url or api


def check_server(api: str) -> None:
    """Check that a Prefect server answers and accepts the credentials of Prefect's settings.

    Raises:
        ServerUnavailableError: no server answers.
        InputError: the server refuses the credentials, or is not a Prefect server.
    """
    quickly = temporary_settings(
        {PREFECT_CLIENT_MAX_RETRIES: 0}, set_defaults={PREFECT_API_REQUEST_TIMEOUT: REQUEST_TIMEOUT}
    )
    try:
        with quickly, client_of(api) as client:
            client.read_work_pools(limit=1)
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status == httpx.codes.UNAUTHORIZED:
            wanted = "the server requires a password: set PREFECT_API_AUTH_STRING=USER:PASSWORD"
            raise InputError(f"{api}: {wanted}") from None
        if status == httpx.codes.FORBIDDEN:
            raise InputError(f"{api}: the server refused access: {error.response.text[:200]}") from None
        if status in TRANSIENT_STATUSES:
            raise ServerUnavailableError(f"no Prefect server answers at {api}: status {status}") from None
        raise InputError(f"{api}: {NOT_PREFECT}") from None
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        raise ServerUnavailableError(f"no Prefect server answers at {api}: {why}") from None
    except ValueError:
        raise InputError(f"{api}: {NOT_PREFECT}") from None


def wait_for(api: str) -> None:
    """Wait until a server that another process starts answers.

    Raises:
        InputError: it does not answer in time, refuses the credentials, or is not a Prefect server.
    """
    deadline = time.monotonic() + STARTUP_TIMEOUT
    while True:
        try:
            return check_server(api)
        except ServerUnavailableError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1)


def must_start(api: str, chosen: bool) -> bool:
    """Return whether `make serve` has to start a server at an address.

    A running server is used only if the user chose it, as by PREFECT_API_URL.

    Raises:
        InputError: a server cannot be started there, or the running one must not be used.
    """
    if not chosen:
        if is_taken(api):
            raise InputError(
                f"a server is already running at {ui_of(api)}: to use it, set PREFECT_API_URL={api}; "
                "to start one of your own, set PREFECT_SERVER_API_PORT to another port"
            )
        return True
    try:
        check_server(api)
    except ServerUnavailableError:
        if urlsplit(api).hostname not in LOCAL_HOSTS or is_taken(api):
            raise
        return True
    return False


def is_taken(api: str) -> bool:
    host, port = host_and_port(api)
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return True
        raise InputError(f"cannot start a server at {api}: {error.strerror}") from None
    return False
