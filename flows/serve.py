"""`make serve`: all that one machine needs to retrain from the Prefect UI, until Ctrl-C.

Starts a Prefect server (unless the one that PREFECT_API_URL names answers), makes the work pool and the
deployment of prefect.yaml, and starts a worker. Prefect's own settings hold: PREFECT_SERVER_API_PORT for
another port, PREFECT_SERVER_DATABASE_CONNECTION_URL for PostgreSQL instead of SQLite.
"""

import argparse
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from flows.checkout import RUNS, environment, find_repository
from flows.processes import log_path, only_one, part, until_stopped
from flows.retrain import REPORTS_URL
from flows.server import (
    STARTUP,
    answers,
    client_of,
    crash_the_silent,
    is_up,
    make_pool,
    report_ended,
    ui_of,
)
from flows.worker import end_leftovers, prefect_worker, worker_variables
from tasks.cli import InputError, stage_main

POOL = "retrain"
DEPLOYMENT = "retrain/retrain"

#: The parts, by their names in logs.
SERVER = "Prefect server"
WORKER = "worker"

#: The automation that ends runs of which nothing was heard for a while.
SILENT = "Silent retrainings are crashed"

#: In memory a server that starts again would have forgotten who holds the deployment's one slot.
REMEMBERING = {
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}

#: PostgreSQL may be away for a while. Written one by one, states of tasks that piled up meanwhile would be
#: behind for minutes, and some lost.
ON_POSTGRESQL = {"PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100"}


def server_variables() -> dict[str, str]:
    """What a server needs that Prefect does not do by itself; a user may set it otherwise."""
    database = get_current_settings().server.database
    url = database.connection_url.get_secret_value() if database.connection_url else ""
    usual = REMEMBERING | (ON_POSTGRESQL if url.startswith("postgresql") else {})
    return {name: os.environ.get(name, value) for name, value in usual.items()}


def serve(repository: Path, reports_host: str, reports_port: int | None) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        InputError: the server does not start or does not answer, or a part of it ended.
    """
    with ExitStack() as stack:
        lock = stack.enter_context(only_one(repository, "serve"))
        api = get_current_settings().api.url or _own_api()
        if lock is None:
            _deploy(repository, api)
            print(f"already served here; the deployment is up to date.\nPrefect UI: {ui_of(api)}")
            return
        killed = end_leftovers(repository, WORKER, SERVER)
        reports = stack.enter_context(_reports(repository / RUNS, reports_host, reports_port))
        parts = {}
        if not answers(api):
            parts[SERVER] = stack.enter_context(
                part(SERVER, _server_command(api), repository, **server_variables())
            )
            _wait_until_up(api, parts[SERVER], repository)
        report_ended(api, killed)
        make_pool(api, POOL)
        page = _deploy(repository, api)
        worker = prefect_worker(repository, api, POOL, WORKER, **{REPORTS_URL: reports})
        parts[WORKER] = stack.enter_context(worker)
        print(f"Prefect UI: {page}\nreports:    {reports}\nCtrl-C stops both.", flush=True)
        while not (ended := [name for name, process in parts.items() if process.poll() is not None]):
            time.sleep(0.5)
        raise InputError(f"the {ended[0]} ended; {log_path(ended[0], repository)} may say why")


# --- the server ---------------------------------------------------------------------------------------------


def _own_api() -> str:
    settings = get_current_settings().server.api
    return f"http://{settings.host}:{settings.port}/api"


def _server_command(api: str) -> list[str]:
    address = urlsplit(api)
    return ["prefect", "server", "start", "--host", str(address.hostname), "--port", str(address.port)]


def _wait_until_up(api: str, server: "subprocess.Popen[bytes]", repository: Path) -> None:
    deadline = time.monotonic() + STARTUP
    while time.monotonic() < deadline and server.poll() is None:
        if is_up(api):
            return
        time.sleep(0.2)
    raise InputError(f"the Prefect server does not start; {log_path(SERVER, repository)} says why")


# --- the deployment -----------------------------------------------------------------------------------------


def _deploy(repository: Path, api: str) -> str:
    """Make or update the deployment, keeping the schedules that it has; the address of its page."""
    before = _find_deployment(api)
    done = subprocess.run(
        ["prefect", "--no-prompt", "deploy", "--all"],
        cwd=repository,
        env=environment() | worker_variables(repository, api),
        capture_output=True,
        text=True,
        check=False,
    )
    after = _find_deployment(api)
    if done.returncode or after is None:
        raise InputError(f"prefect.yaml: {(done.stderr or done.stdout).strip()}")
    if before:
        _keep_schedules(api, before, after)
    crash_the_silent(api, after.id, SILENT)
    return f"{ui_of(api)}/deployments/deployment/{after.id}"


def _find_deployment(api: str) -> DeploymentResponse | None:
    with client_of(api) as client, suppress(ObjectNotFound):
        return client.read_deployment_by_name(DEPLOYMENT)
    return None


def _keep_schedules(api: str, before: DeploymentResponse, after: DeploymentResponse) -> None:
    """Undo what deploying did to the schedules: they are set in the UI, and prefect.yaml has the first."""
    with client_of(api) as client:
        for schedule in after.schedules:
            client.delete_deployment_schedule(after.id, schedule.id)
        for schedule in before.schedules:
            client._client.post(
                f"/deployments/{after.id}/schedules",
                json=[
                    schedule.model_dump(
                        mode="json",
                        include={"schedule", "active", "max_scheduled_runs", "parameters", "slug"},
                    )
                ],
            ).raise_for_status()


# --- the reports --------------------------------------------------------------------------------------------


class ReportHandler(SimpleHTTPRequestHandler):
    """Shows a browser what lies under runs/, but for hidden files: those are checkouts, locks and logs."""

    def send_head(self) -> Any:
        if any(
            part.startswith(".")
            for part in Path(self.translate_path(self.path)).relative_to(self.directory).parts
        ):
            self.send_error(404)
            return None
        return super().send_head()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def _reports(folder: Path, host: str, port: int | None) -> Iterator[str]:
    """Serve the reports on one of this machine's addresses; where its own browsers find them."""
    chosen = get_current_settings().server.api.port + 1 if port is None else port
    try:
        server = ThreadingHTTPServer((host, chosen), partial(ReportHandler, directory=str(folder)))
    except OSError as error:
        raise InputError(
            f"--reports-port {chosen}: {error.strerror}; choose another, 0 takes any that is free"
        ) from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        seen_at = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104
        yield f"http://{seen_at}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Start a Prefect server, a worker and the retrain deployment."
    )
    parser.add_argument(
        "--reports-port", type=int, help="where the reports are shown; by default the one after the server's"
    )
    parser.add_argument(
        "--reports-host",
        default="127.0.0.1",
        help="the address to show them on, without a password; in a container 0.0.0.0",
    )
    args = parser.parse_args()
    until_stopped(lambda: serve(find_repository(), args.reports_host, args.reports_port))


if __name__ == "__main__":
    stage_main(main)
