"""Locks on files. The system releases a lock when its last holder ends."""

import errno
import fcntl
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
