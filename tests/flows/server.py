"""A real Prefect server, and the actions of its user."""

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
from tests.helpers import TIMEOUT, eventually, free_ports


class PrefectServer:
    """A server for tests, which keeps its port when it is restarted."""

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
    """A user who looks at a server's runs and clicks the UI's buttons."""

    def __init__(self, api: str, auth_string: str | None = None) -> None:
        self.client = SyncPrefectClient(api, auth_string=auth_string)

    def close(self) -> None:
        self.client._client.close()

    def run(self, run_id: UUID) -> FlowRun:
        return self.client.read_flow_run(run_id)

    def runs(self, flow: str) -> list[FlowRun]:
        """Return all runs of a flow, oldest first."""
        body = {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_ASC"}
        found = self.client._client.post("/flow_runs/filter", json=body).json()
        return [FlowRun.model_validate(run) for run in found]

    def becomes(self, name: str, run_id: UUID, timeout: float = TIMEOUT) -> FlowRun:
        """Wait until the state of a run has this name, and return the run."""

        def seen() -> FlowRun | None:
            run = self.run(run_id)
            return run if run.state and run.state.name == name else None

        return self._seen(f"is {name}", run_id, seen, timeout)

    def finished(self, run_id: UUID, timeout: float = TIMEOUT) -> FlowRun:
        """Wait until the state of a run is final, and return the run."""

        def seen() -> FlowRun | None:
            run = self.run(run_id)
            return run if run.state and run.state.is_final() else None

        return self._seen("ends", run_id, seen, timeout)

    def _seen(self, what: str, run_id: UUID, seen: Callable[[], FlowRun | None], timeout: float) -> FlowRun:
        found: FlowRun = eventually(f"run {run_id} {what}; it is {self.run(run_id).state}", seen, timeout)
        return found

    def cancel(self, run_id: UUID) -> None:
        """Click the UI's button."""
        self.client.set_flow_run_state(run_id, Cancelling())

    def retry(self, run_id: UUID) -> None:
        """Click the UI's button."""
        before = self.run(run_id).state_id
        self.client.set_flow_run_state(run_id, AwaitingRetry(message="Retry from the UI"))
        # The server responds before the new state is visible.
        eventually("the retry is scheduled", lambda: self.run(run_id).state_id != before)

    def tasks(self, run_id: UUID) -> dict[str, TaskRun]:
        """Return the task runs by name. If the run was retried, those of the last attempt."""
        body = {"flow_runs": {"id": {"any_": [str(run_id)]}}, "sort": "EXPECTED_START_TIME_ASC"}

        def now() -> dict[str, TaskRun]:
            runs = self.client._client.post("/task_runs/filter", json=body).json()
            return {run["name"]: TaskRun.model_validate(run) for run in runs}

        if self.run(run_id).state_name == "Completed":
            # The server gets the states of tasks from events, which may arrive after the end of their flow.
            eventually(
                "its tasks have ended",
                lambda: all(task.state and task.state.is_final() for task in now().values()),
            )
        return now()

    def artifacts(self, run_id: UUID) -> list[dict[str, Any]]:
        body = {"artifacts": {"flow_run_id": {"any_": [str(run_id)]}}}
        found: list[dict[str, Any]] = self.client._client.post("/artifacts/filter", json=body).json()
        return found

    def logs(self, run_id: UUID) -> str:
        body = {"logs": {"flow_run_id": {"any_": [str(run_id)]}}, "sort": "TIMESTAMP_ASC"}
        lines = self.client._client.post("/logs/filter", json=body).json()
        return "\n".join(line["message"] for line in lines)
