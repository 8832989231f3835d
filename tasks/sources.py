"""Where the dataset comes from: every source lists its files and reads one at a time.

Names are relative, with forward slashes, and not trusted. A new kind of source is one more class and
one more line in `open_source`.
"""

import stat
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from tasks.cli import InputError
from tasks.phantom import PhantomSource

HOW_TO_GET_IT = (
    "put Kaggle's COVID-QU-Ex (kaggle.com/datasets/anasmohammedtahir/covidqu) there as a zip or a folder, "
    "or set data.source in params.yaml to where it is, or to phantom:// for synthetic images"
)

#: Bytes that a folder's file is read in at a time.
BLOCK = 1 << 20


class Stamp(NamedTuple):
    """By what a file is known to be unchanged without being fetched.

    A CRC-32 finds accidents and updates. It is no protection: who wants to can make another file with it.
    """

    size: int
    crc32: int


class Source(Protocol):
    def names(self) -> list[str]:
        """Every file's name, in any order."""

    def stamps(self, names: Iterable[str], /) -> dict[str, Stamp] | None:
        """These files' stamps; None where files never change."""

    def read(self, name: str) -> bytes:
        """The content of one file."""


def open_source(source: str, relative_to: Path) -> Source:
    """The source that `data.source` names; a relative path counts from `relative_to`.

    Raises:
        InputError: there is nothing there, or it is neither a folder nor a whole and harmless zip.
    """
    if source.startswith("phantom://"):
        try:
            return PhantomSource(source)
        except ValueError as error:
            raise InputError(f"data.source: {error}") from None
    if "://" in source:
        raise InputError(f"data.source: {source}: no such kind of source; a path or phantom:// would do")
    path = relative_to / Path(source).expanduser()
    if path.is_dir():
        return FolderSource(path)
    if path.is_file():
        return ZipSource(path)
    raise InputError(f"data.source: {source}: nothing is there; {HOW_TO_GET_IT}")


class FolderSource:
    """The files below a folder; their names begin with the folder's own."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def names(self) -> list[str]:
        return [
            path.relative_to(self._root.parent).as_posix() for path in self._root.rglob("*") if path.is_file()
        ]

    def stamps(self, names: Iterable[str], /) -> dict[str, Stamp]:
        return {name: self._stamp(self._path(name)) for name in names}

    def read(self, name: str) -> bytes:
        return self._path(name).read_bytes()

    def _path(self, name: str) -> Path:
        path = self._root.parent / name
        if not path.resolve().is_relative_to(self._root):
            raise InputError(f"{path}: a link that leads out of {self._root}; put the file itself there")
        return path

    @staticmethod
    def _stamp(path: Path) -> Stamp:
        size = crc32 = 0
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                size, crc32 = size + len(block), zlib.crc32(block, crc32)
        return Stamp(size, crc32)


class ZipSource:
    """The members of a zip archive, none of which may lead out of it.

    Raises:
        InputError: the archive is cut short or damaged, or a member's name or kind is not safe.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a whole zip archive, it may be cut short ({error})") from None
        seen = set()
        for info in self._archive.infolist():
            self._refuse_unsafe(info)
            if info.filename in seen:
                raise InputError(f"{path}: member {info.filename!r} is there twice")
            seen.add(info.filename)

    def names(self) -> list[str]:
        return [info.filename for info in self._archive.infolist() if not info.is_dir()]

    def stamps(self, names: Iterable[str], /) -> dict[str, Stamp]:
        infos = {name: self._archive.getinfo(name) for name in names}
        return {name: Stamp(info.file_size, info.CRC) for name, info in infos.items()}

    def read(self, name: str) -> bytes:
        try:
            return self._archive.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise InputError(f"{self._path}: member {name!r} can't be read: {error}") from None

    def _refuse_unsafe(self, info: zipfile.ZipInfo) -> None:
        name = PurePosixPath(info.orig_filename)
        drive = ":" in next(iter(name.parts), "")
        if name.is_absolute() or ".." in name.parts or "\\" in info.orig_filename or drive:
            raise InputError(f"{self._path}: member {info.orig_filename!r} leads out of the archive; refused")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise InputError(f"{self._path}: member {info.orig_filename!r} is a link; refused")
