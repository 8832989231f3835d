"""Zip archives, local or remote. Links and member names that lead outside are rejected."""

import contextlib
import hashlib
import io
import itertools
import stat
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from tasks.common.raw import is_damage
from tasks.sources.source import Stamp, refuse_large
from tasks.sources.transfer import RemoteFile, RemoteReader, staging_folder
from tasks.support.cli import InputError

#: A member larger than SMALL_FILE may expand at most LARGEST_RATIO times; deflate can reach 1,000.
SMALL_FILE, LARGEST_RATIO = 1 << 20, 100
#: Bytes of a member's local header, without its name.
HEADER = 30


class ZipSource:
    """The members of a zip archive. Members whose names lead outside the archive are rejected.

    Args:
        file: the archive.
        where: its name in messages; by default its path.
        sha256: digest of the whole archive, checked before any member is read.

    Raises:
        InputError: the archive is truncated or damaged, or a member's name or type is unsafe.
    """

    base = ""

    def __init__(
        self, file: Path | RemoteReader, where: str | None = None, sha256: str | None = None
    ) -> None:
        self._where = where or str(file)
        self._file, self._sha256 = file, sha256
        with self._translated("not a complete zip archive, it may be truncated"):
            self._archive = zipfile.ZipFile(file)
        seen = set()
        for info in self._archive.infolist():
            self._refuse_unsafe(info)
            if info.filename in seen:
                raise InputError(f"{self._where}: member {info.filename!r} occurs twice")
            seen.add(info.filename)
        self._ends = dict(self._extents())

    def names(self) -> list[str]:
        return [info.filename for info in self._archive.infolist() if not info.filename.endswith("/")]

    def stamps(self, names: Iterable[str], /) -> dict[str, Stamp]:
        infos = {name: self._harmless(name) for name in names}
        return {name: Stamp(info.file_size, info.CRC) for name, info in infos.items()}

    def read(self, name: str) -> bytes:
        self._harmless(name)
        with self._translated(f"member {name!r} cannot be read"):
            return self._archive.read(name)

    @contextlib.contextmanager
    def reading(self, names: Sequence[str], /) -> Iterator[Iterator[bytes]]:
        if names and self._sha256:
            assert isinstance(self._file, Path)
            with self._file.open("rb") as file:
                self._check_whole(file)
        yield map(self.read, names)

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Raise an InputError for whatever zipfile raises because of the archive's content."""
        try:
            yield
        except Exception as error:
            if not is_damage(error):
                raise
            why = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{self._where}: {what}: {why}") from None

    def _check_whole(self, file: io.BufferedReader | RemoteReader) -> None:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self._sha256:
            raise InputError(
                f"{self._where}: the file does not match data.sha256: found {found}, pinned {self._sha256}; "
                f"to accept this file, run: cxr params --set data.sha256={found}"
            )

    def _refuse_unsafe(self, info: zipfile.ZipInfo) -> None:
        name = PurePosixPath(info.orig_filename)
        drive = ":" in next(iter(name.parts), "")
        if name.is_absolute() or ".." in name.parts or drive:
            raise InputError(f"{self._where}: member {info.orig_filename!r} leads outside the archive")
        if "\\" in info.orig_filename:
            raise InputError(
                f"{self._where}: member {info.orig_filename!r} has backslashes in its name, as some Windows "
                "programs write them instead of slashes; unpack the archive and use the folder, or create "
                "the archive again with another program"
            )
        if stat.S_ISLNK(info.external_attr >> 16):
            raise InputError(f"{self._where}: member {info.orig_filename!r} is a link; links are not allowed")

    def _extents(self) -> Iterator[tuple[str, int]]:
        """Each member and the start of the next one. Overlapping members, as in zip bombs, are rejected."""
        infos = sorted(self._archive.infolist(), key=lambda info: info.header_offset)
        begins = [info.header_offset for info in infos] + [self._archive.start_dir]
        for info, end in zip(infos, begins[1:], strict=True):
            if info.header_offset + HEADER + len(info.orig_filename) + info.compress_size > end:
                raise InputError(f"{self._where}: member {info.filename!r} overlaps another one")
            yield info.filename, end

    def _harmless(self, name: str) -> zipfile.ZipInfo:
        info = self._archive.getinfo(name)
        refuse_large(self._where, name, info.file_size)
        if info.file_size > max(SMALL_FILE, LARGEST_RATIO * info.compress_size):
            raise InputError(
                f"{self._where}: {name!r} expands from {info.compress_size} to {info.file_size} bytes, "
                f"more than {LARGEST_RATIO} times"
            )
        return info


class RemoteZip(ZipSource):
    """A remote zip archive. Listing fetches its directory; reading fetches the pieces with the members.

    Raises:
        UnavailableError: the server cannot be reached.
    """

    def __init__(self, remote: RemoteFile, source: str, base: Path, sha256: str | None = None) -> None:
        self._remote = RemoteReader(remote, staging_folder(base, source, remote.version))
        try:
            super().__init__(self._remote, remote.where, sha256)
        except InputError:
            self._remote.transfer.discard()
            raise

    @contextlib.contextmanager
    def reading(self, names: Sequence[str], /) -> Iterator[Iterator[bytes]]:
        transfer = self._remote.transfer
        for name in names:  # check before fetching
            self._harmless(name)
        if names and self._sha256:
            transfer.bring(transfer.pieces(0, transfer.size))
            self._remote.seek(0)
            try:
                self._check_whole(self._remote)
            except InputError:
                transfer.close()  # keep the file until the user accepts it or a new version replaces it
                raise
        else:
            transfer.bring(itertools.chain.from_iterable(map(self._pieces, names)))
        with transfer.used():
            yield map(self.read, names)

    def _pieces(self, name: str) -> range:
        return self._remote.transfer.pieces(self._archive.getinfo(name).header_offset, self._ends[name])
