"""Checks of proxies, certificates and the clock."""

import os
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

import httpx
from dvc.config import Config, ConfigError
from prefect.settings import get_current_settings

from flows.checks.check import Check, Finding, fault, ok, warning
from flows.deployment.addresses import host_and_port
from flows.repository.git import git
from flows.repository.refs import ORIGIN
from tasks.support.cli import InputError

#: Seconds to wait for a connection or an answer.
PATIENCE = 5.0

#: Difference of clocks in seconds from which one is named, and from which servers refuse requests. S3 allows
#: 15 minutes.
NOTABLE, REFUSED = 60.0, 300.0

SYNCHRONISE = "synchronise it, for example with `timedatectl set-ntp true`"

#: Variables with the path of certificates to trust.
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")


def check_clients(folder: Path) -> Iterator[Finding]:
    """Check that Prefect's client can start with the proxies and certificates of the environment."""
    try:
        httpx.Client().close()
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        reason = " ".join(str(error).split())
        yield fault(
            f"the proxy in the environment cannot be used: {reason}", "set HTTPS_PROXY=http://HOST:PORT"
        )
    except (OSError, ssl.SSLError) as error:
        yield fault(
            f"the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read: {error}",
            "correct the path, or unset the variable",
        )


def check_certificates(folder: Path) -> Iterator[Finding]:
    named = {name: path for name in CERTIFICATES if (path := os.environ.get(name))}
    missing = {name: path for name, path in named.items() if not os.access(path, os.R_OK)}
    for name, path in missing.items():
        yield fault(f"{name} names {path}, which cannot be read", "correct the path, or unset the variable")
    if named and not missing:
        yield ok(f"certificates as named by {', '.join(named)}")


def check_proxies(folder: Path) -> Iterator[Finding]:
    """Check that each proxy of the environment answers. Servers on this machine are reached without them."""
    proxies = getproxies_environment()
    proxies.pop("no", None)
    if not proxies:
        yield ok("no proxy is set")
    for scheme, url in sorted(proxies.items()):
        address = url if "://" in url else f"http://{url}"
        host, port = host_and_port(address)
        try:
            socket.create_connection((host, port), timeout=PATIENCE).close()
        except OSError as error:
            yield fault(
                f"{scheme.upper()}_PROXY: {host}:{port} does not answer ({error.strerror or error}): "
                "no server on another machine can be reached",
                f"correct or unset {scheme.upper()}_PROXY, also in small letters",
            )
        else:
            yield ok(f"{scheme.upper()}_PROXY: {host}:{port} answers; this machine's servers do not need it")


def check_clock(folder: Path) -> Iterator[Finding]:
    """Compare the clock with a server that is used anyway, or else with the last commit."""
    for server in _servers(folder):
        with suppress(httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError):
            date = httpx.head(server, timeout=PATIENCE).headers["Date"]
            yield _compare_clocks(time.time() - parsedate_to_datetime(date).timestamp(), server)
            return
    behind = int(git(folder, "log", "-1", "--format=%ct", timeout=PATIENCE)) - time.time()
    if behind > NOTABLE:
        yield warning(f"the clock is {_duration(behind)} behind the last commit", SYNCHRONISE)
    else:
        yield ok("the clock is not behind the last commit; no server was asked")


def _compare_clocks(ahead: float, server: str) -> Finding:
    words = f"the clock is {_duration(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} that of {server}"
    if abs(ahead) < NOTABLE:
        return ok(f"the clock agrees with that of {server}")
    if abs(ahead) < REFUSED:
        return warning(words, SYNCHRONISE)
    return fault(f"{words}: S3 and HTTPS servers refuse requests", SYNCHRONISE)


def _servers(folder: Path) -> Iterator[str]:
    """Yield the HTTP servers that the settings name, without the paths and passwords of their URLs."""
    for url in _urls(folder):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https"):
            yield f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _urls(folder: Path) -> Iterator[str]:
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        yield endpoint
    with suppress(ConfigError):
        config = Config(str(folder / ".dvc"))
        remote = config["remote"].get(config["core"].get("remote"), {})
        yield from (remote.get("endpointurl", ""), remote.get("url", ""))
        if remote.get("url", "").startswith("s3://") and "endpointurl" not in remote:
            yield "https://s3.amazonaws.com"
    if api := get_current_settings().api.url:
        yield api
    with suppress(InputError):
        yield git(folder, "remote", "get-url", ORIGIN, timeout=PATIENCE)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


CHECKS = (
    Check("HTTP", check_clients, before_runs=True),
    Check("certificates", check_certificates),
    Check("proxies", check_proxies, limit=20),
    Check("clock", check_clock, limit=30),
)
