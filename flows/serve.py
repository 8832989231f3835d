"""`make serve`: serve retraining in the Prefect UI from one machine, until Ctrl-C.

Starts a Prefect server unless PREFECT_API_URL names one, creates the work pool and the deployment, and starts
a worker. Prefect's settings apply: for example PREFECT_SERVER_API_PORT for another port, or
PREFECT_SERVER_DATABASE_CONNECTION_URL for PostgreSQL instead of SQLite.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

import prefect
import psutil
from prefect import Flow
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import get_current_settings

from flows.decide import promote, rollback
from flows.deployment.addresses import api_of, host_and_port
from flows.deployment.automations import crash_unresponsive_runs, report_ended_runs
from flows.deployment.deployments import (
    INBOX_SETTINGS,
    INITIAL_SETTINGS,
    RUN_FLOW,
    RUN_SETTINGS,
    deploy,
    find_deployment,
)
from flows.deployment.drift import retrain_on_drift
from flows.deployment.prefect_api import (
    STARTUP_TIMEOUT,
    ServerUnavailableError,
    check_server,
    must_start,
    ui_of,
)
from flows.deployment.reports import serving_reports
from flows.deployment.supervision import child_process, exclusive, lock_path, log_path, run_until_stopped
from flows.deployment.work_pools import POOL_NAME, make_pool
from flows.inbox import predict
from flows.remote.pool import FLOW as STAGE_FLOW
from flows.repository.checkout import RUNS
from flows.repository.git import find_repository
from flows.retrain import retrain
from flows.run import REPORTS_URL
from flows.worker import kill_leftovers, prefect_worker
from tasks.support.cli import InputError

#: The key in a deployment's job variables that names the clone which created it.
CLONE = "clone"

#: The lock of a served clone. The file holds the server's address and the deployment's name.
LOCK = "serve"

#: The names of the child processes in logs.
SERVER = "Prefect server"

WORKER = "worker"

#: The name of the automation for runs that no longer send heartbeats.
AUTOMATION = "Mark unresponsive runs as crashed"

PREDICTIONS_AUTOMATION = "Mark unresponsive predictions as crashed"

#: The name of the automation for drifted images, which is off.
DRIFT_AUTOMATION = "Retrain when images drift"

#: Leases in memory would be lost on a restart, and with them who holds the deployment's only slot.
PERSISTENT_LEASES = {
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}

#: PostgreSQL may be away for a while. If the server then wrote the queued task states one by one, it would be
#: minutes behind and lose some of them. By default it fills a batch for 5 seconds, and until then refuses the
#: flow runs of a task's stages on other machines.
ON_POSTGRESQL = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}


def server_variables(api: str) -> dict[str, str]:
    """Return server settings that differ from Prefect's defaults. The user's environment overrides them."""
    database = get_current_settings().server.database
    url = database.connection_url.get_secret_value() if database.connection_url else ""
    usual = PERSISTENT_LEASES | (ON_POSTGRESQL if url.startswith("postgresql") else {})
    usual |= {
        # Pages of the UI may use the server under any of its names. Other pages may not.
        "PREFECT_SERVER_UI_API_URL": "/api",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": api.removesuffix("/api"),
    }
    if not os.access(prefect.__ui_static_subpath__.parent, os.W_OK):
        # At its start, the server copies the UI's files. Beside the originals, it may not.
        usual["PREFECT_SERVER_UI_STATIC_DIRECTORY"] = str(get_current_settings().home / "ui")
    return {name: os.environ.get(name, value) for name, value in usual.items()}


def serve(
    repository: Path,
    name: str,
    reports_host: str,
    reports_port: int | None,
    reports_url: str | None = None,
    runs: Sequence[Flow[..., Any]] = (),
) -> None:
    """Serve under a name until SIGINT, SIGTERM or SIGHUP.

    `reports_url` is where browsers reach the reports, if not at the address on which they are served. `runs`
    are further flows to deploy, which run stages like `retrain`.

    Raises:
        InputError: the server cannot be started or must not be used, another clone uses the name, or a child
            process ended.
    """
    with ExitStack() as stack:
        lock = stack.enter_context(exclusive(repository, LOCK))
        if lock is None:
            _deploy_again(repository, runs)
            return
        killed = kill_leftovers(repository, WORKER, SERVER)
        served = stack.enter_context(serving_reports(repository / RUNS, reports_host, reports_port))
        reports = reports_url.rstrip("/") if reports_url else served
        parts = {}
        chosen = get_current_settings().api.url
        api = api_of(chosen, "PREFECT_API_URL") if chosen else _own_api()
        if must_start(api, chosen=chosen is not None):
            parts[SERVER] = stack.enter_context(_server(repository, api))
            _wait_until_up(api, parts[SERVER], repository)
        report_ended_runs(api, killed)
        page = _deploy(repository, api, name, runs)
        lock.write(f"{api} {name}".encode())
        lock.flush()
        options = ["--name", socket.gethostname()]
        worker = prefect_worker(repository, api, name, WORKER, options, **{REPORTS_URL: reports})
        parts[WORKER] = stack.enter_context(worker)
        print(f"Prefect UI: {page}\nreports:    {reports}\nCtrl-C stops both.", flush=True)
        while not (ended := [name for name, process in parts.items() if process.poll() is not None]):
            time.sleep(0.5)
        raise InputError(f"the {ended[0]} ended unexpectedly; see {log_path(ended[0], repository)}")


def _deploy_again(repository: Path, runs: Sequence[Flow[..., Any]]) -> None:
    """Update the deployment that another process of this clone serves."""
    api, _, name = lock_path(repository, LOCK).read_text(encoding="utf-8").partition(" ")
    if not name:
        raise InputError(f"{repository}: another `make serve` is starting in this clone")
    _deploy(repository, api, name, runs)
    print(f"already served here as {name}; the deployment is up to date.\nPrefect UI: {ui_of(api)}")


def _own_api() -> str:
    settings = get_current_settings().server.api
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}/api"


def _server(repository: Path, api: str) -> AbstractContextManager["subprocess.Popen[bytes]"]:
    host, port = host_and_port(api)
    command = [sys.executable, "-m", "flows.deployment.guard", "--host", host, "--port", str(port)]
    return child_process(SERVER, command, repository, server_variables(api), ends_at=signal.SIGINT)


def _wait_until_up(api: str, server: "subprocess.Popen[bytes]", repository: Path) -> None:
    """Wait until this server answers, rather than another one that took its port in the meantime."""
    deadline = time.monotonic() + STARTUP_TIMEOUT
    while time.monotonic() < deadline and server.poll() is None:
        if _listens(server, api):
            with suppress(ServerUnavailableError):
                return check_server(api)
        time.sleep(0.2)
    raise InputError(f"the Prefect server did not start; see {log_path(SERVER, repository)}")


def _listens(server: "subprocess.Popen[bytes]", api: str) -> bool:
    with suppress(psutil.Error):
        connections = psutil.Process(server.pid).net_connections()
        ports = [one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN]
        return host_and_port(api)[1] in ports
    return False


def _deploy(repository: Path, api: str, name: str, runs: Sequence[Flow[..., Any]]) -> str:
    """Create the pool, and create or update the deployments. Returns the address of the page of `retrain`.

    Raises:
        InputError: another clone or a worker uses the name.
    """
    clone = f"{socket.gethostname()}:{repository}"
    before = find_deployment(api, f"{RUN_FLOW}/{name}")
    if before:
        _check_ours(before, clone, ui_of(api))
    if find_deployment(api, f"{STAGE_FLOW}/{name}"):
        raise InputError(f"--name {name}: workers use the pool of this name for stages; choose another name")
    make_pool(api, name)
    deployment = deploy(api, retrain, name, {CLONE: clone}, **INITIAL_SETTINGS)
    for decision in (promote, rollback):
        deploy(api, decision, name, {CLONE: clone})
    crash_unresponsive_runs(api, deployment, AUTOMATION)
    for flow in runs:
        of_flow = deploy(api, flow, name, {CLONE: clone}, **RUN_SETTINGS)
        crash_unresponsive_runs(api, of_flow, f"{AUTOMATION}: {flow.name}")
    predictions = deploy(api, predict, name, {CLONE: clone}, **INBOX_SETTINGS)
    crash_unresponsive_runs(api, predictions, PREDICTIONS_AUTOMATION)
    retrain_on_drift(api, predictions, deployment, DRIFT_AUTOMATION)
    return f"{ui_of(api)}/deployments/deployment/{deployment}"


def _check_ours(deployment: DeploymentResponse, clone: str, ui: str) -> None:
    """Refuse to overwrite the deployment of another clone that still exists."""
    owner = deployment.job_variables.get(CLONE) or clone
    host, _, folder = owner.partition(":")
    moved = host == socket.gethostname() and not Path(folder).exists()
    if owner != clone and not moved:
        raise InputError(
            f"the deployment {RUN_FLOW}/{deployment.name} at {ui} belongs to the clone {owner}; "
            "give this one another name with `make serve NAME=...`"
        )


def main(
    name: str,
    reports_host: str,
    reports_port: int | None,
    reports_url: str | None,
    runs: Sequence[Flow[..., Any]] = (),
) -> None:
    """Check the options of `cxr serve`, and serve."""
    if not POOL_NAME.fullmatch(name):
        raise InputError(f"--name {name!r}: must consist of letters, digits, _ and -")
    run_until_stopped(lambda: serve(find_repository(), name, reports_host, reports_port, reports_url, runs))
