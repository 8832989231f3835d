"""Files in an S3 bucket: all objects below a prefix, or a single object.

Endpoint, region, profile and credentials come from the usual environment (AWS_ENDPOINT_URL, AWS_PROFILE,
AWS_ACCESS_KEY_ID, ~/.aws, ...). Without credentials, requests are anonymous.
"""

import asyncio
import contextlib
import hashlib
import http.client
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import botocore.session
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync
from s3fs import S3FileSystem

from tasks.sources.source import Stamp, refuse_large
from tasks.sources.transfer import Transfer, UnavailableError, retrying, staging_folder
from tasks.support.cli import InputError

CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"

#: Errors that may disappear on a retry.
_BROKEN = (
    aiohttp.ClientError,
    asyncio.IncompleteReadError,
    http.client.IncompleteRead,
    ConnectionError,
    HTTPClientError,
    NoConnectionError,
    ResponseParserError,
    TimeoutError,
)


class Object(NamedTuple):
    size: int
    etag: str

    @property
    def digest(self) -> str:
        """The MD5, if the ETag is one. The ETag of a multipart upload is not an MD5."""
        return f"{'md5' if re.fullmatch('[0-9a-f]{32}', self.etag) else 'etag'}:{self.etag}"


class Bucket:
    """A connection to a bucket. Each request is tried once; `tasks.sources.transfer` does the retries.

    Raises only InputError and UnavailableError.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        with self._errors():
            credentials = botocore.session.Session().get_credentials()
            self._anonymous = credentials is None
            self._files = S3FileSystem(
                anon=self._anonymous,
                config_kwargs={"retries": {"max_attempts": 0}},
                use_listings_cache=False,
                skip_instance_cache=True,
            )
            self._files.retries = 1
            self._client: Any = self._files.connect()

    def find(self, prefix: str, may_be_empty: bool = False) -> dict[str, Object]:
        """All objects below `BUCKET/PREFIX`: `BUCKET/KEY` -> object."""
        found = retrying(lambda: self._find(prefix))
        if not found and not may_be_empty:
            raise InputError(f"{self.where}: there are no objects below this prefix")
        return {name: Object(info["size"], info["ETag"].strip('"')) for name, info in found.items()}

    def stat(self, name: str) -> Object:
        """Size and ETag of the object `BUCKET/KEY`."""
        bucket, _, key = name.partition("/")
        head = retrying(lambda: self._call(lambda: self._client.head_object(Bucket=bucket, Key=key)))
        return Object(head["ContentLength"], head["ETag"].strip('"'))

    def read(self, name: str, etag: str, start: int = 0, size: int | None = None) -> bytes:
        """Read an object or a part of it, provided that it still has this ETag."""
        bucket, _, key = name.partition("/")
        part = {} if size is None else {"Range": f"bytes={start}-{start + size - 1}"}

        async def read() -> bytes:
            answer = await self._client.get_object(Bucket=bucket, Key=key, IfMatch=f'"{etag}"', **part)
            async with answer["Body"] as body:
                content: bytes = await body.read()
                return content

        content: bytes = self._call(read)
        return content

    def _find(self, prefix: str) -> dict[str, Any]:
        with self._errors():
            found: dict[str, Any] = self._files.find(prefix, detail=True)
            return found

    def _call(self, work: Any) -> Any:
        with self._errors():
            return sync(self._files.loop, work)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, ClientError, OSError, *_BROKEN) as error:
            raise self._translated(error) from None

    def _translated(self, error: Exception) -> Exception:
        answer = error if isinstance(error, ClientError) else error.__cause__
        if isinstance(answer, ClientError):
            return self._refusal(answer)
        if isinstance(error, _BROKEN):
            return UnavailableError(f"{self.where}: {' '.join(str(error).split()) or type(error).__name__}")
        if isinstance(error, FileNotFoundError):
            return InputError(f"{self.where}: does not exist")
        return InputError(f"{self.where}: {' '.join(str(error).split())}")

    def _refusal(self, error: ClientError) -> Exception:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status in (408, 429) or status >= 500 or code in ("SlowDown", "RequestTimeout"):
            return UnavailableError(f"{self.where}: the server answered {status} {code}")
        if status == 412:
            return InputError(f"{self.where}: a file changed during the download; start again")
        if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"):
            return InputError(f"{self.where}: the credentials are wrong ({code}); set {CREDENTIALS}")
        if code == "InvalidObjectState":
            return InputError(f"{self.where}: an object is archived, so it cannot be read; restore it first")
        if status in (401, 403) and self._anonymous:
            return InputError(f"{self.where}: no anonymous access ({code}); set {CREDENTIALS}")
        if status in (401, 403):
            return InputError(
                f"{self.where}: access denied ({code}): these credentials may not list or read it; "
                f"ask the owner for permission, or set other credentials: {CREDENTIALS}"
            )
        if code == "NoSuchBucket":
            return InputError(f"{self.where}: no such bucket; check AWS_ENDPOINT_URL")
        if status == 404:
            return InputError(f"{self.where}: no such object")
        return InputError(f"{self.where}: the server answered {status} {code}")


class BucketFile:
    """A single object, as a `tasks.sources.transfer.RemoteFile`."""

    ranges = True

    def __init__(self, source: str) -> None:
        self.where = source
        self._name = source.removeprefix("s3://")
        self._bucket = Bucket(source)
        self._object = self._bucket.stat(self._name)
        self.size, self.version = self._object.size, self._object.etag

    def chunks(self, start: int, size: int | None) -> Iterator[bytes]:
        yield self._bucket.read(self._name, self._object.etag, start, size)


class BucketFolder:
    """The objects of a bucket below a prefix, named `BUCKET/KEY`."""

    def __init__(self, source: str, base: Path) -> None:
        self._bucket = Bucket(source)
        self.base = source.removeprefix("s3://").rstrip("/") + "/"
        self._objects = dict(sorted(self._bucket.find(source.removeprefix("s3://")).items()))
        self._names = list(self._objects)
        self._indices = {name: index for index, name in enumerate(self._names)}
        self._transfer = Transfer(
            source,
            [found.size for found in self._objects.values()],
            self._fetch,
            staging_folder(base, source, _version_of(self._objects)),
        )

    def names(self) -> list[str]:
        return [name for name in self._names if not name.endswith("/")]  # the rest are empty folders

    def stamps(self, names: Iterable[str], /) -> dict[str, Stamp]:
        return {name: Stamp(self._harmless(name), self._objects[name].digest) for name in names}

    def read(self, name: str) -> bytes:
        self._harmless(name)
        return retrying(lambda: self._bucket.read(name, self._objects[name].etag))

    @contextlib.contextmanager
    def reading(self, names: Sequence[str], /) -> Iterator[Iterator[bytes]]:
        for name in names:
            self._harmless(name)
        self._transfer.bring(self._indices[name] for name in names)
        with self._transfer.used():
            yield (self._transfer.read_piece(self._indices[name]) for name in names)

    def _harmless(self, name: str) -> int:
        size = self._objects[name].size
        refuse_large(self._bucket.where, name, size)
        return size

    def _fetch(self, index: int) -> Iterator[bytes]:
        name = self._names[index]
        yield self._bucket.read(name, self._objects[name].etag)


def _version_of(objects: dict[str, Object]) -> str:
    """A digest of the whole listing."""
    return hashlib.sha256(json.dumps(sorted(objects.items())).encode()).hexdigest()
