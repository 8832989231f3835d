"""How every stage starts from a command line and how it ends when something is wrong."""

import errno
import re
import signal
import sys
from collections.abc import Callable
from types import FrameType

#: Exit status of a fault that may be gone at another try, as sysexits.h has it.
TEMPORARY = 75

#: What a network file system says when its server is away.
_TEMPORARY_ERRORS = frozenset(
    {errno.EAGAIN, errno.EHOSTUNREACH, errno.EIO, errno.ENETDOWN, errno.ENETUNREACH, errno.ESTALE}
)


_URL = re.compile(r"\b(?P<scheme>(?!phantom)\w+://)(?:[^/?#\s]*@)?(?P<place>[^?#\s]*)(?P<query>[?#]\S*)?")


class InputError(ValueError):
    """A mistake in what the user gave: its text is the line that the user reads."""


def without_secrets(text: str) -> str:
    """A text as it may be said and stored: its URLs without user, password and query, which may be signed."""
    return _URL.sub(lambda url: f"{url['scheme']}{url['place']}{'?...' if url['query'] else ''}", text)


def stage_main(main: Callable[[], None]) -> None:
    """Run `main`; a user's mistake or a failing disk becomes one line on stderr and exit status 1.

    A connection that failed exits with TEMPORARY instead. A SIGTERM unwinds the stack like Ctrl-C does,
    so that half-written files are cleaned up.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except InputError as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself, once this is said
        sys.exit(f"error: {error}")
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(TEMPORARY if _is_temporary(error) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _is_temporary(error: OSError) -> bool:
    return isinstance(error, ConnectionError | TimeoutError) or error.errno in _TEMPORARY_ERRORS


def _terminate(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)
