"""`make worker POOL=gpu SERVER=http://HOST:4200`: this machine does stages for others, until Ctrl-C.

It needs a clone of the repository, with the origin and the DVC remote of the machine that runs the flows, and
credentials for both in the usual places. It does as many at the same time as it has GPUs, or slots of cores.
"""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prefect.settings import get_current_settings

from flows.deployment.addresses import api_of
from flows.deployment.automations import crash_unresponsive_runs, report_ended_runs
from flows.deployment.deployments import RUN_FLOW, deploy, find_deployment
from flows.deployment.prefect_api import ui_of, wait_for
from flows.deployment.supervision import (
    child_process,
    exclusive,
    flow_run_ids,
    kill,
    log_path,
    processes_of,
    run_until_stopped,
)
from flows.deployment.work_pools import POOL_NAME, make_pool
from flows.engine.slots import compute_slots
from flows.remote.run_cache import check_remote
from flows.repository.checkout import CHECKOUTS, RUNS, remove_leftovers
from flows.repository.git import find_repository
from flows.repository.refs import ORIGIN, has_origin, refs_at_origin
from flows.stage import UNFIT, stage
from tasks.settings.schema import load_params
from tasks.support.cli import InputError

#: Seconds that processes which are ending may hold the locks of their checkouts.
LOCK_HELD = 3.0

#: Seconds in which a run that found its machine unfit tells the server so.
LAST_WORDS = 5.0


def work(repository: Path, pool: str, api: str, name: str, limit: int | None) -> None:
    """Do stages of a work pool until SIGINT or SIGTERM.

    Raises:
        InputError: the server or origin does not answer, a stage found that this machine can do none, or the
            worker ended.
    """
    with ExitStack() as stack:
        part_name = f"worker-{pool}"
        if stack.enter_context(exclusive(repository, part_name)) is None:
            raise InputError(f"{repository}: another worker of pool {pool} uses this clone")
        check(repository)
        killed = end_leftovers(repository, part_name)
        wait_for(api)
        report_ended_runs(api, killed)
        make_pool(api, pool)
        offer_stages(api, pool)
        slots = limit or len(compute_slots(load_params(repository / "params.yaml")))
        unfit = repository / RUNS / f".{part_name}.unfit"
        unfit.unlink(missing_ok=True)
        options = ["--name", name, "--limit", str(slots)]
        process = stack.enter_context(
            prefect_worker(repository, api, pool, part_name, *options, **{UNFIT: str(unfit)})
        )
        print(f"worker {name} does up to {slots} stages of pool {pool} at a time: {ui_of(api)}", flush=True)
        while process.poll() is None and not unfit.exists():
            time.sleep(0.5)
        if process.poll() is not None:
            raise InputError(f"the worker ended; {log_path(part_name, repository)} may say why")
        time.sleep(LAST_WORDS)
        raise InputError(unfit.read_text(encoding="utf-8"))


def check(repository: Path) -> None:
    """See that this clone can be handed stages.

    Raises:
        InputError: it has no origin that answers, or no DVC remote that would do.
    """
    if not has_origin(repository):
        raise InputError(f"{repository}: git has no remote {ORIGIN}, from which stages start")
    refs_at_origin(repository, "HEAD")
    check_remote(repository)


def offer_stages(api: str, pool: str) -> None:
    """Make or update the deployment by which a run sends stages to a pool.

    Raises:
        InputError: `make serve` uses the pool for whole runs.
    """
    if find_deployment(api, f"{RUN_FLOW}/{pool}"):
        raise InputError(f"--pool {pool}: `make serve` uses this pool for whole runs; choose another name")
    deployment = deploy(api, stage, pool)
    crash_unresponsive_runs(api, deployment, f"Silent stages in {pool} are crashed")


@contextmanager
def prefect_worker(
    repository: Path, api: str, pool: str, name: str, *options: str, **variables: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a worker. On exit, end and report its runs; otherwise Prefect would believe them still running."""
    command = ["prefect", "worker", "start", "--pool", pool, "--type", "process", *options]
    with ExitStack() as stack:
        process = stack.enter_context(
            child_process(name, command, repository, worker_variables(repository, api) | variables)
        )
        try:
            yield process
        finally:
            killed = flow_run_ids(processes_of(name, repository))
            stack.close()
            # Told to end by others too, the worker may have killed its runs before they could be counted.
            killed |= _remove_checkouts(repository)
            report_ended_runs(api, killed)


def _remove_checkouts(repository: Path) -> set[str]:
    """Remove the checkouts of the runs that were just ended; the ids of those.

    A process that is ending holds its lock for a moment after it can't be found by its environment any more.
    """
    deadline = time.monotonic() + LOCK_HELD
    removed = remove_leftovers(repository)
    while any((repository / CHECKOUTS).glob("*.lock")) and time.monotonic() < deadline:
        time.sleep(0.1)
        removed += remove_leftovers(repository)
    return {leftover.run for leftover in removed}


def worker_variables(repository: Path, api: str) -> dict[str, str]:
    """What Prefect's worker needs, and what its users may set otherwise."""
    usual = {
        # A run whose machine died is known by its silence.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        # Seconds between two looks for runs to start.
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    chosen = {name: os.environ.get(name, value) for name, value in usual.items()}
    return chosen | {"PREFECT_API_URL": api, "RETRAIN_REPOSITORY": str(repository)}


def end_leftovers(repository: Path, *parts: str) -> set[str]:
    """End what was left when an earlier one was killed, and the checkouts of its runs; the ids of those."""
    left = [process for name in parts for process in processes_of(name, repository)]
    runs = flow_run_ids(left)
    kill(left)
    return runs | {leftover.run for leftover in remove_leftovers(repository)}


def main(pool: str, server: str | None, name: str | None, limit: int | None) -> None:
    """Check what `cxr worker` was given, and work."""
    if not POOL_NAME.fullmatch(pool):
        raise InputError(f"--pool {pool!r}: letters, digits, _ and - name a pool")
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: at least 1")
    api = api_of(server or get_current_settings().api.url or "", "--server")
    run_until_stopped(lambda: work(find_repository(), pool, api, name or socket.gethostname(), limit))
