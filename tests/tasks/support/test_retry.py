import threading
import time

import pytest

from tasks.support.retry import retry


class Away:
    """Fails some times, and counts the attempts."""

    def __init__(self, times: int) -> None:
        self.times, self.attempts = times, 0

    def __call__(self) -> str:
        self.attempts += 1
        if self.attempts <= self.times:
            raise ConnectionError(f"away {self.attempts}")
        return "there"


def failed(_: Exception, delay: float | None) -> float | None:
    return delay


@pytest.mark.parametrize("times", [0, 1, 3])
def test_there_is_one_attempt_more_than_delays(times: int) -> None:
    action = Away(times)
    assert retry(action, [0.0, 0.0, 0.0], failed) == "there"
    assert action.attempts == times + 1


def test_after_the_last_attempt_the_error_is_raised() -> None:
    action = Away(5)
    with pytest.raises(ConnectionError, match="away 3"):
        retry(action, [0.0, 0.0], failed)
    assert action.attempts == 3


def test_an_error_that_is_raised_ends_the_retries() -> None:
    def refused(error: Exception, delay: float | None) -> float:
        raise PermissionError("refused") from error

    action = Away(5)
    with pytest.raises(PermissionError):
        retry(action, [0.0, 0.0], refused)
    assert action.attempts == 1


def test_a_stop_ends_the_wait_and_no_attempt_follows() -> None:
    stopped, action = threading.Event(), Away(5)
    threading.Timer(0.2, stopped.set).start()
    began = time.monotonic()
    with pytest.raises(ConnectionError, match="away 1"):
        retry(action, [60.0, 60.0], failed, stopped)
    assert time.monotonic() - began < 30
    assert action.attempts == 1


def test_after_a_stop_there_is_one_attempt() -> None:
    stopped, action = threading.Event(), Away(5)
    stopped.set()
    with pytest.raises(ConnectionError, match="away 1"):
        retry(action, [0.0], failed, stopped)
