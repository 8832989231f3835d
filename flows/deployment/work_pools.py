"""Work pools for deployments."""

import re
from contextlib import suppress
from typing import Any

from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists

from flows.deployment.prefect_api import client_of

#: Valid pool names. The name becomes part of file names and URLs.
POOL_NAME = re.compile("[A-Za-z0-9_-]+")

#: Job template of a pool. It has no variables, so a run cannot change the command or the environment.
JOB: dict[str, Any] = {
    "job_configuration": {"env": {}, "labels": {}, "stream_output": True},
    "variables": {"type": "object", "properties": {}},
}


def make_pool(api: str, name: str) -> None:
    """Create a work pool, unless one of that name exists. Its runs cannot set a command or an environment."""
    with client_of(api) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=JOB))
