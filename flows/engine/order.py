"""The stages of a pipeline as Prefect tasks, in the order that dvc.yaml asks for, each in its place."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from graphlib import TopologicalSorter
from typing import Any, Protocol

from prefect import Task, get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Completed, Failed
from prefect.tasks import exponential_backoff

from flows.engine.pipeline import Pipeline
from flows.engine.runner import Log, Outcome, Show, StageRun, StageRunner
from flows.engine.slots import Slots
from tasks.settings.schema import Params, Plan
from tasks.support.cli import InputError
from tasks.support.events import Event

#: The name of a failed state that another try may mend.
INTERRUPTED = "Interrupted"

#: A source that is away comes back after seconds or minutes; a training takes long, and fails again where
#: memory is short.
RETRIES: dict[str, dict[str, Any]] = {
    "download": {"retries": 5, "retry_delay_seconds": exponential_backoff(5), "retry_jitter_factor": 0.5},
    "train": {"retries": 2, "retry_delay_seconds": [5, 60]},
}
RETRY_ONCE: dict[str, Any] = {"retries": 1, "retry_delay_seconds": 5}


#: Seconds between two updates of a progress bar: each is a request to the server.
PROGRESS_EVERY = 2.0


class Place(Protocol):
    """Where stages run."""

    @property
    def room(self) -> int:
        """How many at the same time."""

    @property
    def retries(self) -> dict[str, Any] | None:
        """How often a stage is tried again here, whatever its kind; None where its kind says."""

    def run(self, stage: str, log: Log, show: Show) -> StageRun:
        """Bring one stage up to date; `log` gets its lines, and `show` its events."""


class Here:
    """This machine, a slot of it for each stage."""

    retries = None

    def __init__(self, runner: StageRunner, slots: Slots) -> None:
        self._runner, self._slots, self.room = runner, slots, len(slots)

    def run(self, stage: str, log: Log, show: Show) -> StageRun:
        with self._slots.take(log, stage) as slot:
            return self._runner.run(stage, slot, log, show)


#: A key by which stages that could start are sorted: the least starts first.
Urgency = tuple[int, float, str]


def urgency_of(pipeline: Pipeline, params: Params) -> Callable[[str], Urgency]:
    """What to start first: the stages that the longest chain of others waits for, then the longest trainings.

    A long training that starts last would run alone while other GPUs or cores have nothing to do (Graham
    1969, doi 10.1137/0117039).
    """
    behind = dict.fromkeys(pipeline.upstream, 0)
    for stage in reversed(list(TopologicalSorter(pipeline.upstream).static_order())):
        for up in pipeline.upstream[stage]:
            behind[up] = max(behind[up], behind[stage] + 1)
    work = {f"train@{name}": _work(plan) for name, plan in params.plans.items()}
    return lambda stage: (-behind[stage], -work.get(stage, 0.0), stage)


def _work(plan: Plan) -> float:
    """A guess, before any image is there to count: what a pixel costs, times how many are seen."""
    passes = plan.epochs * len(plan.train_classes)
    return passes * plan.image_size**2 * (plan.width / plan.patch) ** 2


def run_stages(
    pipeline: Pipeline, place_of: Callable[[str], Place], urgency: Callable[[str], Urgency]
) -> None:
    """Run the stages in the order that dvc.yaml asks for, as many side by side as their places have room for.

    Of those that could start, the one of the least `urgency` does. After a failure nothing new starts, and
    what runs is waited for.

    Raises:
        InputError: a stage failed; the text holds the stage's own last lines.
    """
    order = TopologicalSorter(pipeline.upstream)
    order.prepare()
    ready: list[str] = []
    futures: dict[str, PrefectFuture[Any]] = {}
    running: dict[PrefectFuture[Any], str] = {}
    taken: Counter[Place] = Counter()
    failure = None
    while order.is_active():
        ready = sorted([*ready, *order.get_ready()], key=urgency)
        for stage in [] if failure else list(ready):
            place = place_of(stage)
            if taken[place] == place.room:
                continue
            ready.remove(stage)
            taken[place] += 1
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
        taken[place_of(stage)] -= 1
        order.done(stage)
        finished.wait()  # only then is its state the final one
        if not finished.state.is_completed():
            failure = failure or f"{stage} failed: {finished.state.message}"
    if failure:
        raise InputError(failure)


@task(task_run_name="{stage}", persist_result=False, cache_policy=NO_CACHE)
def reproduce(stage: str, place: Place | None) -> State[Any]:
    """Bring one stage up to date; one that was so already, for which no place is given, ends as Cached."""
    if place is None:
        return Completed(name="Cached", message="unchanged")
    return as_state(place.run(stage, get_run_logger().info, progress_bar(stage)))


def as_state(done: StageRun) -> State[Any]:
    """How a stage ended, as the state of the run that saw to it."""
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
    """The task of a stage, with the retries that befit its place or its kind.

    What a stage itself has found wrong is not tried again: it would be wrong again.
    """
    retries = place.retries or RETRIES.get(stage.partition("@")[0], RETRY_ONCE)
    return reproduce.with_options(retry_condition_fn=_was_interrupted, **retries)


def _was_interrupted(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    return state.name == INTERRUPTED


def progress_bar(stage: str) -> Show:
    """Keep a progress bar of a stage in the UI."""
    artifact: Any = None
    shown = -math.inf

    def show(event: Event) -> None:
        nonlocal artifact, shown
        now = time.monotonic()
        if event.fraction < 1 and now < shown + PROGRESS_EVERY:
            return
        shown = now
        percent, words = round(100 * event.fraction, 1), f"{stage}: {_words(event)}"
        try:
            if artifact is None:
                artifact = create_progress_artifact(percent, description=words)
            else:
                update_progress_artifact(artifact, percent, description=words)
        except Exception as error:  # who watches must not stop the work
            logging.getLogger(__name__).debug("no progress shown: %s", error)

    return show


def _words(event: Event) -> str:
    scores = [f"{name} {value:.4f}" for name, value in event.scores.items()]
    return ", ".join([f"{event.what}: {event.done} of {event.total}", *scores])


def _without_empty_traceback(record: logging.LogRecord) -> bool:
    """Prefect logs a task that returned Failed with the traceback of an exception that never was."""
    if record.exc_info == (None, None, None):
        record.exc_info = None
    return True


logging.getLogger("prefect.task_runs").addFilter(_without_empty_traceback)
