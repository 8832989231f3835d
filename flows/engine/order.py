"""Run the stages of a pipeline as Prefect tasks, in dependency order, on this machine or on work pools."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from graphlib import TopologicalSorter
from typing import Any, Protocol

from prefect import Task, get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Completed, Failed
from prefect.tasks import exponential_backoff

from flows.curves.artifact import curves_shown
from flows.curves.pace import Pace
from flows.engine.pipeline import Pipeline
from flows.engine.runner import Log, Outcome, Show, StageRun, StageRunner
from flows.repository.revision import Training
from tasks.support.cli import InputError
from tasks.support.events import Event
from tasks.support.slots import Slots

#: Name of the failed state of a stage that is worth retrying.
INTERRUPTED = "Interrupted"

#: Retries by kind of stage. An unreachable data source usually recovers within seconds or minutes. A training
#: is expensive, and it fails again if memory is short.
DOWNLOAD = {"retries": 5, "retry_delay_seconds": exponential_backoff(5), "retry_jitter_factor": 0.5}
RETRIES: dict[str, dict[str, Any]] = {
    "download": DOWNLOAD,
    "download_external": DOWNLOAD,
    "train": {"retries": 2, "retry_delay_seconds": [5, 60]},
}
RETRY_ONCE: dict[str, Any] = {"retries": 1, "retry_delay_seconds": 5}


#: Least seconds between two updates of a progress bar. Each update is a request to the server.
PROGRESS_EVERY = 2.0


class Place(Protocol):
    """An executor of stages: this machine, or a work pool."""

    @property
    def capacity(self) -> int:
        """The maximum number of stages that run here at the same time."""

    @property
    def retries(self) -> dict[str, Any] | None:
        """Retry options for every stage that runs here, or None to use those of the kind of stage."""

    def run(self, stage: str, log: Log, show: Show) -> StageRun:
        """Bring one stage up to date. `log` receives its output lines, `show` its progress events."""


class LocalMachine:
    """Runs stages on this machine, each in a slot of its own."""

    retries = None

    def __init__(self, runner: StageRunner, slots: Slots, hidden: str | None = None) -> None:
        """Create it. Output lines that contain `hidden` are not logged."""
        self._runner, self._slots, self.capacity = runner, slots, len(slots)
        self._hidden = hidden

    def run(self, stage: str, log: Log, show: Show) -> StageRun:
        with self._slots.acquire(log, stage) as slot, curves_shown(stage, self._runner.checkout):
            return self._runner.run(stage, slot, lambda line: self._log(line, log), show)

    def _log(self, line: str, log: Log) -> None:
        if not (self._hidden and self._hidden in line):
            log(line)


#: Sort key of the stages that are ready to start. The smallest starts first.
Priority = tuple[int, float, str]


def priority_of(pipeline: Pipeline, trainings: Mapping[str, Training]) -> Callable[[str], Priority]:
    """Return the sort key that decides which ready stage starts first.

    Stages on the longest dependency chain come first, then the longest trainings. A long training that starts
    last would run alone while other GPUs or cores are idle (Graham 1969, doi 10.1137/0117039).
    """
    depth = dict.fromkeys(pipeline.upstream, 0)
    for stage in reversed(list(TopologicalSorter(pipeline.upstream).static_order())):
        for up in pipeline.upstream[stage]:
            depth[up] = max(depth[up], depth[stage] + 1)
    work = {f"train@{name}": _work(training) for name, training in trainings.items()}
    return lambda stage: (-depth[stage], -work.get(stage, 0.0), stage)


def _work(training: Training) -> float:
    """Estimate the cost of a training, before any image is counted: cost per pixel times pixels seen."""
    passes = training.epochs * len(training.train_classes)
    return passes * training.image_size**2 * (training.width / training.patch) ** 2


def run_stages(
    pipeline: Pipeline, place_of: Callable[[str], Place], priority: Callable[[str], Priority]
) -> None:
    """Run the stages in the order that dvc.yaml requires, in parallel up to the capacity of each place.

    Among the stages that are ready, the one with the smallest `priority` starts first. After a failure no
    stage starts any more, and the running stages are awaited.

    Raises:
        InputError: a stage failed. The message holds the last lines of the stage's output.
    """
    order = TopologicalSorter(pipeline.upstream)
    order.prepare()
    ready: list[str] = []
    futures: dict[str, PrefectFuture[Any]] = {}
    running: dict[PrefectFuture[Any], str] = {}
    in_use: Counter[Place] = Counter()
    failure = None
    while order.is_active():
        ready = sorted([*ready, *order.get_ready()], key=priority)
        for stage in [] if failure else list(ready):
            place = place_of(stage)
            if in_use[place] == place.capacity:
                continue
            ready.remove(stage)
            in_use[place] += 1
            futures[stage] = _as_task(stage, place).submit(
                stage=stage,
                place=None if stage in pipeline.restored else place,
                wait_for=[futures[name] for name in sorted(pipeline.upstream[stage])],
                return_state=False,
            )
            running[futures[stage]] = stage
        if not running:
            break
        finished = next(as_completed(list(running)))
        stage = running.pop(finished)
        in_use[place_of(stage)] -= 1
        order.done(stage)
        finished.wait()  # its state is final only after this
        if not finished.state.is_completed():
            failure = failure or f"{stage} failed: {finished.state.message}"
    if failure:
        raise InputError(failure)


@task(task_run_name="{stage}", persist_result=False, cache_policy=NO_CACHE)
def reproduce(stage: str, place: Place | None) -> State[Any]:
    """Bring one stage up to date. `place` is None for a stage that is unchanged, which ends as Cached."""
    if place is None:
        return Completed(name="Cached", message="unchanged")
    return as_state(place.run(stage, get_run_logger().info, progress_bar(stage)))


def as_state(done: StageRun) -> State[Any]:
    """Convert the outcome of a stage into the final state of its task run or flow run."""
    match done.outcome:
        case Outcome.RAN:
            return Completed(message=done.note or None)
        case Outcome.CACHED:
            return Completed(name="Cached", message=done.note or "unchanged")
        case Outcome.INTERRUPTED:
            return Failed(name=INTERRUPTED, message=done.tail)
        case Outcome.FAILED:
            return Failed(message=done.tail)


def _as_task(stage: str, place: Place) -> Task[..., State[Any]]:
    """Return the task of a stage, with the retries of its place or of its kind.

    Only interrupted stages are retried. A stage that reported an error itself would report it again.
    """
    retries = place.retries or RETRIES.get(stage.partition("@")[0], RETRY_ONCE)
    return reproduce.with_options(retry_condition_fn=was_interrupted, **retries)


def was_interrupted(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Return whether a task ended in a way that is worth a retry."""
    return state.name == INTERRUPTED


def progress_bar(stage: str) -> Show:
    """Return a callback that shows a stage's progress events as a progress bar in the Prefect UI."""
    artifact: Any = None
    pace = Pace(PROGRESS_EVERY)

    def show(event: Event) -> None:
        nonlocal artifact
        if event.fraction < 1 and not pace.is_due():
            return
        pace.updated()
        percent, description = round(100 * event.fraction, 1), f"{stage}: {_describe(event)}"
        try:
            if artifact is None:
                artifact = create_progress_artifact(percent, description=description)
            else:
                update_progress_artifact(artifact, percent, description=description)
        except Exception as error:  # a failed progress update must not stop the stage
            logging.getLogger(__name__).debug("could not update the progress bar: %s", error)

    return show


def _describe(event: Event) -> str:
    scores = [f"{name} {value:.4f}" for name, value in event.scores.items()]
    return ", ".join([f"{event.what}: {event.done} of {event.total}", *scores])


def _without_empty_traceback(record: logging.LogRecord) -> bool:
    """Drop the empty traceback that Prefect logs for a task that returned Failed without an exception."""
    if record.exc_info == (None, None, None):
        record.exc_info = None
    return True


logging.getLogger("prefect.task_runs").addFilter(_without_empty_traceback)
