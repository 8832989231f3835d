"""The interface of a dataset source: it lists its files and reads requested ones.

File names are relative, use forward slashes, and are not trusted.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from tasks.support.cli import InputError

#: Larger than any X-ray; a zip that claims more is probably a zip bomb.
LARGEST_FILE = 64 << 20


class Stamp(NamedTuple):
    """Identifies the content of a file without fetching it.

    The digest is the CRC-32, or a bucket's word: `md5:...`, or `etag:...`, which only shows that something
    changed. Stamps detect accidents and updates. They do not protect against tampering, because another file
    with the same stamp can be made.
    """

    size: int
    digest: int | str


class Source(Protocol):
    @property
    def base(self) -> str:
        """The beginning of all names that is the source's own, such as its folder's name and a slash."""

    def names(self) -> list[str]:
        """Names of all files, in any order. A folder whose files are not listed ends in a slash."""

    def stamps(self, names: Iterable[str], /) -> dict[str, Stamp] | None:
        """Stamps of these files; None if files never change."""

    def read(self, name: str, /) -> bytes:
        """The content of one file."""

    def reading(self, names: Sequence[str], /) -> AbstractContextManager[Iterator[bytes]]:
        """The contents of these files, in order.

        Remote files are fetched on entry. They are deleted on a normal exit, and kept after an exception.
        """


def refuse_large(where: object, name: str, size: int) -> None:
    """Reject a file that is larger than any file of the dataset, before reading it.

    Raises:
        InputError: the size exceeds LARGEST_FILE.
    """
    if size > LARGEST_FILE:
        raise InputError(
            f"{where}: {name!r} has {size} bytes, more than the limit of {LARGEST_FILE} for an X-ray"
        )
