"""What a source of the dataset is: it lists its files, and reads those that are asked for.

Names are relative, with forward slashes, and not trusted.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from tasks.support.cli import InputError

#: No X-ray is larger, and a zip that promises more is a bomb.
LARGEST_FILE = 64 << 20


class Stamp(NamedTuple):
    """By what a file is known to be unchanged without being fetched.

    The digest is the CRC-32, or the word that a bucket has: `md5:...`, or `etag:...`, which only says that
    something changed. They find accidents and updates, and are no protection: who wants to can make another
    file with the same.
    """

    size: int
    digest: int | str


class Source(Protocol):
    def names(self) -> list[str]:
        """Every file's name, in any order."""

    def stamps(self, names: Iterable[str], /) -> dict[str, Stamp] | None:
        """These files' stamps; None where files never change."""

    def reading(self, names: Sequence[str], /) -> AbstractContextManager[Iterator[bytes]]:
        """The contents of these files, in their order.

        What is far away comes on entry. An orderly exit says that it has been put to use: it is then removed.
        """


def refuse_large(where: object, name: str, size: int) -> None:
    """No file of the dataset is so large; nothing of it is read.

    Raises:
        InputError: it is above LARGEST_FILE.
    """
    if size > LARGEST_FILE:
        raise InputError(
            f"{where}: {name!r} has {size} bytes, more than the {LARGEST_FILE} that any X-ray needs; refused"
        )
