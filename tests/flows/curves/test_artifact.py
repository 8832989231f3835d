"""Curves in the Prefect UI, and the history of a training on another machine, with a real server."""

import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.curves.artifact import HistoryCopy, curves_shown, key_of
from flows.curves.histories import State, read_history
from flows.curves.picture import table_in
from tasks.support.locks import in_use, is_in_use
from tests.flows.curves.test_histories import HEADER, ROWS, training
from tests.helpers import eventually, free_ports

STAGE = "train@a_b-seed0"
KEY = "curves-a-b-seed0"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.curves.artifact.POLL", 0.05)
    monkeypatch.setattr("flows.curves.artifact.EVERY", 0.2)


@pytest.fixture
def api(prefect_api: tuple[str, Path]) -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: prefect_api[0]}):
        yield


def shown(run: str | None) -> list[Artifact]:
    """Return the artifacts with the key of our training that a flow run has."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[KEY])))
    return [artifact for artifact in found if str(artifact.flow_run_id) == run]


def table(run: str | None) -> str | None:
    found = shown(run)
    return table_in(str(found[0].data)) if found else None


def test_keys_have_only_letters_digits_and_hyphens() -> None:
    assert key_of(STAGE) == KEY


def test_curves_move_while_the_training_runs_also_on_the_machine_that_waits(
    api: None, tmp_path: Path
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    copied = here / "artifacts" / "train" / "a_b-seed0" / "history.csv"
    runs: list[str] = []

    @flow
    def stage() -> None:
        runs.append(str(flow_run.id))
        folder = training(there, "a_b-seed0", rows=3, network=False)  # of an interrupted training
        with curves_shown(STAGE, there), in_use(folder):
            time.sleep(0.3)
            assert shown(runs[0]) == []
            for rows in (1, 2):
                text = HEADER + "".join(ROWS[:rows])
                (folder / "history.csv").write_text(text)
                eventually("the artifact has moved", lambda text=text: table(runs[0]) == text)
                eventually("the copy has grown", lambda text=text: copied_text() == text)
                history = read_history(here, "a_b-seed0")
                assert history and history.state is State.RUNNING and history.last_epoch == rows
            (folder / "history.csv").write_text(HEADER + "".join(ROWS))
        # The last epoch is shown at the end.

    with get_client(sync_client=True) as client, HistoryCopy(here, STAGE) as copy:

        def copied_text() -> str:
            copy.update(client, UUID(runs[0]))
            return copied.read_text() if copied.exists() else ""

        stage()
        assert is_in_use(copied.parent)
    assert not is_in_use(copied.parent)
    assert table(runs[0]) == HEADER + "".join(ROWS)
    (artifact,) = shown(runs[0])  # not one for each epoch
    assert artifact.description == f"{STAGE}: epoch 3"
    assert "data:image/svg+xml;base64," in str(artifact.data)


def test_other_stages_have_no_curves(api: None, tmp_path: Path) -> None:
    runs: list[str] = []

    @flow
    def stage() -> None:
        runs.append(str(flow_run.id))
        with curves_shown("plan", tmp_path):
            training(tmp_path, "plan")
            time.sleep(0.3)

    stage()
    assert shown(runs[0]) == []
    with get_client(sync_client=True) as client, HistoryCopy(tmp_path, "evaluate@a_b-seed0") as copy:
        copy.update(client, UUID(runs[0]))


def test_a_server_that_is_away_disturbs_no_training(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        began = time.monotonic()
        with curves_shown(STAGE, tmp_path):
            training(tmp_path, "a_b-seed0")
            time.sleep(0.5)
        assert time.monotonic() - began < 10
        with get_client(sync_client=True) as client, HistoryCopy(tmp_path / "other", STAGE) as copy:
            copy.update(client, UUID(int=7))
    assert not (tmp_path / "other").exists()
