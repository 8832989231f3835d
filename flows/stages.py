"""The stages of dvc.yaml: read as a graph, brought up to date through DVC."""

import logging
import re
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import chdir, suppress
from enum import StrEnum
from pathlib import Path
from threading import Event
from typing import NamedTuple

import psutil
from dvc.exceptions import CheckoutError, DvcException
from dvc.repo import Repo
from dvc.repo.reproduce import plan_repro
from dvc.stage import PipelineStage
from dvc.stage.cache import RunCacheNotFoundError
from dvc.stage.serialize import to_lockfile
from dvc.utils.serialize import dumps_yaml, load_yaml, modify_yaml

from flows.checkout import environment
from flows.slots import Slot
from tasks.cli import TEMPORARY, InputError

LOCK = "dvc.lock"

#: What hears of the work line by line.
Tell = Callable[[str], None]

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
DVC_REPEATS = re.compile(r"ERROR: failed to reproduce .* exited with (?P<status>-?\d+)$")

#: Exit statuses of a stage that did not end by a fault of its own, nor because it was told to: a connection
#: failed, or it was killed, as the system does when memory runs out, or crashed in a library. A shell that
#: doesn't become the command, such as dash, tells of a signal by 128 and its number.
WORTH_ANOTHER_TRY = {
    TEMPORARY,
    *(
        status
        for number in (signal.SIGKILL, signal.SIGBUS, signal.SIGSEGV)
        for status in (-number, 128 + number)
    ),
}

#: Seconds that a stage has to end when told to, before it is killed.
GRACE = 5.0


class Outcome(StrEnum):
    RAN = "ran"
    CACHED = "cached"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """Ended by what may be gone at another try: a signal, or a connection that failed."""


class StageRun(NamedTuple):
    outcome: Outcome
    tail: str
    """The last lines of the stage's own output."""
    note: str = ""
    """Where it ran, and how long, if not here."""


class Pipeline(NamedTuple):
    """What dvc.yaml declares."""

    upstream: dict[str, set[str]]
    """Each stage with the stages whose outputs it reads."""
    order: list[str]
    """The stages as dvc.lock lists them: those that it has, then the others as `dvc repro` adds them."""
    restored: frozenset[str]
    """Those that the DVC cache brought up to date; the others have to run."""


def restore_pipeline(checkout: Path) -> Pipeline:
    """Read dvc.yaml, and bring up to date all that is in the DVC cache, without running anything.

    One process of DVC asks this once for all stages: a process a stage costs more than a second each.

    Raises:
        InputError: DVC refused, in its own words.
    """
    lock = checkout / LOCK
    locked = load_yaml(lock)["stages"] if lock.exists() else {}  # before what is restored is added to it
    logging.getLogger("dvc").setLevel(logging.WARNING)  # the flow's own task runs tell what is cached
    try:
        # DVC makes stages out of the run cache with paths that count from the current folder.
        with chdir(checkout), Repo(str(checkout)) as repo, repo.lock:
            graph = repo.index.graph
            planned = plan_repro(graph)
            upstream = {stage.name: {up.name for up in graph.successors(stage)} for stage in planned}
            restored: set[str] = set()
            for stage in planned:
                if upstream[stage.name] <= restored and is_restored(stage):
                    restored.add(stage.name)
    except DvcException as error:
        raise InputError(f"dvc.yaml: {error}") from None
    return Pipeline(upstream, list(dict.fromkeys([*locked, *upstream])), frozenset(restored))


def is_restored(stage: PipelineStage, pull: bool = False) -> bool:
    """Do for one stage what `dvc repro` does, up to where it would run the stage's command.

    With `pull` its outputs may come from the DVC remote.
    """
    if not stage.changed():
        return True
    stage.remove_outs(ignore_remove=False, force=False)
    try:
        stage.repo.stage_cache.restore(stage, pull=pull)
    except RunCacheNotFoundError:
        return False
    stage.save()
    stage.commit()
    _write_lock(stage)
    return True


