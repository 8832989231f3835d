"""The curves of a training in the Prefect UI: an artifact that is updated while the training runs.

Its page holds history.csv too. A run that trains on another machine reads it there, so that the file also
grows in the run's own checkout.
"""

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.curves.histories import FILE, STAGE, folder_of, read_history
from flows.curves.pace import Pace
from flows.curves.picture import as_markdown, table_in
from tasks.common.files import replacing
from tasks.support.locks import in_use

#: Seconds between two looks at the file.
POLL = 1.0

#: Least seconds between two updates of an artifact, and between two downloads. Each is a request.
EVERY = 5.0

#: Seconds that the server has to answer. The next update is another chance.
ANSWER = 10


def key_of(stage: str) -> str:
    """Return the key of a training's artifact: Prefect allows lower-case letters, digits and hyphens."""
    return f"curves-{re.sub('[^a-z0-9]+', '-', stage.removeprefix(STAGE).lower())}"


@contextmanager
def curves_shown(stage: str, checkout: Path) -> Iterator[None]:
    """While a stage trains, show its history as an artifact of the current flow run. Other stages have none.

    The work is done in a thread of its own. Without an answer of the server, the training continues.
    """
    if not stage.startswith(STAGE):
        yield
        return
    ended = threading.Event()
    # Prefect finds the run of an artifact through the context variables.
    thread = threading.Thread(
        target=copy_context().run, args=(_keep_showing, stage, checkout, ended), daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2 * ANSWER)


def _keep_showing(stage: str, checkout: Path, ended: threading.Event) -> None:
    artifact, running, pace = _Artifact(stage, checkout), True, Pace(EVERY)
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: ANSWER}):
        while running:
            running = not ended.wait(POLL)
            if running and not pace.is_due():
                continue
            try:
                if artifact.update():
                    pace.updated()
            except Exception as error:  # the curves are optional
                pace.updated()
                logging.getLogger(__name__).debug("could not show the curves of %s: %s", stage, error)


class _Artifact:
    """The artifact of one training in one run. A file that was there before is not shown: it is old."""

    def __init__(self, stage: str, checkout: Path) -> None:
        self._stage, self._checkout = stage, checkout
        self._file = folder_of(checkout, stage) / FILE
        self._id: UUID | None = None
        self._shown = self._text()

    def _text(self) -> str:
        with suppress(FileNotFoundError, NotADirectoryError):
            return self._file.read_text(encoding="utf-8")
        return ""

    def update(self) -> bool:
        """Show the history if it has changed; return whether a request was sent."""
        text = self._text()
        if text in ("", self._shown):
            return False
        history = read_history(self._checkout, self._stage.removeprefix(STAGE))
        if history is None:
            return False
        page, description = as_markdown(history, text), f"{self._stage}: epoch {history.last_epoch}"
        with get_client(sync_client=True) as client:
            if self._id is None:
                # Not of the task run: the UI lists those below, after scrolling.
                new = ArtifactCreate(
                    type="markdown",
                    key=key_of(self._stage),
                    data=page,
                    description=description,
                    flow_run_id=UUID(flow_run.id),
                )
                self._id = client.create_artifact(new).id
            else:
                # Not by `update_artifact`, which also emits an event with the whole page.
                update = ArtifactUpdate(data=page, description=description)
                client.request(
                    "PATCH",
                    "/artifacts/{id}",
                    json=update.model_dump(mode="json", exclude_unset=True),
                    path_params={"id": self._id},
                )
        self._shown = text
        return True


class HistoryCopy:
    """The history of a training on another machine, which grows in this checkout too.

    with HistoryCopy(checkout, stage) as copy:
        ...
        copy.update(client, run)
    """

    def __init__(self, checkout: Path, stage: str) -> None:
        """Create it. A stage that is no training has no history."""
        self._stage, self._folder = stage, folder_of(checkout, stage)
        self._held, self._pace = ExitStack(), Pace(EVERY)

    def __enter__(self) -> "HistoryCopy":
        return self

    def __exit__(self, *args: object) -> None:
        self._held.close()

    def update(self, client: SyncPrefectClient, run: UUID) -> None:
        """Write the history that the stage's run shows on the server. If it fails, a later update does it."""
        if not self._stage.startswith(STAGE) or not self._pace.is_due():
            return
        self._pace.updated()
        try:
            if table := _table_of(client, run, key_of(self._stage)):
                self._write(table)
        except Exception as error:  # the curves are optional
            logging.getLogger(__name__).debug("could not read the curves of %s: %s", self._stage, error)

    def _write(self, table: str) -> None:
        path = self._folder / FILE
        if path.exists() and path.read_text(encoding="utf-8") == table:
            return
        with replacing(path) as beside:
            beside.write_text(table, encoding="utf-8")
        self._held.close()  # the folder may be another one, if the stage was restored in between
        self._held.enter_context(in_use(self._folder))


def _table_of(client: SyncPrefectClient, run: UUID, key: str) -> str | None:
    """Return the history.csv in the latest artifact with this key of a flow run."""
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            key=ArtifactFilterKey(any_=[key]), flow_run_id=ArtifactFilterFlowRunId(any_=[run])
        ),
        sort=ArtifactSort.CREATED_DESC,
        limit=1,
    )
    return table_in(str(found[0].data)) if found else None
