"""Runs that look for new data. The tests build on each other."""

import re
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from flows.engine.order import INTERRUPTED, was_interrupted
from flows.retrain import look_for_new_data
from tasks.settings.changes import with_changes
from tasks.sources.phantom import PhantomSource
from tasks.support.cli import InputError
from tests.helpers import Repository, finished, make_repository_of, retrain, with_cache_of

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source") / "archive"
    phantoms = PhantomSource("phantom://45?size=64")
    for name in phantoms.names():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(phantoms.read(name))
    return root


@pytest.fixture(scope="module")
def repository(
    source: Path,
    tiny_params_text: str,
    finished_repository: Repository,
    tmp_path_factory: pytest.TempPathFactory,
) -> Repository:
    """A repository that was trained on the source, with the results on its main branch."""
    one = with_changes(tiny_params_text, {}, ["report1_bce"])
    repository = make_repository_of(one)(tmp_path_factory.mktemp("data"))
    with_cache_of(finished_repository, repository)  # of the same images
    repository.set(f"data.source={source}")
    repository.run("dvc", "repro")
    repository.commit("trained")
    return repository


@pytest.mark.soak
def test_without_new_data_nothing_runs(repository: Repository) -> None:
    output = retrain(repository, "--name", "quiet", "--look-for-new-data")
    assert "'look for new data' - unchanged: 135 files" in output
    assert set(finished(output).values()) == {"Cached", "Completed"}
    assert output.splitlines()[-1] == "nothing changed since HEAD; nothing published"


@pytest.mark.soak
def test_only_changed_files_are_fetched(repository: Repository, source: Path) -> None:
    image = min(source.rglob("Train/COVID-19/images/*.png"))
    with Image.open(image) as before:
        ImageOps.invert(before).save(image)
    (source / "README.txt").write_text("no image")
    output = retrain(repository, "--name", "news", "--look-for-new-data")
    assert "'look for new data' - 0 new, 1 changed and 0 removed of 135 files" in output
    assert "'download' - 1 of 135 files fetched, 134 unchanged" in output
    assert finished(output)["train@report1_bce-seed0"] == "Completed"
    changed = repository.run("git", "diff", "--unified=0", "main", "retrain/news", "--", "params.yaml")
    assert re.search(r"^\+  fingerprint: f[0-9a-f]{31}$", changed, re.MULTILINE)


@pytest.mark.soak
def test_a_second_look_finds_nothing_new(repository: Repository) -> None:
    output = retrain(repository, "--name", "later", "--look-for-new-data")
    assert output.splitlines()[-1].startswith("nothing changed since retrain/news; nothing published")
    assert set(finished(output).values()) == {"Cached", "Completed"}


@pytest.mark.soak
def test_without_looking_for_new_data_the_pinned_data_is_used(repository: Repository) -> None:
    output = retrain(repository, "--name", "own")
    assert output.splitlines()[-1] == "nothing changed since HEAD; nothing published"


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ConnectionError("example.org: connection refused"), INTERRUPTED),
        (PermissionError(13, "Permission denied", "/data"), "Failed"),
        (InputError("data.source: nothing is there"), "Failed"),
    ],
)
def test_a_look_is_retried_only_if_the_source_is_away(
    error: Exception, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: object) -> None:
        raise error

    (tmp_path / "params.yaml").write_text("data: {source: https://example.org/x.zip}")
    monkeypatch.setattr("tasks.sources.look.look", away)
    monkeypatch.setattr("flows.retrain.restore_output", lambda *_: False)
    state = look_for_new_data.fn(tmp_path, tmp_path)
    assert state.is_failed()
    assert state.name == name
    assert state.message in (str(error), "/data: Permission denied")
    assert look_for_new_data.retries == 5
    assert look_for_new_data.retry_condition_fn is was_interrupted
