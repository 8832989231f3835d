"""What `make serve` and `make worker` ask of a Prefect server."""

import errno
import re
import socket
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events import Event
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    get_current_settings,
    temporary_settings,
)
from prefect.states import Cancelled, Crashed

from tasks.cli import InputError

#: The flow that `make serve` offers; of its deployments each is named like the work pool that it uses.
RUN_FLOW = "retrain"

#: What a pool may be called: its name is part of files' and addresses' names.
POOL_NAME = re.compile("[A-Za-z0-9_-]+")

#: How long a run may say nothing before it is taken for dead: four heartbeats.
SILENCE = timedelta(seconds=120)

#: The event by which the automation of that knows that a run was ended with its worker.
ENDED = "retrain.run-ended"

#: Seconds that a server may take to answer: its first start on an empty database is the slowest.
STARTUP = 120.0

#: Seconds in which a server answers a simple question, unless PREFECT_API_REQUEST_TIMEOUT says otherwise.
ANSWER = 10.0

HERE = ("127.0.0.1", "localhost", "0.0.0.0", "::1")  # noqa: S104

#: What a server says that will be back, or a proxy before it.
TRY_LATER = (408, 429, 500, 502, 503, 504)


STRANGER = "something other than a Prefect server is listening there"


class AwayError(InputError):
    """No server answers, which may change."""


def api_of(address: str, named_by: str) -> str:
    """The address of a server's API, also from the address of its UI.

    Raises:
        InputError: it is no such address, or holds a password, which logs would show.
    """
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise InputError(f"{named_by}: {address!r} is not the address of a server, such as http://HOST:4200")
    if "@" in parts.netloc:
        raise InputError(
            f"{named_by}: an address must not hold a password; PREFECT_API_AUTH_STRING=USER:PASSWORD does"
        )
    path = list(filter(None, parts.path.split("/")))
    return "/".join([f"{parts.scheme}://{parts.netloc}", *path, *(["api"] if "api" not in path else [])])


def host_and_port(api: str) -> tuple[str, int]:
    address = urlsplit(api)
    return address.hostname or "", address.port or (443 if address.scheme == "https" else 80)


def is_own(host: str, names: Set[str]) -> bool:
    """Whether a Host header is an IP address, to which no other domain leads, or one of some names."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    with suppress(ValueError):
        return bool(ip_address(name))
    return name in names


@cache
def own_names(*more: str | None) -> set[str]:
    """The names by which browsers find this machine."""
    return {name.lower() for name in ("localhost", socket.gethostname(), socket.getfqdn(), *more) if name}


@contextmanager
def client_of(api: str) -> Iterator[SyncPrefectClient]:
    """A client with the password, key, certificates and headers of Prefect's settings."""
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        yield client


def ui_of(api: str) -> str:
    with temporary_settings({PREFECT_API_URL: api}):
        return get_current_settings().ui_url or api


def check_server(api: str) -> None:
    """See that a Prefect server answers, and takes the credentials of Prefect's settings.

    Raises:
        AwayError: none answers.
        InputError: it refuses the credentials, or something else answers.
    """
    quickly = temporary_settings(
        {PREFECT_CLIENT_MAX_RETRIES: 0}, set_defaults={PREFECT_API_REQUEST_TIMEOUT: ANSWER}
    )
    try:
        with quickly, client_of(api) as client:
            client.read_work_pools(limit=1)
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status == httpx.codes.UNAUTHORIZED:
            wanted = "the server wants a password: PREFECT_API_AUTH_STRING=USER:PASSWORD"
            raise InputError(f"{api}: {wanted}") from None
        if status == httpx.codes.FORBIDDEN:
            raise InputError(f"{api}: the server refuses: {error.response.text[:200]}") from None
        if status in TRY_LATER:
            raise AwayError(f"no Prefect server answers at {api}: status {status}") from None
        raise InputError(f"{api}: {STRANGER}") from None
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        raise AwayError(f"no Prefect server answers at {api}: {why}") from None
    except ValueError:
        raise InputError(f"{api}: {STRANGER}") from None


def wait_for(api: str) -> None:
    """Wait for a server that somebody else starts.

    Raises:
        InputError: it does not answer in time, refuses the credentials, or is no Prefect server.
    """
    deadline = time.monotonic() + STARTUP
    while True:
        try:
            return check_server(api)
        except AwayError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1)


def has_to_start(api: str, chosen: bool) -> bool:
    """Whether `make serve` has to start a server there; a running one is used only where the user chose it.

    Raises:
        InputError: it can't, or what runs there is not to be used.
    """
    if not chosen:
        if _is_taken(api):
            raise InputError(
                f"a server is already running at {ui_of(api)}: to use it, set PREFECT_API_URL={api}; "
                "to start one of your own, set PREFECT_SERVER_API_PORT to another port"
            )
        return True
    try:
        check_server(api)
    except AwayError:
        if urlsplit(api).hostname not in HERE or _is_taken(api):
            raise
        return True
    return False


def _is_taken(api: str) -> bool:
    host, port = host_and_port(api)
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return True
        raise InputError(f"no server can be started at {api}: {error.strerror}") from None
    return False


def find_deployment(api: str, name: str) -> DeploymentResponse | None:
    """The deployment of a name FLOW/NAME."""
    with client_of(api) as client, suppress(ObjectNotFound):
        return client.read_deployment_by_name(name)
    return None


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
