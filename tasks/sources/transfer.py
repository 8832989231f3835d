"""Fetches remote files in pieces, several at a time, with retries. An interrupted transfer can be resumed.

    .dvc/tmp/transfers/SOURCE-VERSION/content    the pieces at their offsets; missing pieces are holes
    .dvc/tmp/transfers/SOURCE-VERSION/journal    one line per complete piece: index, length, CRC-32
    .dvc/tmp/transfers/SOURCE-VERSION/lock       held by the process that writes here

A killed process loses only the pieces that it was fetching.
"""

import bisect
import contextlib
import fcntl
import hashlib
import io
import itertools
import os
import random
import shutil
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Protocol

from tasks.common.cores import in_order
from tasks.support.cli import InputError
from tasks.support.locks import lock_file
from tasks.support.progress import progress
from tasks.support.retry import Result, retry

#: Bytes per request of a large file.
PIECE = 4 << 20
SIDE_BY_SIDE = 8

TRIES = 8
#: Seconds before the first retry, and maximum; each wait is shortened at random by up to half.
FIRST_WAIT, LONGEST_WAIT = 0.25, 30.0
#: Maximum seconds to wait if the server specifies a time.
LONGEST_REQUESTED_WAIT = 300.0


class UnavailableError(ConnectionError):
    """A server does not respond as expected; a retry after `after` seconds may succeed."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = min(after, LONGEST_REQUESTED_WAIT)


class RemoteFile(Protocol):
    """One remote file."""

    @property
    def where(self) -> str:
        """Its name in messages."""

    @property
    def version(self) -> str | None:
        """Changes with the content; None if the server does not tell."""

    @property
    def size(self) -> int | None: ...

    @property
    def ranges(self) -> bool:
        """Whether parts of the file can be read. If not, `size` may be None."""

    def chunks(self, start: int, size: int | None) -> Iterator[bytes]:
        """The bytes from `start` on, or all of them.

        Raises:
            UnavailableError: a retry may succeed.
            InputError: no retry can succeed, or the file has changed.
        """


def retrying(work: Callable[[], Result], stop: threading.Event | None = None) -> Result:
    """Call `work`; retry with increasing delays while it raises UnavailableError."""

    def failed(error: Exception, delay: float | None) -> float | None:
        if delay is None or not isinstance(error, UnavailableError):
            return None
        return max(delay, error.after)

    waits = (min(FIRST_WAIT * 2**number, LONGEST_WAIT) for number in range(TRIES - 1))
    return retry(work, (wait * random.uniform(0.5, 1) for wait in waits), failed, stop)


def staging_folder(base: Path, source: str, version: str | None) -> Path:
    """The staging folder for a version of a source; without a version, a new folder every time."""
    words = [source.encode(), version.encode() if version else os.urandom(16)]
    return base / ".dvc/tmp/transfers" / "-".join(hashlib.sha256(word).hexdigest()[:16] for word in words)


class Transfer:
    """Consecutive remote pieces, presented as one file.

    Bytes read before `bring` are kept in memory, which suits a zip directory but not much more.

    Args:
        where: name in messages.
        lengths: lengths of the pieces; the last may be None if its length is unknown until it is fetched.
        fetch: returns the bytes of a piece by its index.
        folder: the staging folder.
    """

    def __init__(
        self,
        where: str,
        lengths: Sequence[int | None],
        fetch: Callable[[int], Iterable[bytes]],
        folder: Path,
    ) -> None:
        self._where, self._fetch, self._folder = where, fetch, folder
        self._lengths = list(lengths)
        self._offsets = [0, *itertools.accumulate(length or 0 for length in lengths)]
        self._held: dict[int, bytes] = {}
        self._staging: _Staging | None = None

    @property
    def size(self) -> int:
        """Total bytes of all pieces; the last piece counts once its length is known."""
        return self._offsets[-2] + (self._lengths[-1] or 0)

    def pieces(self, start: int, end: int) -> range:
        """The indices of the pieces that contain these bytes."""
        return range(self._piece_at(start), self._piece_at(max(start, end - 1)) + 1)

    def read(self, start: int, size: int) -> bytes:
        end = min(start + size, self.size)
        if start >= end:
            return b""
        return b"".join(self._read_piece(i, start, end) for i in self.pieces(start, end))

    def read_piece(self, index: int) -> bytes:
        start, length = self._offsets[index], self._lengths[index]
        assert length is not None
        return self._read_piece(index, start, start + length)

    def bring(self, pieces: Iterable[int]) -> None:
        """Fetch the pieces that are not staged yet. `close` or `discard` releases the staging folder.

        Waits while another process uses the folder.

        Raises:
            UnavailableError: all tries for a piece failed. Complete pieces are kept for the next call.
            InputError: raised by `fetch`.
        """
        wanted = set(pieces)
        if not wanted:
            return
        try:
            self._bring(wanted)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the staging folder; another process can continue with its pieces."""
        if self._staging:
            self._staging.close()
            self._staging = None

    def discard(self) -> None:
        """Delete the staged pieces."""
        if self._staging:
            shutil.rmtree(self._folder, ignore_errors=True)
            self.close()

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """On exit, delete the staged pieces if all went well or they are invalid; otherwise keep them."""
        try:
            yield
        except InputError:
            self.discard()
            raise
        except BaseException:
            self.close()
            raise
        self.discard()

    def _piece_at(self, position: int) -> int:
        return bisect.bisect_right(self._offsets, position, hi=len(self._offsets) - 1) - 1

    def _bring(self, pieces: set[int]) -> None:
        staging = self._staging = self._staging or _Staging(self._folder, self._where)
        missing = sorted(pieces - staging.whole.keys())
        if missing and staging.whole:
            print(f"{self._where}: resuming, {len(missing)} of {len(pieces)} pieces are missing", flush=True)
        stop = threading.Event()

        def fetch_once(index: int) -> None:
            chunks = [self._held[index]] if index in self._held else self._fetch(index)
            staging.write(index, self._offsets[index], self._lengths[index], _until(stop, chunks))

        def fetch(index: int) -> None:
            retrying(lambda: fetch_once(index), stop)

        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            try:
                done = in_order(pool, fetch, missing, ahead=4 * SIDE_BY_SIDE)
                for _ in progress(done, len(missing), "fetch"):
                    pass
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)
        self._held.clear()
        if self._lengths[-1] is None:
            self._lengths[-1] = staging.whole.get(len(self._lengths) - 1)

    def _read_piece(self, index: int, start: int, end: int) -> bytes:
        """The part of these bytes that is in this piece."""
        offset, length = self._offsets[index], self._lengths[index]
        assert length is not None
        start, end = max(start, offset), min(end, offset + length)
        if self._staging and index in self._staging.whole:
            return self._staging.read(start, end - start)
        if index not in self._held:
            self._held[index] = retrying(lambda: self._fetch_whole(index, length))
        return self._held[index][start - offset : end - offset]

    def _fetch_whole(self, index: int, length: int) -> bytes:
        content = b"".join(self._fetch(index))
        if len(content) != length:
            raise UnavailableError(f"{self._where}: received {len(content)} of {length} bytes")
        return content


