"""Runs that can no longer say how they ended: the server crashes silent ones, a worker reports its own."""

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

from flows.deployment.prefect_api import client_of

#: How long a run may be silent before it is considered dead: four heartbeats.
SILENCE = timedelta(seconds=120)

#: The event by which the automation of that knows that a run was ended with its worker.
ENDED = "retrain.run-ended"


def crash_the_silent(api: str, deployment: UUID, name: str) -> None:
    """Have the server mark runs of a deployment as crashed that say nothing any more, as when a machine died.

    Where there is such an automation, it is left as the user may have changed it.
    """
    with client_of(api) as client:
        there = client.read_automations_by_name(name)
        if any(str(deployment) in automation.model_dump_json() for automation in there):
            return
        trigger = EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=_as_related(deployment),
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*", ENDED},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        )
        message = f"Nothing was heard of it for {SILENCE.seconds} s. Retry takes up where it was."
        client.create_automation(
            AutomationCore(
                name=name,
                description="A run whose machine died keeps others waiting until its state is final.",
                trigger=trigger,
                actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
            )
        )


def _as_related(deployment_id: UUID | None) -> dict[str, str]:
    """The deployment in an event about one of its runs."""
    return {
        "prefect.resource.role": "deployment",
        "prefect.resource.id": f"prefect.deployment.{deployment_id}",
    }


def report_ended(api: str, runs: set[str]) -> None:
    """Tell the server what it can't know: that these runs go on no more."""
    with client_of(api) as client:
        for run_id in runs:
            # It is another server's, or the server is gone, or a power cut left no id.
            with suppress(ObjectNotFound, ValueError, httpx.HTTPError):
                run = client.read_flow_run(UUID(run_id))
                ended: State[Any] = Crashed(message="Ended with the worker. Retry takes up where it was.")
                if run.state and run.state.is_cancelling():
                    ended = Cancelled(message="Ended with the worker.")
                client.set_flow_run_state(run.id, ended)
                # After a restart the server delays its own events about older runs by 15 minutes. The
                # automation must hear of this one now, or it would crash the run when it is retried.
                event = Event(
                    event=ENDED,
                    resource={"prefect.resource.id": f"prefect.flow-run.{run.id}"},
                    related=[_as_related(run.deployment_id)],
                )
                client._client.post("/events", json=[event.model_dump(mode="json")])
