"""Who asked for a run, as its commit says."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from pydantic import ValidationError

from flows.request import UNNAMED, RetrainRequest, describe
from tests.helpers import Repository


def run(**values: Any) -> FlowRun:
    return FlowRun.model_validate({"flow_id": uuid4(), "name": "night", **values})


AUTOMATION = {"type": "AUTOMATION", "display_value": "Retrain when images drift"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"auto_scheduled": True}, "a schedule of the deployment"),
        ({"created_by": AUTOMATION}, "the automation Retrain when images drift"),
        ({}, UNNAMED),
    ],
)
def test_a_run_of_a_deployment(tmp_path: Path, values: dict[str, Any], expected: str) -> None:
    assert describe(run(deployment_id=uuid4(), **values), tmp_path) == expected


def test_a_run_of_the_command_line_has_the_identity_of_git(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    repository.run("git", "init", "--quiet")
    repository.run("git", "config", "user.name", "Åsa > Öst")
    repository.run("git", "config", "user.email", "asa@example.org")
    assert describe(run(), tmp_path) == "Åsa  Öst <asa@example.org>"  # git drops brackets in names


def test_a_run_of_the_command_line_where_git_knows_no_author(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository(tmp_path)
    repository.run("git", "init", "--quiet")
    repository.run("git", "config", "user.useConfigOnly", "true")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    assert describe(run(), tmp_path) == "retrain <retrain@localhost>"


@pytest.mark.parametrize("name", ["Ada\nRetrain-Run: other", "Ada\r", "A\x00", "a\u2028b", "x" * 101])
def test_a_name_adds_no_line_to_the_commit(name: str) -> None:
    with pytest.raises(ValidationError):
        RetrainRequest(requested_by=name)
