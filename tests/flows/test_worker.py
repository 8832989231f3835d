"""`cxr worker --exit-when-idle`, with a real Prefect server."""

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.deployment.deployments import deploy
from flows.deployment.process_worker import Worker
from flows.deployment.work_pools import make_pool
from flows.repository.git import environment
from flows.stage import stage
from tests.flows.server import User
from tests.helpers import Repository, eventually


@pytest.fixture
def user(prefect_api: tuple[str, Path]) -> Iterator[User]:
    user = User(prefect_api[0])
    yield user
    user.close()


def request_stage(user: User, pool: str) -> UUID:
    """Create a run of a stage whose commit does not exist. It ends as soon as it has asked origin."""
    deployment = user.client.read_deployment_by_name(f"stage/{pool}")
    request = {"stage": "plan", "commit": "0" * 40, "run": "6a4b8b3e-55a4-4a3e-9a37-9a1c2a1f0c57"}
    run = user.client.create_flow_run_from_deployment(
        deployment.id, parameters={"request": request | {"versions": {}}}
    )
    return run.id


@pytest.fixture
def repository(make_repository: Callable[[Path], Repository], tmp_path: Path) -> Repository:
    """A clone with an origin and a DVC remote."""
    repository = make_repository(tmp_path / "repository")
    repository.run("git", "clone", "--quiet", "--bare", ".", str(tmp_path / "origin"))
    repository.run("git", "remote", "add", "origin", str(tmp_path / "origin"))
    repository.run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    return repository


@pytest.mark.soak
def test_a_worker_exits_with_status_0_when_it_has_been_idle(
    repository: Repository, user: User, prefect_api: tuple[str, Path], tmp_path: Path
) -> None:
    api, home = prefect_api
    where = ["--pool", "idle", "--server", api, "--name", "node7"]
    output = tmp_path / "output"
    with output.open("wb") as file:
        worker = subprocess.Popen(
            ["cxr", "worker", *where, "--exit-when-idle", "0.1"],
            cwd=repository.folder,
            env=environment() | {"PREFECT_HOME": str(home), "TMPDIR": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually("the worker runs", lambda: "stages of pool idle at a time" in output.read_text())
        ended = user.finished(request_stage(user, "idle"))
        assert ended.state and ended.state.name == "Interrupted", ended.state
        assert "on node7: origin no longer has commit" in (ended.state.message or "")
        assert worker.poll() is None
        assert worker.wait(60) == 0, output.read_text()
    finally:
        worker.kill()
    last_lines = output.read_text().splitlines()[-2:]
    assert last_lines == ["worker node7 ran no stage for 0.1 min", "stopping worker-idle"]


def test_an_idle_worker_loses_no_run(
    user: User, prefect_api: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finishes the run that it has taken, and leaves later ones to other workers."""
    api, home = prefect_api
    marker = tmp_path / "idle"
    monkeypatch.setenv("PREFECT_HOME", str(home))
    monkeypatch.setenv("PREFECT_API_URL", api)
    monkeypatch.setenv("RETRAIN_REPOSITORY", str(tmp_path))
    make_pool(api, "drain")
    deploy(api, stage, "drain")
    taken = request_stage(user, "drain")

    async def poll(worker: Worker) -> set[UUID]:
        return {run.id for run in await worker.get_and_submit_flow_runs()}

    async def scenario() -> UUID:
        worker = Worker(work_pool_name="drain", name="w", limit=1, idle_seconds=0.0, marker=marker)
        async with worker:
            await worker.sync_with_backend()
            assert await poll(worker) == {taken}
            while worker.limiter.borrowed_tokens:
                assert not marker.exists()
                await asyncio.sleep(0.2)
            assert await poll(worker) == set()
            assert marker.exists()
            late = request_stage(user, "drain")
            assert await poll(worker) == set()
            return late

    with temporary_settings({PREFECT_API_URL: api}):
        late = asyncio.run(scenario())
    assert user.run(taken).state_name not in ("Scheduled", "Pending")
    assert user.run(late).state_name in ("Scheduled", "Late")
