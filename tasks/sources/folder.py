"""A folder. Links that lead outside of it are rejected, where they would be part of the dataset."""

import contextlib
import errno
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tasks.sources.layout import is_hidden, is_in_a_half
from tasks.sources.source import Stamp, refuse_large
from tasks.support.cli import InputError

#: Bytes per read when hashing a file.
BLOCK = 1 << 20


class FolderSource:
    """The files below a folder; their names start with the folder's own name.

    Args:
        root: the folder.
        belongs: whether a file or folder of this name is part of the dataset.
    """

    def __init__(self, root: Path, belongs: Callable[[str], bool] = is_in_a_half) -> None:
        self._root, self._belongs = root.resolve(), belongs
        # The name of a link counts, not that of its target.
        name = self._root.name if root.name in ("", "..") else root.name
        self.base = f"{name}/" if name else ""
        self._names: list[str] | None = None

    def names(self) -> list[str]:
        """The files, listed once. Hidden folders, and links that are not followed, end in a slash.

        Raises:
            InputError: a link within the dataset leads outside the folder, or nowhere.
            OSError: a folder cannot be read. Its files would be missing from the dataset.
        """
        if self._names is None:
            self._names = [self.base + name for name in self._walk()]
        return self._names

    def stamps(self, names: Iterable[str], /) -> dict[str, Stamp]:
        return {name: self._stamp(self._path(name)) for name in names}

    def read(self, name: str) -> bytes:
        return self._path(name).read_bytes()

    @contextlib.contextmanager
    def reading(self, names: Sequence[str], /) -> Iterator[Iterator[bytes]]:
        yield map(self.read, names)

    def _walk(self) -> Iterator[str]:
        waiting = [("", False)]
        while waiting:
            folder, linked = waiting.pop()
            with os.scandir(self._root / folder) as entries:
                for entry in entries:
                    name = folder + entry.name
                    if not _is_folder(entry):
                        self._refuse_broken_link(entry, name)
                        yield name
                    elif is_hidden(entry.name, folder=True):
                        yield f"{name}/"
                    elif not entry.is_symlink():
                        waiting.append((f"{name}/", linked))
                    elif self._is_followed(name) and not linked:  # a link in a linked folder may form a loop
                        waiting.append((f"{name}/", True))
                    else:
                        yield f"{name}/"

    def _is_followed(self, name: str) -> bool:
        """Whether to enter a linked folder: if it belongs to the dataset, and is not a loop.

        Links elsewhere lead to folders that are listed anyway, or to foreign ones.
        """
        if not self._belongs(self.base + name):
            return False
        target = Path(os.path.realpath(self._root / name))
        if not target.is_relative_to(self._root):
            raise InputError(
                f"{self._root / name}: this link points outside {self._root}; "
                "replace it by the folder itself, or mount that folder there"
            )
        return not (self._root / name).is_relative_to(target)

    def _refuse_broken_link(self, entry: os.DirEntry[str], name: str) -> None:
        if (
            entry.is_symlink()
            and not Path(entry.path).exists()
            and self._belongs(self.base + name)
            and not is_hidden(entry.name, folder=False)  # such as the lock files of Emacs
        ):
            raise InputError(f"{self._root / name}: this link leads nowhere; is its disk mounted?")

    def _path(self, name: str) -> Path:
        path = self._root / name.removeprefix(self.base)
        # Unlike Path.resolve, this raises nothing for a link to itself.
        if not Path(os.path.realpath(path)).is_relative_to(self._root):
            raise InputError(f"{path}: this link points outside {self._root}; replace it by the file itself")
        if not path.is_file():  # for example a pipe, on which reading would never end
            raise InputError(f"{path}: not a regular file")
        refuse_large(self._root, name, path.stat().st_size)
        return path

    @staticmethod
    def _stamp(path: Path) -> Stamp:
        size = crc32 = 0
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                size, crc32 = size + len(block), zlib.crc32(block, crc32)
        return Stamp(size, crc32)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise
