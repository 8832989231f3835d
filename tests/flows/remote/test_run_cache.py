"""Deletions on a DVC remote that others use too."""

import fcntl
import json
import os
import shutil
import threading
import time
from contextlib import chdir
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.remote.checkpoints import CHECKPOINTS, sweep_checkpoints
from flows.remote.run_cache import Remote
from flows.repository.retry import UnavailableError
from tasks.support import checkpoints
from tests.helpers import Repository

#: Seconds.
DAY = 24 * 3600.0

KEY = "0123456789abcdef" * 4
NAME = f"report1_bce-seed1-{KEY[:16]}.pt"

#: Files of other people, some of them in folders with our names.
NOT_OURS = (
    "checkpoints/resnet50/my-only-copy.ckpt",
    f"checkpoints/{KEY}/{NAME}",
    f"{CHECKPOINTS}/notes.txt",
    f"{CHECKPOINTS}/resnet50/{NAME}",
    f"{CHECKPOINTS}/{KEY}/my-only-copy.pt",
    f"{CHECKPOINTS}/{KEY}/deeper/{NAME}",
    f"{CHECKPOINTS}/deeper/{KEY}/{NAME}",
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose DVC remote is a folder with other files in it."""
    folder = tmp_path / "repository"
    folder.mkdir()
    Repository(folder).run("git", "init", "--quiet")
    with Repo.init(str(folder)) as repo, repo.config.edit() as config:
        config["remote"]["store"] = {"url": str(tmp_path / "store")}
        config["core"]["remote"] = "store"
    return folder


def put(store: Path, path: str, age: float) -> None:
    (store / path).parent.mkdir(parents=True, exist_ok=True)
    (store / path).touch()
    os.utime(store / path, (time.time() - age,) * 2)


def there(store: Path) -> set[str]:
    return {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()}


def test_the_sweep_deletes_only_old_checkpoints(repository: Path, tmp_path: Path) -> None:
    store, young = tmp_path / "store", f"{CHECKPOINTS}/{KEY}/report2-7-{KEY[:16]}.pt"
    for path in (*NOT_OURS, f"{CHECKPOINTS}/{KEY}/{NAME}"):
        put(store, path, age=40 * DAY)
    put(store, young, age=20 * DAY)
    sweep_checkpoints(repository, 30 * DAY)
    assert there(store) == {*NOT_OURS, young}


def test_a_finished_training_deletes_only_its_own_checkpoints(repository: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for path in (*NOT_OURS, f"{CHECKPOINTS}/{KEY}/{NAME}"):
        put(store, path, age=0)
    folder = tmp_path / "folder"
    with Remote(repository, print).checkpoints(KEY, folder) as those:
        assert [path.name for path in folder.iterdir()] == [NAME]
        those.remove()
    assert there(store) == set(NOT_OURS)


def test_the_path_of_a_saved_checkpoint_matches_the_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(checkpoints.FOLDER_VARIABLE, str(tmp_path))
    assert checkpoints.NAME.fullmatch(NAME)
    assert checkpoints.Checkpoint("report1_bce-seed1", KEY).path.name == NAME


#: Writes different bytes each time, as different models of GPU do.
PIPELINE = """
stages:
  make: {cmd: "mkdir c; cat a > b; date +%N | tee -a b > c/d", deps: [a], outs: [b, c]}
"""


def reproduce(repository: Path) -> None:
    with chdir(repository), Repo() as repo:
        repo.reproduce()


@pytest.mark.parametrize("gone", [True, False])
def test_a_result_is_replaced_only_if_its_data_is_missing(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    monkeypatch.setattr("flows.repository.retry.DELAYS", (0.01, 0.01, 0.01))
    (repository / "a").write_text("input")
    (repository / "dvc.yaml").write_text(PIPELINE)
    reproduce(repository)
    Remote(repository, print).push_result("make")
    first = there(tmp_path / "store")
    (entry,) = [path for path in first if path.startswith("runs/")]

    for made_here in ("dvc.lock", ".dvc/cache"):
        path = repository / made_here
        path.unlink() if path.is_file() else shutil.rmtree(path)
    remote = Remote(repository, print)
    (tmp_path / "store" / "files").rename(tmp_path / "away")
    assert not remote.restore("make")
    reproduce(repository)
    if not gone:
        (tmp_path / "away").rename(tmp_path / "store" / "files")
    remote.push_result("make")
    if gone:
        assert entry not in there(tmp_path / "store") and len(there(tmp_path / "store")) == len(first)
    else:
        assert there(tmp_path / "store") == first


#: A stage that reads a file and a folder of another one.
READER = f"{PIPELINE}  use: {{cmd: cat b c/d > e, deps: [b, c], outs: [e]}}\n"


@pytest.fixture
def reader(repository: Path) -> Path:
    """A repository whose DVC remote has everything, and whose workspace has no outputs."""
    (repository / "a").write_text("input")
    (repository / "dvc.yaml").write_text(READER)
    reproduce(repository)
    with chdir(repository), Repo() as repo:
        repo.push()
    (repository / "b").unlink()
    shutil.rmtree(repository / "c")
    return repository


def read(repository: Path) -> str:
    return (repository / "b").read_text() + (repository / "c/d").read_text()


def test_inputs_that_the_cache_has_need_no_remote(reader: Path, tmp_path: Path) -> None:
    (tmp_path / "store").rename(tmp_path / "away")
    Remote(reader, print).pull_inputs("use", ["make"])
    assert read(reader) == (reader / "e").read_text()


def test_inputs_that_are_nowhere_are_reported(
    reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.repository.retry.DELAYS", (0.01,))
    for place in (reader / ".dvc/cache/files", tmp_path / "store/files"):
        shutil.rmtree(place)
    with pytest.raises(UnavailableError, match=r"^downloading the inputs of use .*could not be downloaded"):
        Remote(reader, print).pull_inputs("use", ["make"])


def test_stages_of_one_machine_download_the_same_inputs_once(reader: Path, tmp_path: Path) -> None:
    cache = reader / ".dvc/cache"
    (cache / "files").rename(tmp_path / "files")
    with (cache / "downloading.lock").open("wb") as lock:  # of another stage
        fcntl.flock(lock, fcntl.LOCK_EX)
        remote = Remote(reader, print)
        pulling = threading.Thread(target=remote.pull_inputs, args=("use", ["make"]))
        pulling.start()
        pulling.join(1)
        assert pulling.is_alive()
        (tmp_path / "files").rename(cache / "files")
        (tmp_path / "store").rename(tmp_path / "away")
    pulling.join(60)
    assert not pulling.is_alive()
    assert read(reader) == (reader / "e").read_text()


@pytest.mark.parametrize("lost", ["everything", "a file", "a folder's list", "a file of a folder"])
def test_inputs_that_the_cache_lacks_are_downloaded(reader: Path, lost: str) -> None:
    cache = reader / ".dvc/cache/files/md5"
    match lost:
        case "everything":
            shutil.rmtree(cache)
        case "a folder's list":
            (folder,) = cache.rglob("*.dir")
            folder.unlink()
        case _:
            with chdir(reader), Repo() as repo:
                names = {out.fs_path: out.hash_info.value for out in repo.index.outs}
            listed = json.loads(
                (cache / names[str(reader / "c")][:2] / names[str(reader / "c")][2:]).read_text()
            )
            gone = names[str(reader / "b")] if lost == "a file" else listed[0]["md5"]
            (cache / gone[:2] / gone[2:]).unlink()
    Remote(reader, print).pull_inputs("use", ["make"])
    assert read(reader) == (reader / "e").read_text()
