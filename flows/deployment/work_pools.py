"""Work pools for deployments."""

import re
from contextlib import suppress
from typing import Any

from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists

from flows.deployment.prefect_api import client_of, ui_of
from tasks.support.cli import InputError

#: Valid pool names. The name becomes part of file names and URLs.
POOL_NAME = re.compile("[A-Za-z0-9_-]+")

#: Job template of a pool. It has no variables, so a run cannot change the command or the environment.
JOB: dict[str, Any] = {
    "job_configuration": {"env": {}, "labels": {}, "stream_output": True},
    "variables": {"type": "object", "properties": {}},
}


def make_pool(api: str, name: str) -> None:
    """Create a work pool, unless one of that name exists. Its runs cannot set a command or an environment.

    Raises:
        InputError: the existing pool would let runs set them, because somebody else has made or changed it.
    """
    with client_of(api) as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=JOB))
            return
        pool = client.read_work_pool(name)
    if (pool.type, pool.base_job_template) != ("process", JOB):
        raise InputError(
            f"the work pool {name} at {ui_of(api)} has another type or job template than this project's; "
            "delete it, or choose another name"
        )
