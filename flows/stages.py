"""The stages of dvc.yaml: read as a graph, run one at a time through DVC."""

import re
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import psutil
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.reproduce import plan_repro
from dvc.utils.serialize import load_yaml, modify_yaml

from flows.checkout import environment
from tasks.cli import InputError

#: How many of a stage's last lines its failure repeats.
TAIL = 15

#: What DVC adds for a person at a terminal, who would commit and push by hand.
HINTS = (
    "Generating lock file",
    "Updating lock file",
    "To track the changes with git",
    "\tgit add",
    "To enable auto staging",
    "\tdvc config core.autostage",
    "Use `dvc push`",
)

#: What DVC says of a stage that has said itself what was wrong.
DVC_REPEATS = re.compile(r"ERROR: failed to reproduce .* exited with 1$")

#: Seconds that a stage has to end when told to, before it is killed.
GRACE = 5.0

_RUNNING: set["subprocess.Popen[str]"] = set()


class Outcome(StrEnum):
    RAN = "ran"
    CACHED = "cached"
    FAILED = "failed"


class StageRun(NamedTuple):
    outcome: Outcome
    tail: str
    """The last lines of the stage's own output."""


class Pipeline(NamedTuple):
    """What dvc.yaml declares."""

    upstream: dict[str, set[str]]
    """Each stage with the stages whose outputs it reads."""
    order: list[str]
    """The stages as dvc.lock lists them: those that it has, then the others as `dvc repro` adds them."""


def read_pipeline(checkout: Path) -> Pipeline:
    """Read dvc.yaml, through DVC.

    Raises:
        InputError: it can't be read, in DVC's own words.
    """
    try:
        with Repo(str(checkout)) as repo:
            graph = repo.index.graph
            upstream = {stage.name: {up.name for up in graph.successors(stage)} for stage in graph}
            planned = [stage.name for stage in plan_repro(graph)]
    except DvcException as error:
        raise InputError(f"dvc.yaml: {error}") from None
    lock = checkout / "dvc.lock"
    locked = load_yaml(lock)["stages"] if lock.exists() else {}
    return Pipeline(upstream, list(dict.fromkeys([*locked, *planned])))


def sort_lock(checkout: Path, order: list[str]) -> None:
    """List the stages in dvc.lock in that order, not in the one in which they happened to end.

    So the file is the one that `dvc repro` writes, whatever ran side by side.
    """
    with modify_yaml(checkout / "dvc.lock") as lock:
        lock["stages"] = dict(sorted(lock["stages"].items(), key=lambda item: order.index(item[0])))


def run_stage(checkout: Path, stage: str, tell: Callable[[str], None], **variables: str) -> StageRun:
    """Bring one stage up to date through DVC, handing each line that it prints to `tell` at once.

    DVC stays in this process's group, so that what ends this process ends the stage too: DVC itself
    passes no TERM on to the command it runs.

    Args:
        variables: further environment variables for the stage.
    """
    process = subprocess.Popen(
        ["dvc", "--wait-for-lock", "repro", "--single-item", stage],
        cwd=checkout,
        env=environment() | {"PYTHONUNBUFFERED": "1"} | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    tail: deque[str] = deque(maxlen=TAIL)
    ran = False
    _RUNNING.add(process)
    with process:
        for line in _lines(process.stdout):
            tell(line)
            if line.startswith("Running stage"):
                ran = True
                tail.clear()
            elif not line.startswith("> ") and not (tail and DVC_REPEATS.match(line)):
                tail.append(line)
    _RUNNING.discard(process)
    if process.returncode:
        return StageRun(Outcome.FAILED, "\n".join(tail))
    return StageRun(Outcome.RAN if ran else Outcome.CACHED, "\n".join(tail))


def stop_stages() -> None:
    """End the stages that this process is running, with all that they have started.

    DVC ends nothing of what it runs when it is ended itself, so its descendants are told one by one.
    """
    trees: list[psutil.Process] = []
    for process in list(_RUNNING):
        with suppress(psutil.NoSuchProcess):
            dvc = psutil.Process(process.pid)
            trees += [*dvc.children(recursive=True), dvc]
    for part in trees:
        with suppress(psutil.NoSuchProcess):
            part.terminate()
    _, stubborn = psutil.wait_procs(trees, timeout=GRACE)
    for part in stubborn:
        with suppress(psutil.NoSuchProcess):
            part.kill()


def _lines(output: Iterator[str]) -> Iterator[str]:
    for line in output:
        if line.strip() and not line.startswith(HINTS):
            yield line.rstrip()
