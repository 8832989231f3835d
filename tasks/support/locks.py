"""Locks on files and folders. The system releases a lock when its last holder ends."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tasks.support.cli import InputError

#: Errors of a file system without locks.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF)

HOW_TO_GET_LOCKS = "use a local disk (for the temporary folder, set TMPDIR), or mount it with flock"


def lock_file(file: IO[bytes], operation: int) -> None:
    """Lock an open file as `fcntl.flock` does.

    NFS locks only files that are open for reading (LOCK_SH) or for writing (LOCK_EX).

    Raises:
        BlockingIOError: with LOCK_NB, another process holds the lock.
        InputError: the file system has no locks.
    """
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise InputError(f"{file.name}: the file system has no locks; {HOW_TO_GET_LOCKS}") from None
        raise


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Mark an existing folder as in use until exit, for `is_in_use`. Several processes may do so at once.

    On a file system without locks, the folder is not marked.
    """
    with _descriptor(folder) as descriptor:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep an existing folder for this process until exit. On a file system without locks, it is not kept.

    Raises:
        BlockingIOError: another process keeps it, or marks it as in use.
    """
    with _descriptor(folder) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass
        yield


def is_in_use(folder: Path) -> bool | None:
    """Whether a process marks this folder as in use. None if the file system cannot tell."""
    try:
        with _descriptor(folder) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return False


@contextmanager
def _descriptor(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
