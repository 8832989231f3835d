"""Work pools, on a real Prefect server."""

from pathlib import Path

import pytest
from prefect.client.schemas.actions import WorkPoolCreate

from flows.deployment.prefect_api import client_of
from flows.deployment.work_pools import make_pool
from tasks.support.cli import InputError


def test_a_pool_is_made_once(prefect_api: tuple[str, Path]) -> None:
    api = prefect_api[0]
    made = []
    for _ in range(2):
        make_pool(api, "made")
        with client_of(api) as client:
            made.append(client.read_work_pool("made"))
    assert made[0] == made[1]


def test_a_pool_whose_runs_could_set_a_command_is_refused(prefect_api: tuple[str, Path]) -> None:
    api = prefect_api[0]
    with client_of(api) as client:
        client.create_work_pool(WorkPoolCreate(name="foreign", type="process"))
    with pytest.raises(
        InputError, match=r"^the work pool foreign at http://.* has another type or job template"
    ):
        make_pool(api, "foreign")
