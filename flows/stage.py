"""One stage of a run on a machine of its own: the deployment that `make worker` offers in a work pool.

The machine that the run belongs to has pushed the commit with the stage's params and dvc.lock to origin, and
the stage's inputs to the DVC remote. Here DVC brings the stage up to date as anywhere, in a git worktree of
that commit, and what it made goes to the DVC remote.
"""

import os
import platform
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Failed
from pydantic import BaseModel, ConfigDict, Field

from flows.checkout import GitError, checked_out, fetch_commit, find_repository
from flows.clock import Clock
from flows.publish import as_name
from flows.remote import DeniedError, Remote, RemoteAwayError, patiently
from flows.running import INTERRUPTED, as_state, watcher
from flows.slots import compute_slots
from flows.stages import Outcome, StageRun, StageRunner, Tell
from tasks.cli import InputError
from tasks.params import load_params

#: Where a run says why its machine can do no stage, for the worker to read.
UNFIT = "RETRAIN_UNFIT"

#: Where trainings leave their checkpoints, below a repository or a checkout of it.
CHECKPOINTS = Path(".dvc/tmp/checkpoints")

#: Packages whose versions may change a result.
PACKAGES = ("dvc", "numpy", "pandas", "pillow", "safetensors", "scipy", "torch")

#: The name of a failed state that says that the worker, not the stage, is at fault.
REFUSED = "Refused"


class StageRequest(BaseModel):
    """Which stage to bring up to date, and for whom."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*(@[A-Za-z0-9_-]+)?$")] = Field(
        description="A stage of dvc.yaml."
    )
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] = Field(
        description="A commit of this repository, with the stage's inputs in its dvc.lock."
    )
    run: UUID = Field(description="The flow run that wants it, by which origin's ref is named.")
    versions: dict[str, str] = Field(description="What its results stand on: Python and the packages.")


class UnfitError(Exception):
    """This machine can do no stage: its text says why."""


class RefusedError(Exception):
    """This machine can't do this stage: its text says why."""


@flow(name="stage")
def stage(request: StageRequest) -> State[Any]:
    """Bring one stage up to date at a commit, and hand its result over through the DVC remote."""
    tell = get_run_logger().info
    worker = worker_name()
    try:
        return as_state(_run(request, find_repository(), worker, tell))
    except (UnfitError, DeniedError) as error:
        _say_unfit(str(error))
        return Failed(name=REFUSED, message=f"on {worker}: {error}")
    except RefusedError as error:
        return Failed(name=REFUSED, message=f"on {worker}: {error}")
    except RemoteAwayError as error:
        return Failed(name=INTERRUPTED, message=f"on {worker}: {error}")
    except InputError as error:
        return Failed(message=f"on {worker}: {error}")


def worker_name() -> str:
    """The name of the worker that this process works for, else of the machine."""
    return os.environ.get("PREFECT__WORKER_NAME") or socket.gethostname()


def versions() -> dict[str, str]:
    """The versions that results stand on; torch's without the word for what it was built for."""
    packages = {name: version(name).partition("+")[0] for name in PACKAGES}
    return {"python": ".".join(platform.python_version_tuple()[:2])} | packages


def _run(request: StageRequest, repository: Path, worker: str, tell: Tell) -> StageRun:
    name, clock = request.stage, Clock()
    _check_versions(request.versions)
    with ExitStack() as stack:
        with clock("clone"), _or_unfit():
            _fetch(repository, request, tell)
            checkout = stack.enter_context(
                checked_out(repository, request.commit, as_name(name), flow_run.id or "")
            )
        remote = Remote(checkout, tell)
        with clock("inputs"):
            remote.pull_inputs(name)
        with clock("look"):
            done = StageRun(Outcome.CACHED, "") if remote.restore(name) else None
        checkpoints = None
        if done is None:
            folder = checkout / CHECKPOINTS
            checkpoints = stack.enter_context(remote.checkpoints(remote.key(name), folder))
            done = _reproduce(name, repository, checkout, clock, tell)
        if done.outcome in (Outcome.RAN, Outcome.CACHED):
            with clock("result"):
                remote.push_result(name)
            if checkpoints:
                checkpoints.remove()
    return done._replace(note=f"on {worker}: {clock}", tail=f"on {worker}: {done.tail}")


def _fetch(repository: Path, request: StageRequest, tell: Tell) -> None:
    def fetch() -> None:
        if not fetch_commit(repository, str(request.run), request.commit):
            raise RemoteAwayError(f"origin has commit {request.commit[:10]} no more: its run has ended")

    patiently("origin", fetch, tell)


def _reproduce(stage: str, repository: Path, checkout: Path, clock: Clock, tell: Tell) -> StageRun:
    runner = StageRunner(
        checkout, RETRAIN_SOURCE_ROOT=str(repository), RETRAIN_CHECKPOINTS=str(checkout / CHECKPOINTS)
    )
    slots = compute_slots(load_params(checkout / "params.yaml"))
    with ExitStack() as stack:
        stack.callback(runner.stop)  # none is left, unless the flow itself was stopped
        with clock("slot"):
            slot = stack.enter_context(slots.take(tell, stage))
        with clock("stage"):
            return runner.run(stage, slot, watcher(stage, tell))


def _check_versions(wanted: dict[str, str]) -> None:
    """Refuse to make what the run's own machine would make otherwise."""
    here = versions()
    if others := [
        f"{name} {here.get(name, 'missing')}, not {wanted[name]}"
        for name in wanted
        if here.get(name) != wanted[name]
    ]:
        raise RefusedError(f"other versions than the run's: {', '.join(others)}")


@contextmanager
def _or_unfit() -> Iterator[None]:
    """What keeps this machine from having a checkout keeps it from every other stage too."""
    try:
        yield
    except (GitError, OSError) as error:
        raise UnfitError(f"no checkout can be made here: {error}") from None


def _say_unfit(why: str) -> None:
    """Tell the worker, which ends; without one there is nobody to tell."""
    if path := os.environ.get(UNFIT):
        Path(path).write_text(why, encoding="utf-8")
