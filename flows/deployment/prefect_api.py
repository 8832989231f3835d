"""What `make serve` and `make worker` ask of a Prefect server."""

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

#: Seconds that a server may take to answer: its first start on an empty database is the slowest.
STARTUP = 120.0

#: Seconds in which a server answers a simple question, unless PREFECT_API_REQUEST_TIMEOUT says otherwise.
ANSWER = 10.0

HERE = ("127.0.0.1", "localhost", "0.0.0.0", "::1")  # noqa: S104

#: What a server says that will be back, or a proxy before it.
TRY_LATER = (408, 429, 500, 502, 503, 504)

STRANGER = "something other than a Prefect server is listening there"


class ServerUnavailableError(InputError):
    """No server answers, which may change."""


@contextmanager
def client_of(api: str) -> Iterator[SyncPrefectClient]:
    """A client with the password, key, certificates and headers of Prefect's settings."""
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        yield client


def ui_of(api: str) -> str:
    with temporary_settings({PREFECT_API_URL: api}):
        return get_current_settings().ui_url or api


def check_server(api: str) -> None:
    """See that a Prefect server answers, and takes the credentials of Prefect's settings.

    Raises:
        ServerUnavailableError: none answers.
        InputError: it refuses the credentials, or something else answers.
    """
    quickly = temporary_settings(
        {PREFECT_CLIENT_MAX_RETRIES: 0}, set_defaults={PREFECT_API_REQUEST_TIMEOUT: ANSWER}
    )
    try:
        with quickly, client_of(api) as client:
            client.read_work_pools(limit=1)
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status == httpx.codes.UNAUTHORIZED:
            wanted = "the server wants a password: PREFECT_API_AUTH_STRING=USER:PASSWORD"
            raise InputError(f"{api}: {wanted}") from None
        if status == httpx.codes.FORBIDDEN:
            raise InputError(f"{api}: the server refuses: {error.response.text[:200]}") from None
        if status in TRY_LATER:
            raise ServerUnavailableError(f"no Prefect server answers at {api}: status {status}") from None
        raise InputError(f"{api}: {STRANGER}") from None
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        raise ServerUnavailableError(f"no Prefect server answers at {api}: {why}") from None
    except ValueError:
        raise InputError(f"{api}: {STRANGER}") from None


def wait_for(api: str) -> None:
    """Wait for a server that somebody else starts.

    Raises:
        InputError: it does not answer in time, refuses the credentials, or is no Prefect server.
    """
    deadline = time.monotonic() + STARTUP
    while True:
        try:
            return check_server(api)
        except ServerUnavailableError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1)


def has_to_start(api: str, chosen: bool) -> bool:
    """Whether `make serve` has to start a server there; a running one is used only where the user chose it.

    Raises:
        InputError: it can't, or what runs there is not to be used.
    """
    if not chosen:
        if _is_taken(api):
            raise InputError(
                f"a server is already running at {ui_of(api)}: to use it, set PREFECT_API_URL={api}; "
                "to start one of your own, set PREFECT_SERVER_API_PORT to another port"
            )
        return True
    try:
        check_server(api)
    except ServerUnavailableError:
        if urlsplit(api).hostname not in HERE or _is_taken(api):
            raise
        return True
    return False


def _is_taken(api: str) -> bool:
    host, port = host_and_port(api)
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return True
        raise InputError(f"no server can be started at {api}: {error.strerror}") from None
    return False
