"""Retries of operations that may succeed later."""

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

Result = TypeVar("Result")


def retry(
    action: Callable[[], Result],
    delays: Iterable[float],
    failed: Callable[[Exception, float | None], float | None],
    stopped: threading.Event | None = None,
) -> Result:
    """Call `action` until it succeeds, once more than there are delays.

    Args:
        action: the operation.
        delays: seconds to wait after the first, second, ... failure.
        failed: receives each error and the delay after it, or None if no attempt follows. Returns how long to
            wait, or None to end the retries with this error. It may raise another error.
        stopped: once it is set, no attempt follows.
    """
    stopped = stopped or threading.Event()
    for delay in (*delays, None):
        try:
            return action()
        except Exception as error:
            wait = failed(error, None if stopped.is_set() else delay)
            if wait is None or (stopped.wait(wait) and failed(error, None) is None):
                raise
    raise AssertionError("unreachable: `failed` returned a time to wait after the last attempt")
