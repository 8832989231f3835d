"""How a Prefect server is found, and what is reported if there is none."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_CLIENT_CUSTOM_HEADERS,
    temporary_settings,
)

from flows.deployment.addresses import api_of, is_own_host
from flows.deployment.prefect_api import ServerUnavailableError, check_server, must_start
from tasks.support.cli import InputError
from tests.fileserver import serving_requests
from tests.helpers import ROOT, free_ports


@pytest.mark.parametrize(
    ("address", "api"),
    [
        ("http://host:4200", "http://host:4200/api"),
        ("http://host:4200/", "http://host:4200/api"),
        ("http://host:4200/api", "http://host:4200/api"),
        ("http://host:4200/api/", "http://host:4200/api"),
        ("http://host:4200//api", "http://host:4200/api"),
        ("http://[::1]:4200", "http://[::1]:4200/api"),
        ("https://host/prefect/", "https://host/prefect/api"),
        ("https://host/v2/api/", "https://host/v2/api"),
        (
            "https://api.prefect.cloud/api/accounts/a/workspaces/b",
            "https://api.prefect.cloud/api/accounts/a/workspaces/b",
        ),
    ],
)
def test_server_addresses_are_accepted_in_every_common_form(address: str, api: str) -> None:
    assert api_of(address, "--server") == api


@pytest.mark.parametrize("address", ["", "host:4200", "::1:4200", "ftp://host", "http://:4200", "http://h:x"])
def test_an_invalid_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=r"--server: .* is not the address of a server"):
        api_of(address, "--server")


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match="PREFECT_API_AUTH_STRING=USER:PASSWORD") as refused:
        api_of("https://me:secret@host/api", "PREFECT_API_URL")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("host", ["localhost:4200", "LOCALHOST", "10.0.0.7:4200", "[::1]:4200", "gpu1:80"])
def test_ip_addresses_and_own_host_names_are_own(host: str) -> None:
    assert is_own_host(host, {"localhost", "gpu1"})


@pytest.mark.parametrize("host", ["", "elsewhere.example:4200", "localhost.elsewhere.example", "[", "gpu1.x"])
def test_other_host_names_are_not_own(host: str) -> None:
    assert not is_own_host(host, {"localhost", "gpu1"})


# --- servers that respond -----------------------------------------------------------------------------------


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve with a handler, and yield the address that its API would have."""
    with serving_requests(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}/api"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def away_with(code: int) -> type[BaseHTTPRequestHandler]:
    class Away(Quiet):
        def do_POST(self) -> None:
            self.send_error(code)

    return Away


@pytest.fixture(scope="module")
def front(prefect_api: tuple[str, Path]) -> Iterator[str]:
    """A proxy of a real server that requires a password and a header."""

    class Front(Quiet):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            allowed = (
                self.headers["Authorization"] == "Basic bWU6c2VjcmV0" and self.headers["X-Team"] == "ours"
            )
            if not allowed:
                self.send_error(401)
                return
            passed = httpx.post(f"{prefect_api[0]}{self.path.removeprefix('/api')}", content=body)
            self.send_response(passed.status_code)
            self.send_header("Content-Length", str(len(passed.content)))
            self.end_headers()
            self.wfile.write(passed.content)

    with listening(Front) as api:
        yield api


def test_the_password_is_sent_to_a_server_that_requires_it(front: str) -> None:
    settings = {PREFECT_API_AUTH_STRING: "me:secret", PREFECT_CLIENT_CUSTOM_HEADERS: {"X-Team": "ours"}}
    with temporary_settings(settings):
        check_server(front)
        assert not must_start(front, chosen=True)


def test_a_missing_password_is_reported(front: str) -> None:
    with pytest.raises(InputError, match="requires a password: set PREFECT_API_AUTH_STRING=USER:PASSWORD"):
        check_server(front)


def test_another_web_server_is_not_taken_for_a_prefect_server() -> None:
    with listening(away_with(404)) as api, pytest.raises(InputError, match="something other than a Prefect"):
        check_server(api)


@pytest.mark.parametrize("code", [500, 502, 503])
def test_an_unavailable_server_behind_a_proxy_counts_as_unavailable(code: int) -> None:
    with listening(away_with(code)) as api, pytest.raises(ServerUnavailableError, match=f"status {code}"):
        check_server(api)


def test_no_server_is_started_at_a_port_that_accepts_connections_but_does_not_respond() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        temporary_settings({PREFECT_API_REQUEST_TIMEOUT: 0.5}),
    ):
        api = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        with pytest.raises(ServerUnavailableError, match="no Prefect server answers"):
            must_start(api, chosen=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
@pytest.mark.parametrize("chosen", [True, False])
def test_a_server_is_started_at_a_free_local_port(host: str, chosen: bool) -> None:
    assert must_start(f"http://{host}:{free_ports(1)[0]}/api", chosen)


def test_no_server_is_started_on_another_machine() -> None:
    with pytest.raises(ServerUnavailableError, match="no Prefect server answers"):
        must_start(f"http://127.0.0.2:{free_ports(1)[0]}/api", chosen=True)


# --- proxies ------------------------------------------------------------------------------------------------

#: Prints the proxy settings after `import flows`.
NO_PROXY = "import flows, os; print(os.environ['no_proxy'], os.environ['NO_PROXY'])"
LOCAL = "127.0.0.1,localhost,::1,0.0.0.0"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, [LOCAL, LOCAL]),
        ({"NO_PROXY": "a.example"}, [f"a.example,{LOCAL}"] * 2),
        ({"no_proxy": "b", "NO_PROXY": "a"}, [f"b,{LOCAL}"] * 2),
        ({"no_proxy": "*", "NO_PROXY": "*"}, ["*", "*"]),
    ],
)
def test_local_addresses_bypass_the_proxy(before: dict[str, str], after: list[str]) -> None:
    kept = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    done = subprocess.run(
        [sys.executable, "-c", NO_PROXY],
        cwd=ROOT,
        env=kept | before,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == after
