"""Polling of flow runs on a real Prefect server."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed

from flows.remote.poll import Watch
from flows.repository.retry import UnavailableError
from tests.helpers import free_ports


@flow
def nothing() -> None:
    pass


@pytest.fixture
def client(prefect_api: tuple[str, Path]) -> Iterator[SyncPrefectClient]:
    with SyncPrefectClient(prefect_api[0]) as client:
        yield client


def test_one_request_serves_all_runs_and_is_repeated_after_the_interval(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.remote.poll.POLL", 0.5)
    requests: list[str] = []
    client._client.event_hooks["request"].append(lambda request: requests.append(request.url.path))
    runs = [client.create_flow_run(nothing).id for _ in range(3)]
    requests.clear()
    watch = Watch()
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(watch.track(run))
        seen = [watch.latest(client, run) for run in runs]
        assert [run and run.id for run in seen] == runs
        assert requests == ["/api/flow_runs/filter"]

        client.set_flow_run_state(runs[1], Completed(), force=True)
        client.delete_flow_run(runs[2])
        requests.clear()
        time.sleep(0.5)
        states = [run.state for run in (watch.latest(client, run_id) for run_id in runs[:2]) if run]
        assert [state and state.is_final() for state in states] == [False, True]
        with pytest.raises(UnavailableError, match=f"^the flow run {runs[2]} was deleted$"):
            watch.latest(client, runs[2])
        assert requests == ["/api/flow_runs/filter"]


def test_more_runs_than_fit_on_a_page(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.remote.poll.PAGE", 2)
    runs = [client.create_flow_run(nothing).id for _ in range(5)]
    watch = Watch()
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(watch.track(run))
        assert all(watch.latest(client, run) for run in runs)


def test_an_unavailable_server_returns_none_and_is_polled_again(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.remote.poll.POLL", 0.0)
    run = client.create_flow_run(nothing).id
    away = httpx.URL(f"http://127.0.0.1:{free_ports(1)[0]}/api/")
    there = client._client.base_url
    watch = Watch()
    with watch.track(run), temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        client._client.base_url = away
        assert watch.latest(client, run) is None
        client._client.base_url = there
        assert watch.latest(client, run)
