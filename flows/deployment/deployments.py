"""Deployments: the flows that the Prefect UI and other machines can start. Each has its own work pool."""

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

#: The flow that `make serve` deploys. Each of its deployments has the name of its work pool.
RUN_FLOW = "retrain"

#: Parameters of scheduled runs, and initial values of the form.
PARAMETERS: dict[str, Any] = {"request": {"look_for_new_data": True}, "pools": {}}

#: Mondays at 3:00 UTC. Inactive until somebody activates it in the UI.
WEEKLY = DeploymentScheduleCreate(
    slug="weekly", schedule=CronSchedule(cron="0 3 * * 1", timezone="UTC"), active=False
)

#: Inactive until somebody activates it in the UI.
EVERY_QUARTER_HOUR = DeploymentScheduleCreate(
    slug="every-15-minutes", schedule=CronSchedule(cron="*/15 * * * *", timezone="UTC"), active=False
)

#: A run works in the clone of the worker that picks it up.
PULL_STEP = {"prefect.deployments.steps.set_working_directory": {"directory": "{{ $RETRAIN_REPOSITORY }}"}}

_ONE_AT_A_TIME: dict[str, Any] = {
    "concurrency_limit": 1,
    "concurrency_options": ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
}

#: Settings of a new deployment of whole runs, which the UI may change. Runs wait for each other.
INITIAL_SETTINGS: dict[str, Any] = {"parameters": PARAMETERS, "schedules": [WEEKLY]} | _ONE_AT_A_TIME

#: The same of a deployment of other runs, which have no schedule.
RUN_SETTINGS: dict[str, Any] = {"parameters": {"pools": {}}} | _ONE_AT_A_TIME

#: The same of a deployment that predicts what is new in an inbox.
INBOX_SETTINGS: dict[str, Any] = {"schedules": [EVERY_QUARTER_HOUR]} | _ONE_AT_A_TIME


def deploy(
    api: str, flow: Flow[..., Any], name: str, job_variables: dict[str, str] | None = None, **initial: Any
) -> UUID:
    """Create a flow's deployment, or update an existing one.

    Args:
        api: The server's address.
        flow: The flow. The worker imports its function from its own clone.
        name: The name of the deployment and of its work pool.
        job_variables: Information about the deployment that `make serve` reads later.
        initial: Settings of a new deployment. An existing one keeps its own, which the UI may have changed.

    Returns:
        The id of the deployment.
    """
    module = flow.fn.__module__.replace(".", "/")
    settings: dict[str, Any] = {
        "entrypoint": f"{module}.py:{flow.fn.__name__}",
        "path": ".",
        "pull_steps": [PULL_STEP],
        "enforce_parameter_schema": True,
        "description": flow.description,
        "job_variables": job_variables or {},
        "parameter_openapi_schema": parameter_schema(flow).model_dump_for_openapi(),
    }
    before = find_deployment(api, f"{flow.name}/{name}")
    with client_of(api) as client:
        if before:
            client.update_deployment(before.id, DeploymentUpdate(**settings))
            return before.id
        return client.create_deployment(
            client.create_flow_from_name(flow.name),
            name=name,
            work_pool_name=name,
            **settings,
            **initial,
        )


def update_form(api: str, flow: Flow[..., Any], name: str) -> None:
    """Update the form of a flow's deployment, whose choices may have changed. Does nothing without one."""
    schema = parameter_schema(flow).model_dump_for_openapi()
    if deployment := find_deployment(api, f"{flow.name}/{name}"):
        with client_of(api) as client:
            client.update_deployment(deployment.id, DeploymentUpdate(parameter_openapi_schema=schema))


def find_deployment(api: str, name: str) -> DeploymentResponse | None:
    """Return the deployment FLOW/NAME, or None if it does not exist."""
    with client_of(api) as client, suppress(ObjectNotFound):
        return client.read_deployment_by_name(name)
    return None
