"""Poll a Prefect server for many flow runs with one request."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun

from flows.repository.retry import UnavailableError

#: Seconds between two requests.
POLL = 2.0

#: Maximum number of runs in one response of the server.
PAGE = 100


class Watch:
    """Flow runs that several threads wait for. One request updates all of them."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._tracked: set[UUID] = set()
        self._runs: dict[UUID, FlowRun] = {}
        self._available = False
        self._due = 0.0

    @contextmanager
    def track(self, run_id: UUID) -> Iterator[None]:
        """Include this run in requests until exit. `latest` can return it once `POLL` seconds have passed."""
        with self._turn:
            self._tracked.add(run_id)
        try:
            yield
        finally:
            with self._turn:
                self._tracked.discard(run_id)

    def latest(self, client: SyncPrefectClient, run_id: UUID) -> FlowRun | None:
        """Return the run as of at most `POLL` seconds ago, or None if the server did not answer.

        Raises:
            UnavailableError: the run was deleted.
        """
        with self._turn:
            if (now := time.monotonic()) >= self._due:
                self._due = now + POLL
                self._update(client)
            if not self._available:
                return None
            if run_id not in self._runs:
                raise UnavailableError(f"the flow run {run_id} was deleted")
            return self._runs[run_id]

    def _update(self, client: SyncPrefectClient) -> None:
        ids = list(self._tracked)
        try:
            pages = [
                client.read_flow_runs(
                    flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids[start : start + PAGE])),
                    limit=PAGE,
                )
                for start in range(0, len(ids), PAGE)
            ]
        except httpx.HTTPError:
            self._available = False
        else:
            self._runs = {run.id: run for page in pages for run in page}
            self._available = True
