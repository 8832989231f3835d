"""The server of a command that has none."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from prefect import flow
from prefect.settings import get_current_settings

from flows import temporary
from tasks.cli import InputError


@flow
def addition() -> int:
    return 1 + 2


def test_a_run_has_a_server_for_as_long_as_it_lasts(
    make_home: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(make_home(tmp_path / "prefect")))
    with temporary.server() as wait:
        wait()
        api = get_current_settings().api.url
        assert api
        assert addition() == 3
        runs = httpx.post(f"{api}/flow_runs/filter", json={}).json()
        assert [run["state_name"] for run in runs] == ["Completed"]
        # Pages of other sites can't use it.
        foreign = httpx.post(f"{api}/flow_runs/filter", headers={"Origin": "https://evil.example"})
        assert foreign.status_code == httpx.codes.FORBIDDEN
    assert get_current_settings().api.url is None
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{api}/health")


def test_a_server_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    nowhere = f"sqlite+aiosqlite:///{tmp_path}/no/such/folder/prefect.db"
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", nowhere)
    with (
        pytest.raises(InputError, match=r"^the temporary Prefect server does not start: .*unable to open"),
        temporary.server() as wait,
    ):
        wait()
