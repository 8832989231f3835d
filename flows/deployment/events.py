"""Emit the project's own events on a Prefect server."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events import Event
from prefect.runtime import flow_run
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    get_current_settings,
    temporary_settings,
)

from flows.deployment.addresses import api_of

if TYPE_CHECKING:
    from flows.registry.registry import Version

#: Seconds that a command waits for a server that does not answer.
PATIENCE = 5.0


def emit(client: SyncPrefectClient, event: Event) -> None:
    """Emit an event, and return when the server has it.

    Not by Prefect's `emit_event`, which sends in the background: it may fail unnoticed, or the process may
    end first.

    Raises:
        httpx.HTTPError: the server did not take it.
    """
    client._client.post("/events", json=[event.model_dump(mode="json")])


def of_deployment(deployment: UUID | str | None) -> dict[str, str]:
    """Return a deployment as a related resource in an event about one of its runs."""
    return {
        "prefect.resource.role": "deployment",
        "prefect.resource.id": f"prefect.deployment.{deployment}",
    }


def of_this_run() -> dict[str, str]:
    """Return the current flow run as a related resource."""
    return {"prefect.resource.role": "flow-run", "prefect.resource.id": f"prefect.flow-run.{flow_run.id}"}


@contextmanager
def for_command() -> Iterator[bool]:
    """Emit events of a command, which has no flow run. Yields whether Prefect's settings name a server.

    Raises:
        InputError: the server's address is invalid.
    """
    if not (chosen := get_current_settings().api.url):
        yield False
        return
    settings = {
        PREFECT_API_URL: api_of(chosen, "PREFECT_API_URL"),
        PREFECT_API_REQUEST_TIMEOUT: PATIENCE,
        PREFECT_CLIENT_MAX_RETRIES: 0,
    }
    with temporary_settings(settings):
        yield True


def report_champion(event: str, version: "Version", by: str, reason: str) -> None:
    """Emit an event about a model's new champion."""
    payload = {"version": version.version, "commit": version.commit, "by": by, "reason": reason}
    _report_model(event, version.model, payload)


def report_refusal(model: str, run: str, commit: str, by: str, reason: str) -> None:
    """Emit the event that the network of a run was refused."""
    _report_model("model.refused", model, {"run": run, "commit": commit, "by": by, "reason": reason})


def report_verdict(model: str, **payload: Any) -> None:
    """Emit the event that the network of a run was judged, for notifications."""
    _report_model("model.judged", model, payload)


def _report_model(event: str, model: str, payload: dict[str, Any]) -> None:
    found = Event(
        event=event,
        resource={"prefect.resource.id": f"cxr.model.{model}", "prefect.resource.name": model},
        related=[of_this_run()] if flow_run.id else [],
        payload=payload,
    )
    with get_client(sync_client=True) as client:
        emit(client, found)