class RemoteReader(io.RawIOBase):
    """A seekable remote file. `transfer` fetches the pieces that will be needed."""

    def __init__(self, remote: RemoteFile, folder: Path) -> None:
        self.transfer = Transfer(
            remote.where, _lengths(remote), lambda index: _piece_of(remote, index), folder
        )
        self._position = 0
        if not remote.ranges:
            self.transfer.bring([0])

    @property
    def size(self) -> int:
        return self.transfer.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise OSError("before the beginning of the file")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        content = self.transfer.read(self._position, len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def _lengths(remote: RemoteFile) -> Sequence[int | None]:
    if not remote.ranges or remote.size is None:
        return [remote.size]
    whole, rest = divmod(remote.size, PIECE)
    return [PIECE] * whole + [rest] * bool(rest or not whole)


def _piece_of(remote: RemoteFile, index: int) -> Iterator[bytes]:
    if not remote.ranges or remote.size is None:
        return remote.chunks(0, None)
    start = index * PIECE
    return remote.chunks(start, min(PIECE, remote.size - start))


def _until(stop: threading.Event, chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        if stop.is_set():
            raise UnavailableError("stopped because another piece failed")
        yield chunk


class _Staging:
    """The locked folder of a transfer; `whole` maps the index of each complete piece to its length."""

    def __init__(self, folder: Path, where: str) -> None:
        self._folder, self._where = folder, where
        self._open = contextlib.ExitStack()
        _remove_other_versions(folder)
        self._open.enter_context(_locked(folder / "lock", where))
        content = os.open(folder / "content", os.O_RDWR | os.O_CREAT, 0o644)
        self._content = self._open.enter_context(os.fdopen(content, "r+b", 0))
        self._journal = self._open.enter_context((folder / "journal").open("a+", encoding="ascii"))
        self._writing = threading.Lock()
        self.whole = self._read_journal()

    def write(self, index: int, offset: int, length: int | None, chunks: Iterable[bytes]) -> None:
        """Write a piece at its offset.

        Raises:
            UnavailableError: the piece is truncated.
        """
        size = crc32 = 0
        for chunk in chunks:
            self._pwrite(chunk, offset + size)
            size, crc32 = size + len(chunk), zlib.crc32(chunk, crc32)
        if length is not None and size != length:
            raise UnavailableError(f"{self._where}: received {size} of {length} bytes")
        with self._writing:
            self._journal.write(f"{index} {offset} {size} {crc32}\n")
            self._journal.flush()
            self.whole[index] = size

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._content.fileno(), size, offset)

    def close(self) -> None:
        self._open.close()

    __del__ = close

    def _pwrite(self, chunk: bytes, offset: int) -> None:
        view = memoryview(chunk)
        try:
            while view:
                written = os.pwrite(self._content.fileno(), view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._folder)) from error

    def _read_journal(self) -> dict[int, int]:
        """The pieces that match their checksum: after a crash, a line may be on disk without its piece."""
        self._journal.seek(0)
        text = self._journal.read()
        complete = text.rpartition("\n")[0]
        self._journal.truncate(len(complete) + bool(complete))
        whole = {}
        for line in complete.splitlines():
            index, offset, size, crc32 = map(int, line.split())
            if self._crc32(offset, size) == crc32:
                whole[index] = size
        return whole

    def _crc32(self, offset: int, size: int) -> int:
        crc32 = 0
        for start in range(offset, offset + size, PIECE):
            crc32 = zlib.crc32(self.read(start, min(PIECE, offset + size - start)), crc32)
        return crc32


def _locked(path: Path, where: str) -> IO[bytes]:
    """Open the lock file and hold its lock."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(path.open("wb"))
            try:
                lock_file(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{where}: waiting for another process that is fetching it", flush=True)
                lock_file(file, fcntl.LOCK_EX)
            # The previous holder may have deleted the file.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                stack.pop_all()  # the caller closes it
                return file


def _remove_other_versions(folder: Path) -> None:
    """Delete the folders of older versions of the source, except those in use by another process."""
    for other in folder.parent.glob(f"{folder.name.partition('-')[0]}-*"):
        if other != folder and (other / "lock").exists():
            with (other / "lock").open("wb") as lock, contextlib.suppress(BlockingIOError):
                lock_file(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(other, ignore_errors=True)
