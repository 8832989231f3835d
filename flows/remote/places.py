"""Run the stages of a checkout, each on this machine or in a work pool."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from flows.engine.order import LocalMachine, priority_of, run_stages
from flows.engine.pipeline import Pipeline, restore_pipeline, sort_lock
from flows.engine.runner import Log, StageRunner
from flows.remote.pool import RemoteRun, remote_places
from flows.repository.git import git
from flows.repository.revision import Training, plan_trainings
from tasks.support.checkpoints import FOLDER as CHECKPOINT_FOLDER
from tasks.support.slots import slots_for


class Ran(NamedTuple):
    """What has run."""

    pipeline: Pipeline
    trainings: dict[str, Training]
    """By name."""


def run_checkout(
    checkout: Path,
    repository: Path,
    pools: Mapping[str, str],
    run: str,
    log: Log,
    *,
    wanted: Callable[[str], bool] | None = None,
    variables: Mapping[str, str] | None = None,
    hidden: str | None = None,
) -> Ran:
    """Run the stages of a run's checkout, whose params are committed.

    Stages that the DVC cache has are restored. dvc.lock is left uncommitted.

    Args:
        checkout: The checkout, whose folder has the name of the run.
        repository: The repository to which it belongs.
        pools: Stages to run on other machines, as patterns of stage names with a work pool each.
        run: The id of the flow run.
        log: Receives messages.
        wanted: Which stages to run, by default all. Those on which they depend run too.
        variables: Additional environment variables of every stage.
        hidden: Output lines of stages that contain this are not logged on this machine.

    Raises:
        InputError: a stage failed, or a pool cannot be used.
    """
    started_from = git(checkout, "rev-parse", "HEAD")
    pipeline = restore_pipeline(checkout)
    if wanted:
        pipeline = pipeline.up_to(wanted)
    runner = StageRunner(
        checkout,
        RETRAIN_SOURCE_ROOT=str(repository),
        RETRAIN_CHECKPOINTS=str(repository / CHECKPOINT_FOLDER),
        **(variables or {}),
    )
    trainings = plan_trainings(checkout)
    local = LocalMachine(runner, slots_for(trainings), hidden)
    remote_run = RemoteRun(checkout, pipeline, trainings, repository, run, log)
    with remote_places(pools, remote_run, log) as places:
        try:
            run_stages(pipeline, lambda stage: places.get(stage) or local, priority_of(pipeline, trainings))
        finally:
            runner.stop()  # stages are still running only if the flow itself was stopped
    # Drop the commits that were made for stages on other machines.
    git(checkout, "reset", "--quiet", "--soft", started_from)
    sort_lock(checkout, pipeline.order)
    return Ran(pipeline, trainings)
