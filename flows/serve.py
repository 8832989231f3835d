"""`make serve`: all that one machine needs to retrain from the Prefect UI, until Ctrl-C.

Starts a Prefect server (unless the one that PREFECT_API_URL names answers), makes the work pool and the
deployment of prefect.yaml, and starts a worker. Prefect's own settings hold: PREFECT_SERVER_API_PORT for
another port, PREFECT_SERVER_DATABASE_CONNECTION_URL for PostgreSQL instead of SQLite.
"""

import argparse
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import IO, Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events import Event
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Crashed

from flows.checkout import RUNS, environment, find_repository, remove_leftovers
from flows.retrain import REPORTS_URL
from tasks.cli import InputError, stage_main

POOL = "retrain"
DEPLOYMENT = "retrain/retrain"

#: The parts, by their names in logs.
SERVER = "Prefect server"
WORKER = "worker"

#: The automation that ends runs of which nothing was heard for so long: four heartbeats.
SILENT = "Silent retrainings are crashed"
SILENCE = timedelta(seconds=120)

#: The event by which that automation knows that a run was ended with its worker.
ENDED = "retrain.run-ended"

#: Says in the environment of a part, and of all that it starts, whose part it is.
PART_OF = "RETRAIN_PART_OF"

#: A server that keeps in memory who holds the deployment's one slot leaves it taken when it starts again.
LEASES = {
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": os.environ.get(
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "prefect.server.concurrency.lease_storage.filesystem"
    )
}

#: Seconds that a server may take to answer: its first start on an empty database is the slowest.
STARTUP = 120.0

#: Seconds that the worker has to end its runs, and the server to end, before they are killed.
GRACE = 20.0


