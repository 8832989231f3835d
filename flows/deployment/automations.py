"""End the runs of dead machines and workers, which cannot report their own end."""

from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect.client.schemas.objects import State, StateType
from prefect.events import Event
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

from flows.deployment.events import emit, of_deployment
from flows.deployment.prefect_api import client_of

#: How long a run may send no event before it counts as dead: four heartbeats.
SILENCE = timedelta(seconds=120)

#: Event that is emitted when a run ends with its worker, so that the automation does not treat it as silent.
ENDED = "retrain.run-ended"


def crash_unresponsive_runs(api: str, deployment: UUID, name: str) -> None:
    """Create an automation by which the server marks unresponsive runs of a deployment as crashed.

    An existing automation is kept, with the user's changes.
    """
    with client_of(api) as client:
        there = client.read_automations_by_name(name)
        if any(str(deployment) in automation.model_dump_json() for automation in there):
            return
        trigger = EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=of_deployment(deployment),
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*", ENDED},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        )
        message = f"No heartbeat for {SILENCE.seconds} s. A retry continues where the run stopped."
        client.create_automation(
            AutomationCore(
                name=name,
                description="A run whose machine died would keep other runs waiting.",
                trigger=trigger,
                actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
            )
        )


def report_ended_runs(api: str, runs: set[str]) -> None:
    """Report that runs have ended with their worker, which Prefect would otherwise consider running."""
    with client_of(api) as client:
        for run_id in runs:
            # Skipped: runs of another server, a server that is gone, a power cut that left no id.
            with suppress(ObjectNotFound, ValueError, httpx.HTTPError):
                run = client.read_flow_run(UUID(run_id))
                ended: State[Any] = Crashed(
                    message="Ended with its worker. A retry continues where the run stopped."
                )
                if run.state and run.state.is_cancelling():
                    ended = Cancelled(message="Ended with its worker.")
                client.set_flow_run_state(run.id, ended)
                # After a restart the server delays its own events about older runs by 15 minutes. Emit one
                # now, or the automation would crash the run when it is retried.
                event = Event(
                    event=ENDED,
                    resource={"prefect.resource.id": f"prefect.flow-run.{run.id}"},
                    related=[of_deployment(run.deployment_id)],
                )
                emit(client, event)
