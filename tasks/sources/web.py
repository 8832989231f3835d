"""A file on a web server, read in ranges if the server supports them."""

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

#: Timeouts in seconds: to connect, and between received bytes.
TIMEOUT = (10, 60)
CHUNK = 1 << 20


class WebFile:
    """The file at a URL. All bytes come from the same version of the file.

    Args:
        locate: returns the URL; called again if the server rejects a URL that worked before.
        where: name in messages.

    Raises:
        InputError: the file does not exist, the server refuses access, or a redirect is unsafe.
        UnavailableError: the server cannot be reached.
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
            # With If-Range, the server sends the whole file instead of the range if the version changed.
            if bool(headers) != (response.status_code == 206) or self._version_of(response) != self.version:
                raise InputError(f"{self.where}: the file changed during the download; start again")
            yield from response.iter_content(CHUNK)

    def _probe(self) -> None:
        # Not HEAD, because signed URLs are signed for GET.
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
            raise InputError(f"{self.where}: no secure connection: {reason(error)}") from None
        except requests.RequestException as error:
            raise UnavailableError(f"{self.where}: {reason(error)}") from None

    def _refuse(self, response: requests.Response) -> None:
        status = response.status_code
        if status in (408, 429) or status >= 500:
            raise UnavailableError(
                f"{self.where}: the server answered {status_of(response)}", _after(response)
            )
        if status in (401, 403):
            if self.size is not None:  # it worked before: a signed URL has expired
                self._url = None
                raise UnavailableError(f"{self.where}: the server now refuses access: {status_of(response)}")
            raise InputError(
                f"{self.where}: the server refuses access: {status_of(response)}; "
                "if it needs a user name and password, put them into ~/.netrc; a signed URL may have expired"
            )
        if status == 416 and self.size is None:
            raise InputError(f"{self.where}: the file is empty")
        if status not in (200, 206):
            raise InputError(f"{self.where}: no such file: the server answered {status_of(response)}")


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target = super().get_redirect_target(resp)
        if target:
            refuse_unsafe(requests.compat.urljoin(resp.url, target))
        return target


def refuse_unsafe(url: str) -> None:
    """Allow only HTTPS, and HTTP to this machine.

    Raises:
        InputError: the URL is unsafe.
    """
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname or "")):
        return
    raise InputError(f"data.source: {without_secrets(url)}: HTTP is not secure; use https://")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def status_of(response: requests.Response) -> str:
    return f"{response.status_code} {response.reason or ''}".strip()


def reason(error: BaseException) -> str:
    """Why the connection failed, without the URL, which may be signed."""
    innermost: BaseException | None = error
    while innermost:
        if isinstance(innermost, OSError) and innermost.strerror:
            return innermost.strerror
        innermost = innermost.__cause__ or innermost.__context__
    if isinstance(error, requests.Timeout):
        return "timed out"
    return f"the connection broke ({type(error).__name__})"


def _after(response: requests.Response) -> float:
    """The number of seconds that the server asks to wait."""
    wanted = response.headers.get("Retry-After", "")
    if wanted.isdigit():
        return float(wanted)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(wanted).timestamp() - time.time())
    except ValueError:
        return 0.0