def serve(repository: Path, reports_port: int | None) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        InputError: the server does not start or does not answer, or a part of it ended.
    """
    with ExitStack() as stack:
        lock = stack.enter_context(_only_one(repository))
        api = get_current_settings().api.url or _own_api()
        if lock is None:
            _deploy(repository, api)
            print(f"already served here; the deployment is up to date.\nPrefect UI: {_ui_of(api)}")
            return
        killed = _end_leftovers(repository)
        reports = stack.enter_context(_reports(repository / RUNS, reports_port))
        parts = {}
        if not _answers(api):
            parts[SERVER] = stack.enter_context(_process(SERVER, _server_command(api), repository, **LEASES))
            _wait_until_up(api, parts[SERVER], repository)
        _report_ended(api, killed)
        _make_pool(api)
        page = _deploy(repository, api)
        parts[WORKER] = stack.enter_context(_worker(repository, api, reports))
        print(f"Prefect UI: {page}\nreports:    {reports}\nCtrl-C stops both.", flush=True)
        while not (ended := [name for name, process in parts.items() if process.poll() is not None]):
            time.sleep(0.5)
        raise InputError(f"the {ended[0]} ended; {_log_path(ended[0], repository)} may say why")


@contextmanager
def _only_one(repository: Path) -> Iterator[IO[bytes] | None]:
    """A lock for as long as this repository is served; None where another process holds it."""
    path = repository / RUNS / ".serve.lock"
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield lock


# --- the server ---------------------------------------------------------------------------------------------


def _own_api() -> str:
    settings = get_current_settings().server.api
    return f"http://{settings.host}:{settings.port}/api"


def _ui_of(api: str) -> str:
    return api.removesuffix("/api")


def _answers(api: str) -> bool:
    """Whether a Prefect server answers.

    Raises:
        InputError: something else does, or nothing does at an address that is not this machine's.
    """
    address = urlsplit(api)
    try:
        told = httpx.get(f"{api}/health", timeout=5)
    except httpx.HTTPError:
        if address.hostname not in ("127.0.0.1", "localhost", "0.0.0.0", "::1"):  # noqa: S104
            raise InputError(f"PREFECT_API_URL: no server answers at {api}") from None
        with socket.socket() as probe:
            if probe.connect_ex((address.hostname, address.port or 80)) == 0:
                raise InputError(_taken(api)) from None
        return False
    if told.text.strip() != "true":
        raise InputError(_taken(api))
    return True


def _taken(api: str) -> str:
    return f"{api}: what answers there is no Prefect server; choose another port with PREFECT_SERVER_API_PORT"


def _server_command(api: str) -> list[str]:
    address = urlsplit(api)
    return ["prefect", "server", "start", "--host", str(address.hostname), "--port", str(address.port)]


def _wait_until_up(api: str, server: "subprocess.Popen[bytes]", repository: Path) -> None:
    deadline = time.monotonic() + STARTUP
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{api}/health", timeout=2).text.strip() == "true":
                return
        time.sleep(0.2)
    raise InputError(f"the Prefect server does not start; {_log_path(SERVER, repository)} says why")


# --- the deployment -----------------------------------------------------------------------------------------


def _make_pool(api: str) -> None:
    with _client(api) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))


def _deploy(repository: Path, api: str) -> str:
    """Make or update the deployment, keeping the schedules that it has; the address of its page."""
    before = _find_deployment(api)
    done = subprocess.run(
        ["prefect", "--no-prompt", "deploy", "--all"],
        cwd=repository,
        env=environment() | _worker_variables(repository, api),
        capture_output=True,
        text=True,
        check=False,
    )
    after = _find_deployment(api)
    if done.returncode or after is None:
        raise InputError(f"prefect.yaml: {(done.stderr or done.stdout).strip()}")
    if before:
        _keep_schedules(api, before, after)
    _crash_the_silent(api, after)
    return f"{_ui_of(api)}/deployments/deployment/{after.id}"


def _find_deployment(api: str) -> DeploymentResponse | None:
    with _client(api) as client, suppress(ObjectNotFound):
        return client.read_deployment_by_name(DEPLOYMENT)
    return None


def _keep_schedules(api: str, before: DeploymentResponse, after: DeploymentResponse) -> None:
    """Undo what deploying did to the schedules: they are set in the UI, and prefect.yaml has the first."""
    with _client(api) as client:
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


def _crash_the_silent(api: str, deployment: DeploymentResponse) -> None:
    """Have the server mark runs as crashed that say nothing any more, as when their machine died.

    Where there is such an automation, it is left as the user may have changed it.
    """
    with _client(api) as client:
        there = client.read_automations_by_name(SILENT)
        if any(str(deployment.id) in automation.model_dump_json() for automation in there):
            return
        trigger = EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=_as_related(deployment.id),
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*", ENDED},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        )
        message = f"Nothing was heard of it for {SILENCE.seconds} s. Retry takes up where it was."
        client.create_automation(
            AutomationCore(
                name=SILENT,
                description="A run whose machine died keeps others waiting until its state is final.",
                trigger=trigger,
                actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
            )
        )


def _as_related(deployment_id: UUID | None) -> dict[str, str]:
    """The deployment in an event about one of its runs."""
    return {
        "prefect.resource.role": "deployment",
        "prefect.resource.id": f"prefect.deployment.{deployment_id}",
    }


def _client(api: str) -> SyncPrefectClient:
    return SyncPrefectClient(api)


# --- the worker ---------------------------------------------------------------------------------------------


@contextmanager
def _worker(repository: Path, api: str, reports: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker, and at the end nothing left of the runs that it had: Prefect takes them for running else."""
    variables = _worker_variables(repository, api) | {REPORTS_URL: reports}
    command = ["prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    with ExitStack() as stack:
        process = stack.enter_context(_process(WORKER, command, repository, **variables))
        try:
            yield process
        finally:
            killed = _flow_runs(_family(WORKER, repository))
            stack.close()
            remove_leftovers(repository)
            _report_ended(api, killed)


def _worker_variables(repository: Path, api: str) -> dict[str, str]:
    return {
        "PREFECT_API_URL": api,
        "RETRAIN_REPOSITORY": str(repository),
        # A run whose machine died is known by its silence.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": os.environ.get("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30"),
        # Seconds between two looks for runs to start.
        "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "2"),
    }


def _end_leftovers(repository: Path) -> set[str]:
    """End what was left when an earlier one was killed, and the checkouts of its runs; the ids of those."""
    family = [*_family(WORKER, repository), *_family(SERVER, repository)]
    runs = _flow_runs(family)
    _kill(family)
    return runs | {leftover.run for leftover in remove_leftovers(repository)}


def _flow_runs(family: list[psutil.Process]) -> set[str]:
    """The ids of the flow runs that processes work for."""
    runs = set()
    for process in family:
        with suppress(psutil.Error):
            runs.add(process.environ().get("PREFECT__FLOW_RUN_ID", ""))
    return runs


def _report_ended(api: str, runs: set[str]) -> None:
    """Tell the server what it can't know: that these runs go on no more."""
    with _client(api) as client:
        for run_id in runs - {""}:
            # It is another server's, or the server is gone.
            with suppress(ObjectNotFound, httpx.HTTPError):
                run = client.read_flow_run(UUID(run_id))
                ended: State[Any] = Crashed(message="Ended with the worker. Retry takes up where it was.")
                if run.state and run.state.is_cancelling():
                    ended = Cancelled(message="Ended with the worker.")
                client.set_flow_run_state(run.id, ended)
                # A server that was started anew holds back what it tells itself of older runs, for 15
                # minutes. The automation must not wait for that, or it crashes the run when that is retried.
                event = Event(
                    event=ENDED,
                    resource={"prefect.resource.id": f"prefect.flow-run.{run.id}"},
                    related=[_as_related(run.deployment_id)],
                )
                client._client.post("/events", json=[event.model_dump(mode="json")])


# --- processes ----------------------------------------------------------------------------------------------


def _log_path(name: str, repository: Path) -> Path:
    return repository / RUNS / ".logs" / f"{name.split()[-1]}.log"


@contextmanager
def _process(
    name: str, command: list[str], repository: Path, **variables: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process with its output in a log, told to end at the end, and with it all that it started.

    It has a session of its own: Ctrl-C reaches this process alone, which ends the parts in their order.
    """
    path = _log_path(name, repository)
    path.parent.mkdir(exist_ok=True)
    print(f"starting {name}; log: {path}", flush=True)
    with path.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=repository,
            env=environment() | variables | {PART_OF: _part(name, repository)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        print(f"stopping {name}", flush=True)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        _kill(_family(name, repository))
        process.wait()


def _part(name: str, repository: Path) -> str:
    return f"{name} of {repository}"


def _family(name: str, repository: Path) -> list[psutil.Process]:
    """A part and all that it started: its children's children too where those between are gone."""
    family = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(PART_OF) == _part(name, repository):
                family.append(process)
    return family


def _kill(family: list[psutil.Process]) -> None:
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=5)


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
def _reports(folder: Path, port: int | None) -> Iterator[str]:
    """Serve the reports to this machine's browsers; the address."""
    host = "127.0.0.1"
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
        yield f"http://{host}:{server.server_port}"
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
    args = parser.parse_args()
    for number in STOPPING:
        signal.signal(number, _stop)
    with suppress(KeyboardInterrupt):
        serve(find_repository(), args.reports_port)
    sys.exit(0)


#: What ends it as it is meant to end: Ctrl-C, and what a service manager sends.
STOPPING = (signal.SIGINT, signal.SIGTERM)


def _stop(signum: int, frame: FrameType | None) -> None:
    """End, once: who presses Ctrl-C again must not keep the parts from being ended in their order."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    stage_main(main)
