"""What needs the network is tried again where another try may help."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from dvc.config import ConfigError

from flows.repository.git import GitError
from tasks.support.cli import InputError, without_secrets

T = TypeVar("T")

#: Seconds between tries while the remote doesn't answer.
DELAYS = (2, 5, 10, 20, 30, 60, 60)

#: What git says where credentials are missing or refused.
GIT_DENIES = (
    "Authentication failed",
    "could not read Username",
    "Permission denied",
    "terminal prompts disabled",
)


class RemoteAwayError(Exception):
    """What was asked did not answer, again and again."""


class DeniedError(InputError):
    """This machine's credentials are missing or refused."""


def with_retries(
    what: str,
    action: Callable[[], T],
    log: Callable[[str], None],
    stopped: threading.Event | None = None,
    delays: Sequence[float] = DELAYS,
) -> T:
    """Do what needs the network, again and again where that fails, by default for about three minutes.

    Raises:
        DeniedError: access is denied: another try would be denied too.
        RemoteAwayError: it failed each time.
    """
    stopped = stopped or threading.Event()
    for delay in (*delays, 0):
        try:
            return action()
        except Exception as error:  # each storage has errors of its own, and DVC wraps only some of them
            if isinstance(error, RemoteAwayError) or (
                isinstance(error, InputError) and not isinstance(error, GitError)
            ):
                raise
            said = f"{what}: {in_a_line(error)}"
            if _is_denied(error):
                raise DeniedError(said) from None
        if not delay or stopped.is_set():
            break
        log(f"{said}; trying again in {delay} s")
        stopped.wait(delay)
    raise RemoteAwayError(said)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_denied(error: Exception) -> bool:
    names = {type(each).__name__ for each in _chain(error)}
    settings = any(isinstance(each, ConfigError) for each in _chain(error))
    if isinstance(error, GitError):
        return any(words in str(error) for words in GIT_DENIES)
    return settings or bool(names & {"PermissionError", "NoCredentialsError"})


def in_a_line(error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return without_secrets(said)
