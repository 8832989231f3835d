"""Proxies, certificates and clocks: dead, missing and wrong ones."""

import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flows.checks.check import Check, Finding, Level, Running
from flows.checks.network import check_certificates, check_clients, check_clock, check_proxies
from tests.fileserver import serving_requests
from tests.helpers import Repository


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore the network of the machine that runs the tests."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
    for name in (*names, "CURL_CA_BUNDLE", "AWS_CA_BUNDLE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path)
    repository.run("git", "init", "--quiet")
    repository.name_author()
    repository.run("git", "commit", "--quiet", "--allow-empty", "--message", "start")
    return repository


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_without_settings_all_is_fine() -> None:
    assert list(check_clients(Path())) == list(check_certificates(Path())) == []
    assert only(check_proxies(Path())) == (Level.OK, "no proxy is set", "")


def test_a_dead_proxy_is_a_fault_and_its_password_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@127.0.0.1:9")
    (finding,) = Running(Check("proxies", check_proxies), Path()).result().findings
    assert finding.level is Level.FAULT
    assert finding.found == (
        "HTTPS_PROXY: 127.0.0.1:9 does not answer (Connection refused): "
        "no server on another machine can be reached"
    )
    assert "secret" not in str(finding)


def test_a_proxy_that_answers_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"127.0.0.1:{proxy.getsockname()[1]}"
        monkeypatch.setenv("HTTPS_PROXY", address)
        finding = only(check_proxies(Path()))
    assert finding.level is Level.OK
    assert finding.found.startswith(f"HTTPS_PROXY: {address} answers")


def test_a_proxy_that_clients_cannot_use_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks4://127.0.0.1:1080")
    finding = only(check_clients(Path()))
    assert finding.level is Level.FAULT
    assert finding.found.startswith("the proxy in the environment cannot be used: ")


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"])
def test_missing_certificates_are_a_fault(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "/nowhere/ca.pem")
    finding = only(check_certificates(Path()))
    assert finding[:2] == (Level.FAULT, f"{name} names /nowhere/ca.pem, which cannot be read")
    assert len(list(check_clients(Path()))) == (name == "SSL_CERT_FILE")


@contextmanager
def server_with_clock(ahead: float) -> Iterator[str]:
    """A web server whose clock is this many seconds ahead."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(403)
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(time.time() + ahead, usegmt=True)

        def log_message(self, *_: object) -> None:
            pass

    with serving_requests(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}"


def by_endpoint(url: str, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)


def by_remote(url: str, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository.folder / ".dvc").mkdir()
    (repository.folder / ".dvc" / "config").write_text(
        "[core]\n    remote = store\n['remote \"store\"']\n"
        f"    url = s3://bucket\n    endpointurl = {url}/path\n"
    )


def by_origin(url: str, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    address = url.replace("http://", "http://user:token@")
    repository.run("git", "remote", "add", "origin", f"{address}/repository.git")


@pytest.mark.parametrize("named", [by_endpoint, by_remote, by_origin])
@pytest.mark.parametrize(
    ("ahead", "level", "words"),
    [
        (0, Level.OK, "the clock agrees with that of"),
        (-120, Level.WARNING, "the clock is 2 minutes ahead of that of"),
        (3600, Level.FAULT, "the clock is 60 minutes behind that of"),
    ],
)
def test_the_clock_is_compared_with_a_server_of_the_settings(
    named: Callable[[str, Repository, pytest.MonkeyPatch], None],
    ahead: float,
    level: Level,
    words: str,
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with server_with_clock(ahead) as url:
        named(url, repository, monkeypatch)
        finding = only(check_clock(repository.folder))
    assert finding.level is level
    assert finding.found.startswith(f"{words} {url}")


def test_without_a_server_the_clock_is_compared_with_the_last_commit(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert only(check_clock(repository.folder)).level is Level.OK
    monkeypatch.setenv("GIT_COMMITTER_DATE", formatdate(time.time() + 7 * 86400))
    repository.run("git", "commit", "--quiet", "--allow-empty", "--message", "from the future")
    finding = only(check_clock(repository.folder))
    assert (finding.level, finding.found) == (Level.WARNING, "the clock is 7 days behind the last commit")
