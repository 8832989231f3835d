"""How every stage starts from a command line and how it ends when something is wrong."""

import signal
import sys
from collections.abc import Callable
from types import FrameType


class InputError(ValueError):
    """A mistake in what the user gave: its text is the line that the user reads."""


def stage_main(main: Callable[[], None]) -> None:
    """Run `main`; a user's mistake or a failing disk becomes one line on stderr and exit status 1.

    A SIGTERM unwinds the stack like Ctrl-C does, so that half-written files are cleaned up.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {place}{error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _terminate(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)
