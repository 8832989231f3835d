"""The server of the reports."""

import http.client
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from flows.deployment.reports import ReportHandler, serving_reports
from tasks.support.cli import InputError


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("runs/x/index.html", "runs/.logs/server.log", "secret/index.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "runs" / "logs").symlink_to(tmp_path / "runs" / ".logs")
    return tmp_path / "runs"


@pytest.fixture
def reports(runs: Path) -> Iterator[str]:
    with serving_reports(runs, "127.0.0.1", 0) as url:
        yield url


def get(url: str, path: str) -> tuple[int, str]:
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_a_report_is_served(reports: str) -> None:
    assert get(reports, "/x/") == (200, "runs/x/index.html")


@pytest.mark.parametrize("path", ["/x/", "/nothing"])
def test_a_page_may_load_and_run_nothing(reports: str, path: str) -> None:
    with closing(http.client.HTTPConnection(urlsplit(reports).netloc, timeout=10)) as connection:
        connection.request("GET", path)
        headers = connection.getresponse().headers
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ") and "script-src" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1", 200),
        ("localhost", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("", 403),
        ("[", 403),
    ],
)
def test_a_host_name_of_another_machine_is_refused(reports: str, host: str, status: int) -> None:
    with closing(http.client.HTTPConnection(urlsplit(reports).netloc, timeout=10)) as connection:
        connection.request("GET", "/x/index.html", headers={"Host": host})
        assert connection.getresponse().status == status


@pytest.mark.parametrize("path", ["/", "/%00", "/x%00/", "/link/", "/link/index.html", "/logs/server.log"])
def test_lists_null_bytes_and_links_to_other_files_are_not_found(reports: str, path: str) -> None:
    assert get(reports, path)[0] == 404


def test_a_connection_without_a_request_is_closed(reports: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReportHandler, "timeout", 0.2)
    address = urlsplit(reports)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=10) as connection:
        assert connection.recv(1) == b""


def test_it_can_listen_on_an_ipv6_address(runs: Path) -> None:
    with serving_reports(runs, "::1", 0) as url:
        assert url.startswith("http://[::1]:")
        assert get(url, "/x/index.html")[0] == 200


@pytest.mark.parametrize(
    ("host", "port", "line"),
    [
        ("127.0.0.1", 65536, "^--reports-port 65536: ports are 0 to 65535; choose another"),
        ("no such host", 0, "^--reports-host no such host: "),
        ("192.0.2.1", 0, "^--reports-host 192.0.2.1: Cannot assign requested address$"),
    ],
)
def test_an_invalid_address_is_reported(runs: Path, host: str, port: int, line: str) -> None:
    with pytest.raises(InputError, match=line), serving_reports(runs, host, port):
        pass
