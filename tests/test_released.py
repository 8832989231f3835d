"""Files of released versions: they load, or the error says how to convert them."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.comparison import compare_with
from flows.engine.pipeline import restore_pipeline, sort_lock
from flows.repository.git import git
from flows.repository.revision import plan_trainings
from tasks.settings.changes import parse_assignment, with_changes
from tasks.settings.earlier import ADDED, as_before
from tasks.settings.params import parse_params
from tasks.support.cli import InputError
from tests.helpers import ROOT, Repository

#: The released versions, and what will be the next one. A shallow clone may lack tags.
VERSIONS = [*git(ROOT, "tag", "--list", "v*").split(), "HEAD"]


def without_added(text: str) -> str:
    """Return a params.yaml as it was before the keys in ADDED existed."""
    document = YAML(typ="safe").load(text)
    for key in ADDED:
        section, _, name = key.partition(".")
        if name:
            del document[section][name]
        if not document[section]:
            del document[section]
    for experiment in document["experiments"].values():
        experiment.pop("selection", None)
    lines: list[str] = []
    yaml = YAML()
    yaml.dump(document, type("", (), {"write": lambda self, data: lines.append(data.decode())})())
    return "".join(lines)


def converted(text: str, error: str) -> str:
    """Follow the command that an error about a params.yaml names."""
    command = re.search(r"cxr params (.*)", error)
    assert command, error
    assignments = [word for word in shlex.split(command[1]) if word != "--set"]
    return with_changes(text, {word: parse_assignment(word) for word in assignments})


@pytest.mark.parametrize("version", VERSIONS)
def test_params_of_a_released_version_load_or_the_error_says_how_to_convert_them(version: str) -> None:
    text = git(ROOT, "show", f"{version}:params.yaml") + "\n"
    try:
        parse_params(text)
    except InputError as error:
        parse_params(converted(text, str(error)))


def test_params_without_the_added_keys_are_converted_by_the_command_in_the_error() -> None:
    text = without_added((ROOT / "params.yaml").read_text(encoding="utf-8"))
    with pytest.raises(InputError) as refused:
        parse_params(text)
    lines = str(refused.value).splitlines()
    # The section `export` is missing as a whole. Two keys are checked only when the rest is valid. One has a
    # default.
    later = {"data.layout", "prediction.ensemble", "promotion.experiment"}
    missing = set(ADDED) - later - {"export.experiments"} | {"export"}
    assert {line.split(": ")[1] for line in lines} == missing
    assert all(line.endswith(f"cxr params {as_before()}") for line in lines)
    plans = parse_params(converted(text, lines[0])).plans
    assert {plan.selection for plan in plans.values()} == {"all"}


def test_params_without_a_layout_are_converted_by_the_command_in_the_error() -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("  layout: null\n", "")
    with pytest.raises(
        InputError, match=r"^params.yaml: data.layout: this key is missing; to keep"
    ) as refused:
        parse_params(text)
    assert parse_params(converted(text, str(refused.value))).data.layout is None


@pytest.fixture
def repository(make_prepared_repository: Callable[[Path], Repository], tmp_path: Path) -> Repository:
    return make_prepared_repository(tmp_path / "repository")


def test_a_lock_with_stages_that_no_longer_exist_is_read_and_sorted(
    repository: Repository, finished_repository: Repository
) -> None:
    lock = finished_repository.read("dvc.lock")
    old = lock.replace("train@report1_bce-seed0", "train@gone-seed0")
    assert old != lock
    (repository.folder / "dvc.lock").write_text(old)
    pipeline = restore_pipeline(repository.folder)
    sort_lock(repository.folder, pipeline.order)
    assert "train@report1_bce-seed0" in pipeline.restored
    assert "  train@gone-seed0:" in repository.read("dvc.lock")
    repository.run("dvc", "status", "--quiet")


@pytest.mark.parametrize("metrics", ["{}", "[]", "3", "not JSON", '{"report1_bce": {"infection": 3}}'])
def test_a_base_with_other_metrics_is_not_comparable_but_no_error(
    metrics: str, finished_repository: Repository, tmp_path: Path
) -> None:
    repository = Repository(Path(shutil.copytree(finished_repository.folder, tmp_path / "repository")))
    now = repository.read("metrics.json")
    (repository.folder / "metrics.json").write_text(metrics)
    repository.run("git", "add", "--force", "metrics.json")
    repository.commit("base")
    base = repository.run("git", "rev-parse", "HEAD").strip()
    (repository.folder / "metrics.json").write_text(now)
    changes = compare_with(repository.folder, base, plan_trainings(repository.folder))
    assert {change.experiment for change in changes} == {"report1_bce", "report1_bce_iou"}
