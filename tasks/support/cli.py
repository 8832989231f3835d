"""Entry point of every stage's command line, with error messages and exit statuses."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

#: Exit status of an error that a retry may fix (EX_TEMPFAIL of sysexits.h).
TEMPORARY = 75

#: Errors of a network file system whose server is not reachable.
_TEMPORARY_ERRORS = frozenset(
    {errno.EAGAIN, errno.EHOSTUNREACH, errno.EIO, errno.ENETDOWN, errno.ENETUNREACH, errno.ESTALE}
)


_URL = re.compile(r"\b(?P<scheme>(?!phantom)\w+://)(?:[^/?#\s]*@)?(?P<place>[^?#\s]*)(?P<query>[?#]\S*)?")


class InputError(ValueError):
    """An error in the user's input; its text is the line that the user reads."""


def without_secrets(text: str) -> str:
    """The text with user, password and query removed from its URLs, since these may contain secrets."""
    return _URL.sub(lambda url: f"{url['scheme']}{url['place']}{'?...' if url['query'] else ''}", text)


def user_path(text: str | Path) -> Path:
    """A path that the user wrote: `~` and `~USER` stand for homes, but a file may be called `~$a.png`."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 (Path.expanduser fails for an unknown user)


def describe_os_error(error: OSError) -> str:
    """Return the line that the user reads about an error of the system or the network."""
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}"


def stage_main(main: Callable[[], None]) -> None:
    """Run `main`; report an InputError, OSError or lack of memory as one line on stderr, with exit status 1.

    A failed connection exits with TEMPORARY instead. SIGTERM unwinds the stack like Ctrl-C, so that partial
    files are removed.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except InputError as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the process exits by itself after the message
        sys.exit(f"error: {error}")
    except OSError as error:
        print(f"error: {describe_os_error(error)}", file=sys.stderr)
        sys.exit(TEMPORARY if is_temporary(error) else 1)
    except MemoryError:
        sys.exit("error: not enough memory")
    except KeyboardInterrupt:
        sys.exit(130)


def is_temporary(error: OSError) -> bool:
    """Return whether a retry may succeed."""
    return isinstance(error, ConnectionError | TimeoutError) or error.errno in _TEMPORARY_ERRORS


def _terminate(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)
