"""DVC internals that the flows rely on. A failing test shows what a new version of DVC has changed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dvc.config import merge
from dvc.utils import strictyaml

from flows.repository.dvc_internals import (
    Project,
    cached_entries,
    entries,
    entry_folder,
    get_file,
    is_data_missing,
    open_repo,
    remote_files,
    restore_stage,
    share_cache,
    stage_key,
    stage_value,
    stages_in_order,
)
from tests.helpers import Repository, empty_repository

STAGES = """
stages:
  second:
    cmd: cp first.txt second.txt
    deps: [first.txt]
    outs: [second.txt]
  first:
    cmd: cp seed.txt first.txt
    deps: [seed.txt]
    outs: [first.txt]
"""


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository with two stages that have run, and a DVC remote."""
    repository = empty_repository(tmp_path / "repository")
    repository.run("dvc", "remote", "add", "--default", "beside", str(tmp_path / "remote"))
    (repository.folder / "dvc.yaml").write_text(STAGES)
    (repository.folder / "seed.txt").write_text("seed")
    repository.run("dvc", "repro")
    return repository


def test_stages_come_in_the_order_of_dvc_repro(repository: Repository) -> None:
    with open_repo(repository.folder) as repo:
        names = {stage.name: {up.name for up in ups} for stage, ups in stages_in_order(repo).items()}
    assert names == {"first": set(), "second": {"first"}}
    assert list(names) == ["first", "second"]


def test_the_run_cache_has_the_expected_paths(repository: Repository) -> None:
    with open_repo(repository.folder) as repo:
        stage = repo.stage.load_one(name="second")
        key, value = stage_key(stage), stage_value(stage)
        assert (cached_entries(repo, key) / value).is_file()
    assert (repository.folder / ".dvc/cache").joinpath(*entry_folder(key), value).is_file()


def test_a_stage_is_restored_as_by_dvc_repro(repository: Repository) -> None:
    lock = repository.read("dvc.lock")
    for path in ("first.txt", "second.txt", "dvc.lock"):
        (repository.folder / path).unlink()
    with open_repo(repository.folder) as repo, repo.lock:
        assert all(restore_stage(stage) for stage in stages_in_order(repo))
    assert repository.read("second.txt") == "seed"
    repository.run("dvc", "status", "--quiet")
    assert sorted(repository.read("dvc.lock").splitlines()) == sorted(lock.splitlines())

    (repository.folder / "seed.txt").write_text("another")
    with open_repo(repository.folder) as repo, repo.lock:
        assert not restore_stage(repo.stage.load_one(name="first"))


def test_the_remote_has_the_layout_of_dvc_push(repository: Repository, tmp_path: Path) -> None:
    repository.run("dvc", "push", "--run-cache", "--quiet")
    with open_repo(repository.folder) as repo:
        files, root = remote_files(repo)
        assert Path(root) == tmp_path / "remote"
        stage = repo.stage.load_one(name="second")
        (entry,) = entries(files, files.join(root, *entry_folder(stage_key(stage))))
        assert files.name(entry) == stage_value(stage)
        get_file(files, entry, tmp_path / "got" / "entry")
        assert "second.txt" in (tmp_path / "got" / "entry").read_text()
        assert not is_data_missing(repo, stage, entry)
        for path in (tmp_path / "remote" / "files").rglob("*"):
            if path.is_file():
                path.unlink()
    with open_repo(repository.folder) as repo:
        assert is_data_missing(repo, repo.stage.load_one(name="second"), entry)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The YAML files that DVC has read so far."""
    names: list[str] = []

    def load(path: str, *args: Any, **options: Any) -> Any:
        names.append(Path(path).name)
        return strictyaml_load(path, *args, **options)

    strictyaml_load = strictyaml.load
    monkeypatch.setattr(strictyaml, "load", load)
    return names


def test_a_project_reads_dvc_yaml_once_and_never_all_of_dvc_lock(
    repository: Repository, loaded: list[str]
) -> None:
    project = Project(repository.folder)
    for name in ("first", "second", "second"):
        with project.open() as repo, repo.lock:
            assert restore_stage(project.stage(name))
    assert loaded == ["dvc.yaml"]

    # What other processes write to dvc.lock is seen.
    (repository.folder / "seed.txt").write_text("another")
    repository.run("dvc", "repro")
    with project.open() as repo, repo.lock:
        assert not project.stage("second").changed()
    (repository.folder / "dvc.lock").unlink()
    with project.open() as repo, repo.lock:
        assert project.stage("second").changed()
    assert loaded == ["dvc.yaml"]


def test_a_project_connects_to_the_remote_once_until_an_error(repository: Repository) -> None:
    project, connections = Project(repository.folder), list[Any]()

    def connect() -> None:
        with project.open() as repo:
            connections.extend([remote_files(repo)[0], remote_files(repo)[0]])

    connect()
    connect()
    assert len(set(map(id, connections))) == 1
    with pytest.raises(ConnectionError), project.open():
        raise ConnectionError
    connect()
    assert len(set(map(id, connections))) == 2


#: Holds DVC's lock for a second.
HOLDER = """
import sys, time
from dvc.repo import Repo
with Repo(sys.argv[1]) as repo, repo.lock:
    print("held", flush=True)
    time.sleep(1)
"""


def test_opening_waits_for_the_lock_of_another_process(repository: Repository) -> None:
    command = [sys.executable, "-c", HOLDER, str(repository.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with open_repo(repository.folder) as repo, repo.lock:
            assert holder.wait(1) == 0


def test_a_checkout_shares_cache_remotes_and_credentials(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.run("dvc", "remote", "modify", "--local", "beside", "url", str(tmp_path / "elsewhere"))
    repository.run("git", "config", "user.name", "Tester")
    repository.run("git", "config", "user.email", "tester@example.org")
    repository.commit("all")
    repository.run("git", "worktree", "add", "--quiet", "--detach", str(tmp_path / "checkout"))
    local, modes = tmp_path / "checkout/.dvc/config.local", []

    def merging(into: dict[str, Any], level: dict[str, Any]) -> None:
        modes.append(local.stat().st_mode & 0o777)  # before anything is written
        merge(into, level)

    monkeypatch.setattr("flows.repository.dvc_internals.merge", merging)
    share_cache(repository.folder, tmp_path / "checkout")
    assert modes == [0o600, 0o600]
    checkout = Repository(tmp_path / "checkout")
    assert checkout.run("dvc", "config", "remote.beside.url").strip() == str(tmp_path / "elsewhere")
    assert local.stat().st_mode & 0o777 == 0o600
    checkout.run("dvc", "checkout")
    assert checkout.read("second.txt") == "seed"


@pytest.mark.parametrize("name", ["Röntgen Müller", "50% [a], 'b' #1", "肺"])
def test_a_checkout_shares_the_cache_whatever_the_letters_of_its_path(name: str, tmp_path: Path) -> None:
    repository = empty_repository(tmp_path / name)
    repository.run("dvc", "config", "--local", "core.autostage", "false")
    repository.commit("start")
    checkout = Repository(repository.folder / "runs" / "é")
    repository.run("git", "worktree", "add", "--quiet", str(checkout.folder))
    share_cache(repository.folder, checkout.folder)
    cache = repository.folder / ".dvc" / "cache"
    with open_repo(checkout.folder) as repo:
        assert Path(repo.cache.local_cache_dir) == cache
        assert Path(repo.site_cache_dir).is_relative_to(checkout.folder)
    (checkout.folder / "file").write_text("content")
    checkout.run("dvc", "add", "--quiet", "file")
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 1
