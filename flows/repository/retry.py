"""Retries for operations that need the network."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from dvc.config import ConfigError

from flows.repository.git import GitError
from tasks.support.cli import InputError, without_secrets
from tasks.support.retry import retry

T = TypeVar("T")

#: Seconds between attempts.
DELAYS = (2, 5, 10, 20, 30, 60, 60)

#: Messages by which git, ssh and GitHub report missing or refused credentials.
GIT_DENIED = (
    "Authentication failed",
    "Host key verification failed",
    "Permission denied",
    "Write access to repository not granted",
    "could not read Username",
    "could not read Password",
    "terminal prompts disabled",
    "The requested URL returned error: 401",
    "The requested URL returned error: 403",
)


class UnavailableError(Exception):
    """The server or remote did not answer after several attempts."""


class DeniedError(InputError):
    """This machine's credentials are missing or were refused."""


def with_retries(
    what: str,
    action: Callable[[], T],
    log: Callable[[str], None],
    stopped: threading.Event | None = None,
    delays: Sequence[float] | None = None,
) -> T:
    """Call `action`, and retry it when it fails, by default for about three minutes.

    Args:
        what: Describes the operation in messages.
        action: The operation.
        log: Receives a line for each failed attempt.
        stopped: Once it is set, no further attempt is made.
        delays: Seconds between attempts, by default DELAYS.

    Raises:
        DeniedError: access was denied. It is not retried, because it would be denied again.
        UnavailableError: every attempt failed.
        InputError: the action raised it, for an error that is not git's. It is not retried.
    """

    def failed(error: Exception, delay: float | None) -> float | None:
        # Each storage has its own errors, and DVC wraps only some of them.
        if isinstance(error, UnavailableError) or (
            isinstance(error, InputError) and not isinstance(error, GitError)
        ):
            return None
        message = f"{what}: {one_line(error)}"
        if _is_denied(error):
            raise DeniedError(message) from None
        if delay is None:
            raise UnavailableError(message) from None
        log(f"{message}; retrying in {delay} s")
        return delay

    return retry(action, DELAYS if delays is None else delays, failed, stopped)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_denied(error: Exception) -> bool:
    names = {type(each).__name__ for each in _chain(error)}
    settings = any(isinstance(each, ConfigError) for each in _chain(error))
    if isinstance(error, GitError):
        return any(words in str(error) for words in GIT_DENIED)
    return settings or bool(names & {"PermissionError", "NoCredentialsError"})


def one_line(error: Exception) -> str:
    message = " ".join(str(error).split()) or type(error).__name__
    return without_secrets(message)
