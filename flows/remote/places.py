"""Run the stages of a checkout, each on this machine or in a work pool."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from flows.engine.order import LocalMachine, priority_of, run_stages
from flows.engine.pipeline import Pipeline, restore_pipeline, sort_lock
from flows.engine.runner import Log, StageRunner
from flows.remote.pool import FLOW, Pool, RemoteRun
from flows.remote.run_cache import check_remote, is_transferable
from flows.repository.dvc_internals import open_repo
from flows.repository.git import git
from flows.repository.refs import ORIGIN, has_origin
from flows.repository.revision import Training, plan_trainings
from tasks.support.checkpoints import FOLDER as CHECKPOINT_FOLDER
from tasks.support.cli import InputError
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
    with _remote_places(pools, remote_run, log) as places:
        try:
            run_stages(pipeline, lambda stage: places.get(stage) or local, priority_of(pipeline, trainings))
        finally:
            runner.stop()  # stages are still running only if the flow itself was stopped
    # Drop the commits that were made for stages on other machines.
    git(checkout, "reset", "--quiet", "--soft", started_from)
    sort_lock(checkout, pipeline.order)
    return Ran(pipeline, trainings)


# --- which stage runs where ---------------------------------------------------------------------------------


def pool_of(stage: str, pools: Mapping[str, str]) -> str | None:
    """Return the pool of the longest pattern that matches a stage, or None if it runs with its flow."""
    fitting = sorted((len(pattern), pattern) for pattern in pools if fnmatchcase(stage, pattern))
    return pools[fitting[-1][1]] if fitting else None


def _check_pools(pools: Mapping[str, str], stages: list[str], repository: Path) -> None:
    """Check that the stages can run in the pools.

    Raises:
        InputError: a pattern matches no stage, a pool has no deployment for stages, or git's origin or the
            DVC remote is missing.
    """
    for pattern in pools:
        if not any(fnmatchcase(stage, pattern) for stage in stages):
            kinds = sorted({stage.partition("@")[0] for stage in stages})
            raise InputError(f"pools: {pattern!r} matches no stage; stages are {', '.join(kinds)}")
    if not has_origin(repository):
        raise InputError(f"pools: git has no remote {ORIGIN}, which other machines need to get the commit")
    check_remote(repository)
    with get_client(sync_client=True) as client:
        for pool in sorted(set(pools.values())):
            try:
                client.read_deployment_by_name(f"{FLOW}/{pool}")
            except ObjectNotFound:
                raise InputError(
                    f"pools: {pool}: no worker has been started for a pool of this name; "
                    f"start one with `make worker POOL={pool} SERVER=...` on its machine"
                ) from None


def _transferable(checkout: Path, stages: list[str]) -> set[str]:
    """Return those stages whose results can be transferred between machines."""
    with open_repo(checkout) as repo:
        return {name for name in stages if is_transferable(repo.stage.load_one(name=name))}


@contextmanager
def _remote_places(pools: Mapping[str, str], run: RemoteRun, log: Log) -> Iterator[dict[str, Pool]]:
    """Yield the pool of each stage that runs on other machines. On exit, cancel what still runs there."""
    if not pools:
        yield {}
        return
    stages = list(run.pipeline.upstream)
    wanted = {stage: pool for stage in stages if (pool := pool_of(stage, pools))}
    _check_pools(pools, stages, run.repository)
    transferred = _transferable(run.checkout, list(wanted))
    for stage in sorted(wanted.keys() - transferred):
        log(f"{stage} runs on this machine: DVC cannot transfer its outputs")
    run.sweep()
    places = {pool: Pool(pool, run) for pool in set(wanted.values())}
    try:
        yield {stage: places[pool] for stage, pool in wanted.items() if stage in transferred}
    finally:
        run.stop()
