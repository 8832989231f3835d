"""What the Prefect UI and other machines can start: flows, each deployed in work pools of its own."""

from contextlib import suppress
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.utilities.callables import parameter_schema

from flows.deployment.prefect_api import client_of

#: The flow that `make serve` offers; of its deployments each is named like the work pool that it uses.
RUN_FLOW = "retrain"

#: What scheduled runs ask for, and what the form begins with.
PARAMETERS: dict[str, Any] = {"request": {"look_for_new_data": True}, "pools": {}}

#: Switched off until somebody switches it on in the UI: Mondays at three.
WEEKLY = DeploymentScheduleCreate(
    slug="weekly", schedule=CronSchedule(cron="0 3 * * 1", timezone="UTC"), active=False
)

#: A run works in the clone that its worker serves.
IN_THE_CLONE = {"prefect.deployments.steps.set_working_directory": {"directory": "{{ $RETRAIN_REPOSITORY }}"}}

#: What a new deployment of whole runs has, and the UI may change: a second run waits for the first.
AT_FIRST: dict[str, Any] = {
    "parameters": PARAMETERS,
    "schedules": [WEEKLY],
    "concurrency_limit": 1,
    "concurrency_options": ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
}


def deploy(
    api: str, flow: Flow[..., Any], name: str, job_variables: dict[str, str] | None = None, **at_first: Any
) -> UUID:
    """Make a flow's deployment, or bring one that there is up to date.

    Args:
        api: The server's address.
        flow: What its runs run; its function is found again in the worker's clone.
        name: Of the deployment and its work pool.
        job_variables: What it says of itself for `make serve`.
        at_first: What only a new one gets: an existing one keeps what the UI may have changed.
    """
    module = flow.fn.__module__.replace(".", "/")
    of_the_code: dict[str, Any] = {
        "entrypoint": f"{module}.py:{flow.fn.__name__}",
        "path": ".",
        "pull_steps": [IN_THE_CLONE],
        "enforce_parameter_schema": True,
        "description": flow.description,
        "job_variables": job_variables or {},
        "parameter_openapi_schema": parameter_schema(flow).model_dump_for_openapi(),
    }
    before = find_deployment(api, f"{flow.name}/{name}")
    with client_of(api) as client:
        if before:
            client.update_deployment(before.id, DeploymentUpdate(**of_the_code))
            return before.id
        return client.create_deployment(
            client.create_flow_from_name(flow.name),
            name=name,
            work_pool_name=name,
            **of_the_code,
            **at_first,
        )


def find_deployment(api: str, name: str) -> DeploymentResponse | None:
    """The deployment of a name FLOW/NAME."""
    with client_of(api) as client, suppress(ObjectNotFound):
        return client.read_deployment_by_name(name)
    return None
