"""The event about drifted images, and the automation that retrains on it, which is off at first."""

from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.events import Event
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from flows.deployment.events import emit, of_deployment, of_this_run
from flows.deployment.prefect_api import client_of

#: Event that is emitted once when the last images of an inbox have drifted.
DRIFT = "prediction.drift"


def send_drift(results: str, deployment: str | None, payload: dict[str, Any]) -> None:
    """Send the event to the server that this flow run reports to.

    Args:
        results: the results folder, which the event is about.
        deployment: the id of the flow run's deployment, if it has one.
        payload: what has drifted.

    Raises:
        httpx.HTTPError: the server did not take it.
    """
    event = Event(
        event=DRIFT,
        resource={"prefect.resource.id": f"prediction.results.{results}"},
        related=[*([of_deployment(deployment)] if deployment else []), of_this_run()],
        payload=payload,
    )
    with get_client(sync_client=True) as client:
        emit(client, event)


def retrain_on_drift(api: str, predictions: UUID, retraining: UUID, name: str) -> None:
    """Create an automation, switched off, that starts a retraining when images drift.

    An existing automation is kept, with the user's changes.

    Args:
        api: the server's address.
        predictions: the deployment whose runs emit the event.
        retraining: the deployment to run, with its own parameters.
        name: the name of the automation.
    """
    with client_of(api) as client:
        there = client.read_automations_by_name(name)
        if any(str(predictions) in automation.model_dump_json() for automation in there):
            return
        trigger = EventTrigger(
            match_related=of_deployment(predictions), expect={DRIFT}, posture=Posture.Reactive, threshold=1
        )
        client.create_automation(
            AutomationCore(
                name=name,
                description="Retrains with the deployment's own parameters. Off until you switch it on.",
                enabled=False,
                trigger=trigger,
                actions=[RunDeployment(deployment_id=retraining)],
            )
        )
