"""A real Prefect server with its worker and deployment, as `make serve` starts them, on a tiny repository."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.states import AwaitingRetry, Cancelling

from flows.checkout import environment
from tests.helpers import Repository, free_ports

#: Seconds within which anything that a test waits for happens, on busy machines too.
PATIENCE = 180.0


def eventually(what: str, seen: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Wait until `seen` gives something, and give it."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if value := seen():
            return value
        time.sleep(0.3)
    raise AssertionError(f"not within {patience:.0f} s: {what}")


class Served:
    """A repository that `python -m flows.serve` serves, and what a user does with it."""

    def __init__(self, repository: Repository, home: Path, **settings: str) -> None:
        self.repository = repository
        server, self.reports_port = free_ports(2)
        self.ui = f"http://127.0.0.1:{server}"
        self.variables = environment() | {
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(server),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_DEPLOYMENT_CONCURRENCY_SLOT_WAIT_SECONDS": "2",
            "TMPDIR": str(repository.folder.parent),  # other runs on this machine may hold all cores
        }
        self.variables.pop("PREFECT_API_URL", None)
        self.variables |= settings
        self.client = SyncPrefectClient(settings.get("PREFECT_API_URL", f"{self.ui}/api"))

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "flows.serve", "--reports-port", str(self.reports_port)]

    def start(self) -> None:
        self.output = self.repository.folder.parent / "serve.log"
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.repository.folder,
                env=self.variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        eventually(f"it serves: {self.said()}", lambda: "Ctrl-C" in self.said() or self.process.poll())
        assert self.process.poll() is None, self.said()

    def said(self) -> str:
        return self.output.read_text()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(how)
        self.process.wait(60)
        _, alive = psutil.wait_procs(family, timeout=10)
        for process in alive:
            process.kill()
        assert not alive, alive

    def processes(self) -> list[psutil.Process]:
        """All that works in the repository, whoever's child it is."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if Path(process.cwd()).is_relative_to(self.repository.folder):
                    found.append(process)
        return found

    def log(self, name: str) -> str:
        return (self.repository.folder / "runs" / ".logs" / f"{name}.log").read_text(errors="replace")

    def part(self, word: str) -> psutil.Process:
        """The running part of it, server or worker."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if word in child.cmdline())

    def submit(self, **request: Any) -> FlowRun:
        """A custom run, as from the form."""
        deployment = self.client.read_deployment_by_name("retrain/retrain")
        return self.client.create_flow_run_from_deployment(deployment.id, parameters={"request": request})

    def run(self, run_id: UUID) -> FlowRun:
        return self.client.read_flow_run(run_id)

    def becomes(self, name: str, run_id: UUID, patience: float = PATIENCE) -> FlowRun:
        """The run once its state has that name."""

        def seen() -> FlowRun | None:
            run = self.run(run_id)
            return run if run.state and run.state.name == name else None

        return eventually(f"run {run_id} is {name}; it is {self.run(run_id).state}", seen, patience)

    def training(self, run_id: UUID) -> psutil.Process:
        """The process of a run that trains, once there is one."""
        found: list[psutil.Process] = eventually(
            "a run trains", lambda: self.working_for(run_id, "tasks.train")
        )
        return found[0]

    def working_for(self, run_id: UUID, word: str = "") -> list[psutil.Process]:
        """The processes of a run that have a word in their command line."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                ours = process.environ().get("PREFECT__FLOW_RUN_ID") == str(run_id)
                if ours and word in ["", *process.cmdline()]:
                    found.append(process)
        return found

    def cancel(self, run_id: UUID) -> None:
        """The UI's button."""
        self.client.set_flow_run_state(run_id, Cancelling())

    def retry(self, run_id: UUID) -> None:
        """The UI's button."""
        before = self.run(run_id).state_id
        self.client.set_flow_run_state(run_id, AwaitingRetry(message="Retry from the UI"))
        # The server answers before others see it.
        eventually("the run is to start again", lambda: self.run(run_id).state_id != before)

    def slots_taken(self) -> int:
        """How many runs hold one of the deployment's slots."""
        limit = self.client.read_deployment_by_name("retrain/retrain").global_concurrency_limit
        assert limit is not None
        return limit.active_slots

    def checkouts(self) -> list[str]:
        folder = self.repository.folder / "runs" / ".checkouts"
        return [path.name for path in folder.iterdir()] if folder.exists() else []

    def finished(self, run_id: UUID, patience: float = PATIENCE) -> FlowRun:
        """The run once its state is final."""

        def seen() -> FlowRun | None:
            run = self.run(run_id)
            return run if run.state and run.state.is_final() else None

        return eventually(f"run {run_id} ends; it is {self.run(run_id).state}", seen, patience)

    def tasks(self, run_id: UUID) -> dict[str, TaskRun]:
        """The task runs by name, of a run that was retried those of the last time."""
        asked = {"flow_runs": {"id": {"any_": [str(run_id)]}}, "sort": "EXPECTED_START_TIME_ASC"}
        runs = self.client._client.post("/task_runs/filter", json=asked).json()
        return {run["name"]: TaskRun.model_validate(run) for run in runs}

    def artifacts(self, run_id: UUID) -> list[dict[str, Any]]:
        asked = {"artifacts": {"flow_run_id": {"any_": [str(run_id)]}}}
        found: list[dict[str, Any]] = self.client._client.post("/artifacts/filter", json=asked).json()
        return found

    def logs(self, run_id: UUID) -> str:
        asked = {"logs": {"flow_run_id": {"any_": [str(run_id)]}}, "sort": "TIMESTAMP_ASC"}
        lines = self.client._client.post("/logs/filter", json=asked).json()
        return "\n".join(line["message"] for line in lines)


@contextmanager
def serving(repository: Repository, home: Path, **settings: str) -> Iterator[Served]:
    served = Served(repository, home, **settings)
    with closing(served.client._client):
        served.start()
        try:
            yield served
        finally:
            if served.process.poll() is None:
                served.stop()


@pytest.fixture(scope="module")
def served(
    make_repository: Callable[[Path], Repository], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with serving(make_repository(folder / "repository"), folder / "prefect") as it:
        yield it


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A Prefect server of the tests' own: its address and its home."""
    home = tmp_path_factory.mktemp("server")
    (port,) = free_ports(1)
    variables = environment() | {"PREFECT_HOME": str(home)}
    variables.pop("PREFECT_API_URL", None)
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(
            ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}/api"
    try:
        eventually("the server answers", lambda: answers(url))
        yield url, home
    finally:
        server.terminate()
        server.wait(30)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.HTTPError:
        return False


@pytest.fixture
def prefect_server(prefect_api: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Flows of this test run against the tests' server, whatever the user's profile says."""
    url, home = prefect_api
    monkeypatch.setenv("PREFECT_API_URL", url)
    monkeypatch.setenv("PREFECT_HOME", str(home))
