"""A real Prefect server, and what its user sees of it and does with it."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.states import AwaitingRetry, Cancelling

from flows.repository.git import environment
from tests.helpers import PATIENCE, eventually, free_ports


class PrefectServer:
    """A server that nobody else starts or ends, which keeps its port when it starts again."""

    def __init__(self, home: Path, **settings: str) -> None:
        (self._port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self._port}"
        self.api = f"{self.url}/api"
        self._variables = environment() | {"PREFECT_HOME": str(home)} | settings
        self._variables.pop("PREFECT_API_URL", None)
        self.output = home.parent / "server.log"

    def start(self) -> None:
        with self.output.open("ab") as log:
            self.process = subprocess.Popen(
                ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self._port)],
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        eventually("the server answers", lambda: self.answers() or self.process.poll() is not None)
        assert self.process.poll() is None, self.output.read_text()

    def answers(self, path: str = "/health") -> bool:
        try:
            return httpx.get(f"{self.api}{path}").is_success
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class User:
    """Who looks at a server's runs and presses the UI's buttons."""

    def __init__(self, api: str, auth_string: str | None = None) -> None:
        self.client = SyncPrefectClient(api, auth_string=auth_string)

    def close(self) -> None:
        self.client._client.close()

    def run(self, run_id: UUID) -> FlowRun:
        return self.client.read_flow_run(run_id)

    def runs(self, flow: str) -> list[FlowRun]:
        """All runs of a flow, the first one first."""
        asked = {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_ASC"}
        found = self.client._client.post("/flow_runs/filter", json=asked).json()
        return [FlowRun.model_validate(run) for run in found]

    def becomes(self, name: str, run_id: UUID, patience: float = PATIENCE) -> FlowRun:
        """The run once its state has that name."""

        def seen() -> FlowRun | None:
            run = self.run(run_id)
            return run if run.state and run.state.name == name else None

        return self._seen(f"is {name}", run_id, seen, patience)

    def finished(self, run_id: UUID, patience: float = PATIENCE) -> FlowRun:
        """The run once its state is final."""

        def seen() -> FlowRun | None:
            run = self.run(run_id)
            return run if run.state and run.state.is_final() else None

        return self._seen("ends", run_id, seen, patience)

    def _seen(self, what: str, run_id: UUID, seen: Callable[[], FlowRun | None], patience: float) -> FlowRun:
        found: FlowRun = eventually(f"run {run_id} {what}; it is {self.run(run_id).state}", seen, patience)
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

    def tasks(self, run_id: UUID) -> dict[str, TaskRun]:
        """The task runs by name, of a run that was retried those of the last time."""
        asked = {"flow_runs": {"id": {"any_": [str(run_id)]}}, "sort": "EXPECTED_START_TIME_ASC"}

        def now() -> dict[str, TaskRun]:
            runs = self.client._client.post("/task_runs/filter", json=asked).json()
            return {run["name"]: TaskRun.model_validate(run) for run in runs}

        if self.run(run_id).state_name == "Completed":
            # The server learns the states of tasks by events, which may come after that of their flow.
            eventually(
                "its tasks have ended",
                lambda: all(task.state and task.state.is_final() for task in now().values()),
            )
        return now()

    def artifacts(self, run_id: UUID) -> list[dict[str, Any]]:
        asked = {"artifacts": {"flow_run_id": {"any_": [str(run_id)]}}}
        found: list[dict[str, Any]] = self.client._client.post("/artifacts/filter", json=asked).json()
        return found

    def logs(self, run_id: UUID) -> str:
        asked = {"logs": {"flow_run_id": {"any_": [str(run_id)]}}, "sort": "TIMESTAMP_ASC"}
        lines = self.client._client.post("/logs/filter", json=asked).json()
        return "\n".join(line["message"] for line in lines)
