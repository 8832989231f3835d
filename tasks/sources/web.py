"""A file on a web server, read in ranges where the server can."""

import contextlib
import email.utils
import ipaddress
import re
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import requests

from tasks.sources.transfer import UnavailableError, retrying
from tasks.support.cli import InputError, without_secrets

#: Seconds to connect, and between two arrivals of bytes.
TIMEOUT = (10, 60)
CHUNK = 1 << 20


class WebFile:
    """The file at a URL; all of it is read of one version.

    Args:
        locate: its URL, asked for again where the server refuses one that it gave bytes for before.
        where: its name in messages.

    Raises:
        InputError: there is none, the server refuses it, or a redirect leads where none may.
        UnavailableError: the server can't be reached.
    """

    def __init__(self, locate: Callable[[], str], where: str) -> None:
        self.where = where
        self._locate = locate
        self._url: str | None = None
        self._validator: str | None = None
        self.version: str | None = None
        self.size: int | None = None
        self.ranges = False
        retrying(self._probe)

    def chunks(self, start: int, size: int | None) -> Iterator[bytes]:
        headers = {} if size is None else {"Range": f"bytes={start}-{start + size - 1}"}
        if headers and self._validator:
            headers["If-Range"] = self._validator
        with self._answer(headers) as response:
            # Not the part that was asked for, but all: If-Range says so of another version.
            if bool(headers) != (response.status_code == 206) or self._version_of(response) != self.version:
                raise InputError(f"{self.where}: the file changed while it was fetched; start again")
            yield from response.iter_content(CHUNK)

    def _probe(self) -> None:
        # A HEAD would do, but a signed URL is signed for GET.
        with self._answer({"Range": "bytes=0-0"}) as response:
            self.version = self._version_of(response)
            total = re.fullmatch(r"bytes 0-0/(\d+)", response.headers.get("Content-Range", ""))
            self.ranges = response.status_code == 206 and total is not None
            length = total[1] if self.ranges and total else response.headers.get("Content-Length")
            self.size = int(length) if length else None
            etag = response.headers.get("ETag", "")
            strong = etag if etag.startswith('"') else None
            self._validator = strong or response.headers.get("Last-Modified")

    @staticmethod
    def _version_of(response: requests.Response) -> str | None:
        words = [response.headers.get(name) for name in ("ETag", "Last-Modified")]
        return " ".join(filter(None, words)) or None

    @contextlib.contextmanager
    def _answer(self, headers: dict[str, str]) -> Iterator[requests.Response]:
        self._url = url = self._url or self._locate()
        refuse_unsafe(url)
        headers = {"Accept-Encoding": "identity", **headers}
        try:
            with (
                _Session() as session,
                session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response,
            ):
                self._refuse(response)
                yield response
        except requests.exceptions.SSLError as error:
            raise InputError(f"{self.where}: no safe connection: {reason(error)}") from None
        except requests.RequestException as error:
            raise UnavailableError(f"{self.where}: {reason(error)}") from None

    def _refuse(self, response: requests.Response) -> None:
        status = response.status_code
        if status in (408, 429) or status >= 500:
            raise UnavailableError(f"{self.where}: the server answers {said(response)}", _after(response))
        if status in (401, 403):
            if self.size is not None:  # it gave bytes before: a signed URL that ran out
                self._url = None
                raise UnavailableError(f"{self.where}: the server now refuses it: {said(response)}")
            raise InputError(
                f"{self.where}: the server refuses it: {said(response)}; "
                "if it needs a user and a password, put them into ~/.netrc; a signed URL may have run out"
            )
        if status == 416 and self.size is None:
            raise InputError(f"{self.where}: an empty file")
        if status not in (200, 206):
            raise InputError(f"{self.where}: no file is there: the server answers {said(response)}")


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target = super().get_redirect_target(resp)
        if target:
            refuse_unsafe(requests.compat.urljoin(resp.url, target))
        return target


def refuse_unsafe(url: str) -> None:
    """Only HTTPS is safe on the way; HTTP is for what runs on this machine.

    Raises:
        InputError: the URL is of another kind.
    """
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname or "")):
        return
    raise InputError(f"data.source: {without_secrets(url)}: anybody on the way could change it; use https://")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def said(response: requests.Response) -> str:
    return f"{response.status_code} {response.reason or ''}".strip()


def reason(error: BaseException) -> str:
    """Why there was no connection, without the URL, which may be signed."""
    innermost: BaseException | None = error
    while innermost:
        if isinstance(innermost, OSError) and innermost.strerror:
            return innermost.strerror
        innermost = innermost.__cause__ or innermost.__context__
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    return f"the connection broke ({type(error).__name__})"


def _after(response: requests.Response) -> float:
    """The seconds that the server asks to wait."""
    wanted = response.headers.get("Retry-After", "")
    if wanted.isdigit():
        return float(wanted)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(wanted).timestamp() - time.time())
    except ValueError:
        return 0.0
