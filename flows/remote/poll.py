"""What a Prefect server says of many runs, asked for all of them at once."""

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

#: How many runs a server tells of at a time.
PAGE = 100


class Watch:
    """Runs that threads wait for, each with its own; what one asks answers all."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._waited: set[UUID] = set()
        self._runs: dict[UUID, FlowRun] = {}
        self._answers = False
        self._due = 0.0

    @contextmanager
    def over(self, run_id: UUID) -> Iterator[None]:
        """Ask for this run too, until the end; `look` says of it after `POLL`."""
        with self._turn:
            self._waited.add(run_id)
        try:
            yield
        finally:
            with self._turn:
                self._waited.discard(run_id)

    def look(self, client: SyncPrefectClient, run_id: UUID) -> FlowRun | None:
        """The run as the server had it `POLL` ago at most; None where the server does not answer.

        Raises:
            UnavailableError: there is no such run any more.
        """
        with self._turn:
            if (now := time.monotonic()) >= self._due:
                self._due = now + POLL
                self._ask(client)
            if not self._answers:
                return None
            if run_id not in self._runs:
                raise UnavailableError(f"its run {run_id} was deleted")
            return self._runs[run_id]

    def _ask(self, client: SyncPrefectClient) -> None:
        ids = list(self._waited)
        try:
            pages = [
                client.read_flow_runs(
                    flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids[start : start + PAGE])),
                    limit=PAGE,
                )
                for start in range(0, len(ids), PAGE)
            ]
        except httpx.HTTPError:
            self._answers = False
        else:
            self._runs = {run.id: run for page in pages for run in page}
            self._answers = True
