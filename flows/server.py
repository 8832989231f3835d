"""What `make serve` and `make worker` ask of a Prefect server."""

import socket
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import State, StateType
from prefect.events import Event
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Crashed

from tasks.cli import InputError

#: How long a run may say nothing before it is taken for dead: four heartbeats.
SILENCE = timedelta(seconds=120)

#: The event by which the automation of that knows that a run was ended with its worker.
ENDED = "retrain.run-ended"

#: Seconds that a server may take to answer: its first start on an empty database is the slowest.
STARTUP = 120.0

HERE = ("127.0.0.1", "localhost", "0.0.0.0", "::1")  # noqa: S104


def client_of(api: str) -> SyncPrefectClient:
    """A client that knows the password, if PREFECT_API_AUTH_STRING holds one."""
    secret = get_current_settings().api.auth_string
    return SyncPrefectClient(api, auth_string=secret.get_secret_value() if secret else None)


def ui_of(api: str) -> str:
    return api.removesuffix("/api")


def answers(api: str) -> bool:
    """Whether a Prefect server answers.

    Raises:
        InputError: something else does, or nothing does at an address that is not this machine's.
    """
    address = urlsplit(api)
    try:
        told = httpx.get(f"{api}/health", timeout=5)
    except httpx.HTTPError:
        if address.hostname not in HERE:
            raise InputError(f"PREFECT_API_URL: no server answers at {api}") from None
        with socket.socket() as probe:
            if probe.connect_ex((address.hostname, address.port or 80)) == 0:
                raise InputError(_taken(api)) from None
        return False
    if told.text.strip() != "true":
        raise InputError(_taken(api))
    return True


def _taken(api: str) -> str:
    return f"{api}: what answers there is no Prefect server; choose another port with PREFECT_SERVER_API_PORT"


def is_up(api: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{api}/health", timeout=2).text.strip() == "true"
    return False


def wait_for(api: str) -> None:
    """Wait for a server that somebody else starts, and see that it takes the password.

    Raises:
        InputError: it does not answer, or refuses.
    """
    deadline = time.monotonic() + STARTUP
    while not is_up(api):
        if time.monotonic() > deadline:
            raise InputError(f"no Prefect server answers at {api}")
        time.sleep(1)
    with client_of(api) as client:
        try:
            client._client.get("/admin/version")
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.UNAUTHORIZED:
                text = f"{api}: the server wants a password: PREFECT_API_AUTH_STRING=USER:PASSWORD"
                raise InputError(text) from None
            raise


#: What a worker starts for a run, with nothing that the run could set otherwise.
JOB: dict[str, Any] = {
    "job_configuration": {"env": {}, "labels": {}, "stream_output": True},
    "variables": {"type": "object", "properties": {}},
}


def make_pool(api: str, name: str) -> None:
    """Make a work pool where there is none of that name, whose runs choose no command and no environment."""
    with client_of(api) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=JOB))


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
                # A server that was started anew holds back what it tells itself of older runs, for 15
                # minutes. The automation must not wait for that, or it crashes the run when that is retried.
                event = Event(
                    event=ENDED,
                    resource={"prefect.resource.id": f"prefect.flow-run.{run.id}"},
                    related=[_as_related(run.deployment_id)],
                )
                client._client.post("/events", json=[event.model_dump(mode="json")])
