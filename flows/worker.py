"""`make worker POOL=gpu SERVER=http://HOST:4200`: run stages for flows on other machines, until Ctrl-C.

The worker needs a clone of the repository with the same origin and DVC remote as the machine that runs the
flows, and credentials for both in the usual places. It runs one stage at a time per GPU, or per slot of CPU
cores.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
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
from flows.doctor import check_before_run
from flows.remote.run_cache import check_remote
from flows.repository.checkout import CHECKOUTS, RUNS, remove_leftovers
from flows.repository.git import find_repository
from flows.repository.refs import ORIGIN, has_origin, refs_at_origin
from flows.repository.revision import plan_trainings
from flows.stage import UNFIT, stage
from tasks.support.cli import InputError
from tasks.support.slots import slots_for

#: Seconds for which processes that are ending may still hold the locks of their checkouts.
LOCK_RELEASE_TIME = 3.0

#: Seconds for a run on an unfit machine to report its state to the server.
REPORT_TIME = 5.0


#: The command that starts a worker.
PREFECT_WORKER = (sys.executable, "-m", "flows.deployment.process_worker")


def run_worker(
    repository: Path, pool: str, api: str, name: str, limit: int | None, idle_minutes: float | None = None
) -> None:
    """Run stages of a work pool until SIGINT or SIGTERM.

    Args:
        repository: The clone in which the stages run.
        pool: The work pool.
        api: The address of the server's API.
        name: The worker's name.
        limit: Maximum number of stages at a time, or None for one per slot of the machine.
        idle_minutes: Return after this many minutes without a stage. None means never.

    Raises:
        InputError: the server or origin does not answer, the machine cannot run any stage, or the worker
            ended.
    """
    with ExitStack() as stack:
        process_name = f"worker-{pool}"
        if stack.enter_context(exclusive(repository, process_name)) is None:
            raise InputError(f"{repository}: another worker of pool {pool} uses this clone")
        check_before_run(repository, lambda line: print(f"warning: {line}", flush=True))
        check_clone(repository)
        killed = kill_leftovers(repository, process_name)
        wait_for(api)
        report_ended_runs(api, killed)
        make_pool(api, pool)
        deploy_stages(api, pool)
        slots = limit or len(slots_for(plan_trainings(repository)))
        unfit = repository / RUNS / f".{process_name}.unfit"
        unfit.unlink(missing_ok=True)
        idle = repository / RUNS / f".{process_name}.idle"
        idle.unlink(missing_ok=True)
        options = ["--name", name, "--limit", str(slots)]
        if idle_minutes is not None:
            options += ["--idle-seconds", str(60 * idle_minutes), "--marker", str(idle)]
        process = stack.enter_context(
            prefect_worker(repository, api, pool, process_name, options, **{UNFIT: str(unfit)})
        )
        print(f"worker {name} runs up to {slots} stages of pool {pool} at a time: {ui_of(api)}", flush=True)
        while process.poll() is None and not unfit.exists() and not idle.exists():
            time.sleep(0.5)
        if process.poll() is not None:
            raise InputError(f"the worker ended unexpectedly; see {log_path(process_name, repository)}")
        if idle.exists() and not unfit.exists():
            print(f"worker {name} ran no stage for {idle_minutes:g} min", flush=True)
            return
        time.sleep(REPORT_TIME)
        raise InputError(unfit.read_text(encoding="utf-8"))


def check_clone(repository: Path) -> None:
    """Check that this clone can run stages for other machines.

    Raises:
        InputError: it has no origin, or no usable DVC remote, or one of them does not answer.
    """
    if not has_origin(repository):
        raise InputError(f"{repository}: git has no remote {ORIGIN}, which workers need to get commits")
    refs_at_origin(repository, "HEAD")
    check_remote(repository)


def deploy_stages(api: str, pool: str) -> None:
    """Create or update the deployment through which runs submit stages to a pool.

    Raises:
        InputError: `make serve` uses the pool for whole runs.
    """
    if find_deployment(api, f"{RUN_FLOW}/{pool}"):
        raise InputError(f"--pool {pool}: `make serve` uses this pool for whole runs; choose another name")
    deployment = deploy(api, stage, pool)
    crash_unresponsive_runs(api, deployment, f"Mark unresponsive stages in {pool} as crashed")


@contextmanager
def prefect_worker(
    repository: Path, api: str, pool: str, name: str, options: Sequence[str], **variables: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a Prefect worker. On exit, end and report its runs, which the server would show as running."""
    command = [*PREFECT_WORKER, "--pool", pool, *options]
    with ExitStack() as stack:
        process = stack.enter_context(
            child_process(name, command, repository, worker_variables(repository, api) | variables)
        )
        try:
            yield process
        finally:
            killed = flow_run_ids(processes_of(name, repository))
            stack.close()
            # If the worker received a signal too, it may have killed its runs before they were listed.
            killed |= _remove_checkouts(repository)
            report_ended_runs(api, killed)


def _remove_checkouts(repository: Path) -> set[str]:
    """Remove the checkouts of the runs that have just ended, and return the ids of these runs.

    A process that is ending holds its lock for a moment longer than its environment can be read.
    """
    deadline = time.monotonic() + LOCK_RELEASE_TIME
    removed = remove_leftovers(repository)
    while any((repository / CHECKOUTS).glob("*.lock")) and time.monotonic() < deadline:
        time.sleep(0.1)
        removed += remove_leftovers(repository)
    return {leftover.run for leftover in removed}


def worker_variables(repository: Path, api: str) -> dict[str, str]:
    """Return the environment of Prefect's worker. Variables of the user take precedence where listed."""
    usual = {
        # Runs whose machine has died are detected by missing heartbeats.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        # Seconds between two polls for runs to start.
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        # Seconds between two requests with the log lines of a run. Each training prints one for each epoch.
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "5",
    }
    chosen = {name: os.environ.get(name, value) for name, value in usual.items()}
    return chosen | {"PREFECT_API_URL": api, "RETRAIN_REPOSITORY": str(repository)}


def kill_leftovers(repository: Path, *parts: str) -> set[str]:
    """Kill what a killed worker or server left running, remove its checkouts, and return its run ids."""
    left = [process for name in parts for process in processes_of(name, repository)]
    runs = flow_run_ids(left)
    kill(left)
    return runs | {leftover.run for leftover in remove_leftovers(repository)}


def main(
    pool: str, server: str | None, name: str | None, limit: int | None, idle_minutes: float | None
) -> None:
    """Check the options of `cxr worker`, and run the worker."""
    if not POOL_NAME.fullmatch(pool):
        raise InputError(f"--pool {pool!r}: must consist of letters, digits, _ and -")
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: must be at least 1")
    api = api_of(server or get_current_settings().api.url or "", "--server")
    run_until_stopped(
        lambda: run_worker(find_repository(), pool, api, name or socket.gethostname(), limit, idle_minutes)
    )
