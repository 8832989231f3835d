"""Emit the project's own events on a Prefect server."""

from typing import TYPE_CHECKING
from uuid import UUID

from prefect.events import Event
from prefect.runtime import flow_run

from flows.deployment.prefect_api import client_of

if TYPE_CHECKING:
    from flows.registry.registry import Version


def emit(api: str, *events: Event) -> None:
    """Emit events, and return when the server has them.

    Not by Prefect's `emit_event`, which sends in the background: the process may be about to end.
    """
    with client_of(api) as client:
        client._client.post("/events", json=[event.model_dump(mode="json") for event in events])


def of_deployment(deployment: UUID | str | None) -> dict[str, str]:
    """Return a deployment as a related resource in an event about one of its runs."""
    return {
        "prefect.resource.role": "deployment",
        "prefect.resource.id": f"prefect.deployment.{deployment}",
    }


def report_champion(api: str | None, event: str, version: "Version", by: str, reason: str) -> None:
    """Emit an event about a model's new champion, unless there is no server."""
    if not api:
        return
    of_run = {"prefect.resource.role": "flow-run", "prefect.resource.id": f"prefect.flow-run.{flow_run.id}"}
    found = Event(
        event=event,
        resource={
            "prefect.resource.id": f"cxr.model.{version.model}",
            "prefect.resource.name": version.model,
        },
        related=[of_run] if flow_run.id else [],
        payload={"version": version.version, "commit": version.commit, "by": by, "reason": reason},
    )
    emit(api, found)
