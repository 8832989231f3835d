"""The work pools that deployments are in."""

import re
from contextlib import suppress
from typing import Any

from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists

from flows.deployment.prefect_api import client_of

#: What a pool may be called: its name is part of files' and addresses' names.
POOL_NAME = re.compile("[A-Za-z0-9_-]+")

#: What a worker starts for a run, with nothing that the run could set otherwise.
JOB: dict[str, Any] = {
    "job_configuration": {"env": {}, "labels": {}, "stream_output": True},
    "variables": {"type": "object", "properties": {}},
}


def make_pool(api: str, name: str) -> None:
    """Make a work pool where there is none of that name, whose runs choose no command and no environment."""
    with client_of(api) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=JOB))