def _write_lock(stage: PipelineStage) -> None:
    """Put the stage's entry into dvc.lock.

    DVC parses and prints the file as a whole for it, by its slowest parser: six seconds where there are a
    hundred experiments. An entry is the line of its name and what is indented below.
    """
    lock = Path(stage.repo.root_dir) / LOCK
    text = dumps_yaml({"schema": "2.0", "stages": to_lockfile(stage)})
    if lock.exists():
        before = lock.read_text(encoding="utf-8")
        name, _, entry = text.partition("stages:\n")[2].partition("\n")
        place = re.compile(rf"^{re.escape(name)}\n(?:(?:    .*)?\n)*", re.MULTILINE)
        sections = re.findall(r"^\w.*", before, re.MULTILINE)
        if not (before.endswith("\n") and sections[-1:] == ["stages:"]):
            stage.dump(update_pipeline=False)
            return
        new = f"{name}\n{entry}"
        text = place.sub(lambda _: new, before) if place.search(before) else before + new
    beside = lock.with_name(f".{LOCK}.partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(lock)


def restore_output(checkout: Path, path: str) -> bool:
    """Put an output there as dvc.lock records it; False where the DVC cache doesn't have it.

    Raises:
        InputError: no stage has such an output.
    """
    try:
        with chdir(checkout), Repo(str(checkout)) as repo:
            repo.checkout(targets=[path], force=True)
    except CheckoutError:
        return False
    except DvcException as error:
        raise InputError(f"dvc.yaml: {error}") from None
    return (checkout / path).exists()


def sort_lock(checkout: Path, order: list[str]) -> None:
    """List the stages in dvc.lock in that order, not in the one in which they happened to end.

    So the file is the one that `dvc repro` writes, whatever ran side by side.
    """
    with modify_yaml(checkout / LOCK) as lock:
        lock["stages"] = dict(sorted(lock["stages"].items(), key=lambda item: order.index(item[0])))


class StageRunner:
    """Runs the stages of one checkout, each by a DVC process of its own."""

    def __init__(self, checkout: Path, **variables: str) -> None:
        """`variables` are further environment variables for every stage."""
        self._checkout, self._variables = checkout, variables
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = Event()

    def run(self, stage: str, slot: Slot, tell: Callable[[str], None]) -> StageRun:
        """Bring one stage up to date, handing each line that it prints to `tell` at once.

        DVC stays in this process's group, so that what ends this process ends the stage too: DVC itself
        passes no TERM on to the command it runs.
        """
        if self._stopped.is_set():
            return StageRun(Outcome.FAILED, "stopped")
        process = subprocess.Popen(
            ["dvc", "--wait-for-lock", "repro", "--single-item", stage],
            cwd=self._checkout,
            env=environment() | {"PYTHONUNBUFFERED": "1"} | self._variables | slot.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=slot.locks,
            text=True,
            errors="replace",
        )
        self._running.add(process)
        with process:
            assert process.stdout is not None
            ran, status, tail = _follow(process.stdout, tell)
        self._running.discard(process)
        if not process.returncode:
            return StageRun(Outcome.RAN if ran else Outcome.CACHED, tail)
        interrupted = status in WORTH_ANOTHER_TRY and not self._stopped.is_set()
        return StageRun(Outcome.INTERRUPTED if interrupted else Outcome.FAILED, tail)

    def stop(self) -> None:
        """End the stages that run, with all that they have started, and start no more.

        DVC ends nothing of what it runs when it is ended itself, so its descendants are told one by one.
        """
        self._stopped.set()
        trees: list[psutil.Process] = []
        for process in list(self._running):
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


def _follow(output: Iterator[str], tell: Callable[[str], None]) -> tuple[bool, int, str]:
    """Hand on DVC's lines; whether the stage's command ran, its exit status, and its last lines."""
    tail: deque[str] = deque(maxlen=TAIL)
    ran, status = False, 0
    for line in _lines(output):
        tell(line)
        end = DVC_REPEATS.match(line)
        if end:
            status = int(end["status"])
        if line.startswith("Running stage"):
            ran = True
            tail.clear()
        elif not line.startswith("> ") and not (tail and end):
            tail.append(line)
    return ran, status, "\n".join(tail)


def _lines(output: Iterator[str]) -> Iterator[str]:
    for line in output:
        if line.strip() and not line.startswith(HINTS):
            yield line.rstrip()
