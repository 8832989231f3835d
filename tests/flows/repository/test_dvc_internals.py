"""DVC internals that the flows rely on. A failing test shows what a new version of DVC has changed."""

import shutil
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
    cached_file,
    check_out,
    entries,
    entry_folder,
    fetch,
    find_files,
    get_file,
    inputs_of,
    is_data_missing,
    locked_cache,
    open_repo,
    open_waiting,
    pull_parts,
    push_outputs,
    remote_files,
    restore_stage,
    share_cache,
    stage_key,
    stage_value,
    stages_in_order,
)
from tasks.support.cli import InputError
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


FOLDERS = """
stages:
  make: {cmd: "true", outs: [made]}
  below: {cmd: "true", outs: [all/below]}
  read: {cmd: "true", deps: [made/a.txt, all, source.txt]}
"""


@pytest.fixture
def folders(tmp_path: Path) -> Repository:
    """A repository with the outputs of stages, as if they had run, and a DVC remote."""
    repository = empty_repository(tmp_path / "folders")
    repository.run("dvc", "remote", "add", "--default", "beside", str(tmp_path / "beside"))
    (repository.folder / "dvc.yaml").write_text(FOLDERS)
    for name in ("made/a.txt", "made/b.txt", "all/below"):
        (repository.folder / name).parent.mkdir(exist_ok=True)
        (repository.folder / name).write_text(name)
    repository.run("dvc", "commit", "--force", "--quiet", "make", "below")
    return repository


def test_the_inputs_of_a_stage_are_outputs_or_parts_of_them(folders: Repository) -> None:
    with open_repo(folders.folder) as repo:
        parts = inputs_of(repo.stage.load_one(name="read"), repo.index.stages)
        found = [(part.out.def_path, Path(part.path).relative_to(folders.folder)) for part in parts]
    assert found == [("all/below", Path("all/below")), ("made", Path("made/a.txt"))]


def test_a_part_of_an_output_is_pulled_without_the_rest(folders: Repository, tmp_path: Path) -> None:
    with open_repo(folders.folder) as repo:
        push_outputs(repo, repo.index.stages)
    for path in (".dvc/cache", "made", "all"):
        shutil.rmtree(folders.folder / path)
    with open_repo(folders.folder) as repo:
        pull_parts(repo, inputs_of(repo.stage.load_one(name="read"), repo.index.stages))
    assert (folders.read("made/a.txt"), folders.read("all/below")) == ("made/a.txt", "all/below")
    assert [path.name for path in (folders.folder / "made").iterdir()] == ["a.txt"]

    for path in (folders.folder / ".dvc" / "cache", tmp_path / "beside"):
        shutil.rmtree(path)
    with open_repo(folders.folder) as repo, pytest.raises(ConnectionError, match="downloaded"):
        pull_parts(repo, inputs_of(repo.stage.load_one(name="read"), repo.index.stages))


@pytest.mark.parametrize("lists", [False, True])
def test_data_that_this_machine_lacks_is_not_said_to_be_uploaded(folders: Repository, lists: bool) -> None:
    for path in (folders.folder / ".dvc" / "cache").rglob("*"):
        if path.is_file() and (path.suffix == ".dir") == lists:
            path.unlink()
    with open_repo(folders.folder) as repo, pytest.raises(ConnectionError, match="uploaded"):
        push_outputs(repo, repo.index.stages)


def test_data_is_fetched_to_its_place_in_the_cache_and_checked_out(
    folders: Repository, tmp_path: Path
) -> None:
    with open_repo(folders.folder) as repo:
        push_outputs(repo, repo.index.stages)
    shutil.rmtree(folders.folder / ".dvc" / "cache")
    (folders.folder / "all" / "below").unlink()
    with open_repo(folders.folder) as repo:
        parts = [
            part
            for part in inputs_of(repo.stage.load_one(name="read"), repo.index.stages)
            if "all" in part.path
        ]
        (wanted,) = {part.out.hash_info for part in parts}
        place = cached_file(repo, wanted)
        assert not place.exists()
        fetch(repo, {wanted})
        assert place.read_text() == "all/below"
        check_out(parts)
    assert folders.read("all/below") == "all/below"
    shutil.rmtree(folders.folder / ".dvc" / "cache")
    shutil.rmtree(tmp_path / "beside")
    with open_repo(folders.folder) as repo:
        fetch(repo, {wanted})  # the remote lacks it
        assert not place.exists()


def test_files_of_the_remote_are_found(folders: Repository, tmp_path: Path) -> None:
    (tmp_path / "beside" / "x" / "y").mkdir(parents=True)
    for name in ("x/b", "x/y/a"):
        (tmp_path / "beside" / name).touch()
    with open_repo(folders.folder) as repo:
        files, root = remote_files(repo)
        assert [files.relpath(path, root) for path in find_files(files, root)] == ["x/b", "x/y/a"]
        assert find_files(files, files.join(root, "nothing")) == []


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
        with open_waiting(repository.folder) as repo, repo.lock:
            assert holder.wait(1) == 0


def test_the_cache_is_locked_for_other_commands_of_dvc(tmp_path: Path) -> None:
    repository = empty_repository(tmp_path / "repository")
    with locked_cache(repository.folder) as cache:
        assert cache == repository.folder / ".dvc" / "cache"
        with pytest.raises(InputError, match="DVC is in use here"), locked_cache(repository.folder):
            pass
    with pytest.raises(InputError, match="not inside of a DVC repository"), locked_cache(tmp_path):
        pass


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
