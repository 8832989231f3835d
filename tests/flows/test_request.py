"""The choices of the deployment's form."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.repository.git import run
from flows.request import RetrainRequest
from tests.conftest import EXPERIMENTS
from tests.helpers import Repository

SCHEMA = """
import json
from flows.request import RetrainRequest
print(json.dumps(RetrainRequest.model_json_schema()))
"""


@pytest.fixture
def repository(make_repository: Callable[[Path], Repository], tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


def form(repository: Repository) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(run(repository.folder, sys.executable, "-c", SCHEMA))["properties"]
    return fields


@pytest.mark.parametrize("edited", ["experiments: [", "alpha: 0.5\n", "- a list"])
def test_the_choices_are_those_of_head_whatever_is_edited(repository: Repository, edited: str) -> None:
    (repository.folder / "params.yaml").write_text(edited)
    (repository.folder / "presets" / "draft.yaml").write_text("epochs: 3\n")
    fields = form(repository)
    assert fields["preset"]["enum"] == ["demo", "laptop"]
    assert sorted(fields["experiments"]["items"]["enum"]) == sorted(EXPERIMENTS)


def test_outside_a_git_repository_anything_can_be_entered(repository: Repository) -> None:
    shutil.rmtree(repository.folder / ".git")
    fields = form(repository)
    assert "enum" not in fields["preset"]
    assert fields["experiments"]["items"] == {"type": "string"}


def test_a_commit_message_gets_no_secret_of_a_url() -> None:
    request = RetrainRequest(
        data_source="https://me:word@host/x.zip?signature=abc",
        changes=("data.source=https://host/x.zip?signature=abc", "training.width=8"),
    )
    assert request.requested() == {"data.source": "https://host/x.zip?...", "training.width": "8"}


def test_an_edited_params_yaml_plays_no_part_in_a_run(repository: Repository) -> None:
    committed = repository.read("params.yaml")
    (repository.folder / "params.yaml").write_text("experiments: [")
    assert RetrainRequest().params_text(repository.folder, "HEAD") == committed
