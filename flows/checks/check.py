"""What a check is, and how checks run: side by side, each with a time limit of its own."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import copy_context
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from tasks.support.cli import InputError, describe_os_error, without_secrets


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """Worth knowing. Runs work."""
    FAULT = "fault"
    """Something does not work, such as runs, or a remote that is configured."""


class Finding(NamedTuple):
    level: Level
    found: str
    remedy: str = ""
    """What to do about it."""


def ok(found: str) -> Finding:
    return Finding(Level.OK, found)


def warning(found: str, remedy: str = "") -> Finding:
    return Finding(Level.WARNING, found, remedy)


def fault(found: str, remedy: str = "") -> Finding:
    return Finding(Level.FAULT, found, remedy)


class Check(NamedTuple):
    name: str
    find: Callable[[Path], Iterable[Finding]]
    """Receives the folder of the project. An InputError or OSError that it raises is a fault."""
    limit: float = 10.0
    """Seconds after which its result is no longer awaited."""
    before_runs: bool = False
    """Whether runs start with this check. It must take only a fraction of a second, and no network."""


class Result(NamedTuple):
    check: str
    seconds: float
    findings: Sequence[Finding]


class Examined(NamedTuple):
    """A result, with the heading under which it is shown."""

    group: str
    result: Result


class Running:
    """A check that runs in a thread. If it never ends, it does not keep the process alive."""

    def __init__(self, check: Check, folder: Path) -> None:
        self._check, self._started = check, time.monotonic()
        self._result: Result | None = None
        # Prefect's settings are in context variables.
        run = copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run, folder), daemon=True)
        self._thread.start()

    def _run(self, folder: Path) -> None:
        findings = tuple(_without_secrets(finding) for finding in _find(self._check, folder))
        self._result = Result(self._check.name, time.monotonic() - self._started, findings)

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Result:
        """Wait for the result, but not beyond the check's limit."""
        self._thread.join(max(0.0, self._started + self._check.limit - time.monotonic()))
        late = fault(f"{self._check.name}: no answer within {self._check.limit:g} s")
        return self._result or Result(self._check.name, self._check.limit, (late,))


def _find(check: Check, folder: Path) -> list[Finding]:
    """Run a check. An error that nobody expected must not hide what the other checks find."""
    found: list[Finding] = []
    try:
        found.extend(check.find(folder))
    except InputError as error:
        found.append(fault(str(error)))
    except OSError as error:
        found.append(fault(f"{check.name}: {describe_os_error(error)}"))
    except Exception as error:
        found.append(
            warning(f"{check.name}: this could not be checked: {type(error).__name__}: {_one_line(error)}")
        )
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _without_secrets(finding: Finding) -> Finding:
    return Finding(finding.level, without_secrets(finding.found), without_secrets(finding.remedy))
