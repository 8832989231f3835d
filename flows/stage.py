"""Run one stage of a run on another machine: the flow that `make worker` deploys to a work pool.

The run's own machine has pushed the commit with the stage's params and dvc.lock to origin, and the stage's
inputs to the DVC remote. This flow runs the stage through DVC in a git worktree of that commit, and pushes
its result to the DVC remote.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Failed

from flows.curves.artifact import curves_shown
from flows.curves.histories import STAGE as TRAINING
from flows.engine.order import INTERRUPTED, as_state, progress_bar
from flows.engine.runner import Log, Outcome, StageRun, StageRunner
from flows.remote.clock import Clock
from flows.remote.run_cache import Remote
from flows.remote.stage_request import REFUSED, StageRequest, versions
from flows.repository.checkout import checked_out
from flows.repository.git import GitError, find_repository
from flows.repository.lock_text import select_entries
from flows.repository.publish import as_name
from flows.repository.refs import fetch_commit
from flows.repository.retry import DeniedError, UnavailableError, with_retries
from tasks.support.checkpoints import FOLDER as CHECKPOINT_FOLDER
from tasks.support.cli import InputError
from tasks.support.slots import slots_for

#: Environment variable with the path of a file. A run writes there why its machine cannot run any stage.
UNFIT = "RETRAIN_UNFIT"


class UnfitError(Exception):
    """This machine cannot run any stage. The message is the reason."""


class RefusedError(Exception):
    """This machine cannot run this stage. The message is the reason."""


@flow(name="stage")
def stage(request: StageRequest) -> State[Any]:
    """Bring one stage up to date at a commit, and return its result through the DVC remote."""
    log = get_run_logger().info
    worker = worker_name()
    try:
        return as_state(_run(request, find_repository(), worker, log))
    except (UnfitError, DeniedError) as error:
        _report_unfit(str(error))
        return Failed(name=REFUSED, message=f"on {worker}: {error}")
    except RefusedError as error:
        return Failed(name=REFUSED, message=f"on {worker}: {error}")
    except UnavailableError as error:
        return Failed(name=INTERRUPTED, message=f"on {worker}: {error}")
    except InputError as error:
        return Failed(message=f"on {worker}: {error}")


def worker_name() -> str:
    """Return the name of the worker that started this process, or of the machine if there is none."""
    return os.environ.get("PREFECT__WORKER_NAME") or socket.gethostname()


def _run(request: StageRequest, repository: Path, worker: str, log: Log) -> StageRun:
    name, clock = request.stage, Clock()
    _check_versions(request.versions)
    with ExitStack() as stack:
        with clock("clone"), _unfit_on_error():
            _fetch(repository, request, log)
            checkout = stack.enter_context(
                checked_out(repository, request.commit, as_name(name), flow_run.id or "")
            )
            # DVC reads all of it several times, and writes it.
            select_entries(checkout, [*request.upstream, name])
        remote = Remote(checkout, log)
        with clock("inputs"):
            remote.pull_inputs(name, request.upstream)
        with clock("look"):
            done = StageRun(Outcome.CACHED, "") if remote.restore(name) else None
        checkpoints = None
        if done is None:
            if name.startswith(TRAINING):
                folder = checkout / CHECKPOINT_FOLDER
                checkpoints = stack.enter_context(remote.checkpoints(remote.key(name), folder))
            done = _reproduce(request, repository, checkout, clock, log)
        if done.outcome in (Outcome.RAN, Outcome.CACHED):
            with clock("result"):
                remote.push_result(name)
            if checkpoints:
                checkpoints.remove()
    return done._replace(note=f"on {worker}: {clock}", tail=f"on {worker}: {done.tail}")


def _fetch(repository: Path, request: StageRequest, log: Log) -> None:
    def fetch() -> None:
        if not fetch_commit(repository, str(request.run), request.commit):
            raise UnavailableError(f"origin no longer has commit {request.commit[:10]}; its run has ended")

    with_retries("origin", fetch, log)


def _reproduce(request: StageRequest, repository: Path, checkout: Path, clock: Clock, log: Log) -> StageRun:
    stage = request.stage
    runner = StageRunner(
        checkout,
        RETRAIN_SOURCE_ROOT=str(repository),
        RETRAIN_CHECKPOINTS=str(checkout / CHECKPOINT_FOLDER),
    )
    slots = slots_for({stage.removeprefix(TRAINING): request})
    with ExitStack() as stack:
        stack.callback(runner.stop)  # a stage is still running only if the flow itself was stopped
        with clock("slot"):
            slot = stack.enter_context(slots.acquire(log, stage))
        with clock("stage"), curves_shown(stage, checkout):
            return runner.run(stage, slot, log, progress_bar(stage))


def _check_versions(wanted: dict[str, str]) -> None:
    """Refuse a stage whose result would differ from that of the run's own machine."""
    here = versions()
    others = [name for name in wanted if here.get(name) != wanted[name]]
    if others:
        words = [f"{name} {here.get(name, 'missing')}, not {wanted[name]}" for name in others]
        hint = "; `git pull` on the older machine and restart it" if "protocol" in others else ""
        raise RefusedError(f"versions differ from the run's: {', '.join(words)}{hint}")


@contextmanager
def _unfit_on_error() -> Iterator[None]:
    """Convert errors in creating the checkout, which would prevent any other stage too."""
    try:
        yield
    except (GitError, OSError) as error:
        raise UnfitError(f"cannot create a checkout on this machine: {error}") from None


def _report_unfit(why: str) -> None:
    """Report the reason to the worker, if there is one. The worker then ends."""
    if path := os.environ.get(UNFIT):
        Path(path).write_text(why, encoding="utf-8")
