"""What `cxr doctor` checks, and what a run checks at its start.

To add a check, write its function in a module of `flows.checks`, and list it in CHECKS there.
"""

from collections import deque
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from flows.checks.check import Check, Examined, Finding, Level, Running, ok, warning
from flows.repository.git import resolve
from flows.repository.publish import check_local_branches, check_origin
from flows.repository.refs import ORIGIN, has_origin
from tasks.support.cli import InputError


def check_branches(folder: Path) -> Iterator[Finding]:
    check_local_branches(folder)
    yield ok("branches retrain/NAME can be created")


def check_push(folder: Path) -> Iterator[Finding]:
    """Check that origin accepts the branch of a run. Nothing is pushed."""
    if not has_origin(folder):
        yield ok(f"git has no remote {ORIGIN}: runs stay in this repository")
        return
    try:
        check_origin(folder, resolve(folder, "HEAD"), "doctor", log=_ignore, delays=())
    except InputError as error:
        yield warning(
            " ".join(str(error).split()),
            f"check the address of {ORIGIN} and your credentials; a read-only clone cannot publish to it",
        )
    else:
        yield ok(f"{ORIGIN} answers and accepts pushes")


def _ignore(line: str) -> None:
    """Receive a line of a log that nobody reads."""


PUBLISHING = (
    Check("branches", check_branches),
    Check("push", check_push, limit=60),
)

#: The groups of checks, in the order of the output: a module of `flows.checks`, or checks.
GROUPS: dict[str, str | tuple[Check, ...]] = {
    "Installation": "installation",
    "Repository": "repository",
    "Machine": "machine",
    "Prefect": "server",
    "Network": "network",
    "Data": "data",
    "Publishing": PUBLISHING,
}


def examine(folder: Path, before_runs: bool = False) -> Iterator[Examined]:
    """Run all checks, and yield their results in order, each as soon as it and those before it have ended.

    Args:
        folder: The folder of the project.
        before_runs: Run only the checks with which a run starts.
    """
    running: deque[tuple[str, Running]] = deque()
    for group in GROUPS:
        for check in _checks(group):
            if check.before_runs or not before_runs:
                running.append((group, Running(check, folder)))
        while running and running[0][1].has_ended:
            yield _next(running)
    while running:
        yield _next(running)


def _checks(group: str) -> tuple[Check, ...]:
    """Return the checks of a group. Modules are imported one by one, because some take a second."""
    checks = GROUPS[group]
    if isinstance(checks, str):
        checks = import_module(f"flows.checks.{checks}").CHECKS
    return checks


def _next(running: deque[tuple[str, Running]]) -> Examined:
    group, check = running.popleft()
    return Examined(group, check.result())


def check_before_run(folder: Path, warn: Callable[[str], None]) -> None:
    """Run the checks that need neither time nor network, before a run trains anything.

    Raises:
        InputError: the run would fail. The message has a line for each fault.
    """
    findings = [finding for _, result in examine(folder, before_runs=True) for finding in result.findings]
    for finding in findings:
        if finding.level is Level.WARNING:
            warn(as_line(finding))
    if faults := [as_line(finding) for finding in findings if finding.level is Level.FAULT]:
        raise InputError("\n".join([*faults, "`cxr doctor` shows all checks"]))


def as_line(finding: Finding) -> str:
    return f"{finding.found}; {finding.remedy}" if finding.remedy else finding.found
