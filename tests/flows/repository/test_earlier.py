"""Files of an earlier commit, in a real repository with a DVC cache and remotes that fail."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.repository.dvc_internals import locked_cache
from flows.repository.earlier import copy_files
from tests.helpers import Repository, empty_repository, made

STAGES = """
stages:
  first: {cmd: "true", outs: [results/first]}
  second: {cmd: "true", outs: [results/second]}
"""


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository with two tracked folders, whose files were different in the commit."""
    repository = empty_repository(tmp_path / "repository")
    (repository.folder / "dvc.yaml").write_text(STAGES)
    write(repository, "earlier")
    repository.run("dvc", "commit", "--force", "--quiet")
    repository.commit("results")
    write(repository, "later")
    return repository


def write(repository: Repository, text: str) -> None:
    for name in ("first", "second"):
        folder = repository.folder / "results" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.csv").unlink(missing_ok=True)  # it may be a link into the cache
        (folder / "table.csv").write_text(f"{text} {name}")
        (folder / "large.zip").write_text(name)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def copied(repository: Repository, to: Path, timeout: float = 60, commit: str = "HEAD") -> str:
    return copy_files(repository.folder, commit, "results", "table.csv", to, timeout)


def lose_second(repository: Repository) -> None:
    """Remove the second table from the DVC cache."""
    cache = repository.folder / ".dvc" / "cache" / "files" / "md5"
    next(
        path for path in cache.rglob("*") if path.is_file() and path.read_bytes() == b"earlier second"
    ).unlink()


def use_s3(repository: Repository, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    repository.run("dvc", "remote", "add", "--local", "--default", "away", "s3://bucket/project")
    repository.run("dvc", "remote", "modify", "--local", "away", "endpointurl", url)


def test_files_of_the_commit_come_from_the_cache(repository: Repository, tmp_path: Path) -> None:
    assert copied(repository, tmp_path / "to") == ""
    assert made(tmp_path / "to") == {
        "first/table.csv": b"earlier first",
        "second/table.csv": b"earlier second",
    }


def test_it_waits_for_no_lock(repository: Repository, tmp_path: Path) -> None:
    with locked_cache(repository.folder):
        assert copied(repository, tmp_path / "to") == ""
    assert len(made(tmp_path / "to")) == 2


def test_a_missing_file_leaves_its_folder_empty(repository: Repository, tmp_path: Path) -> None:
    lose_second(repository)
    assert copied(repository, tmp_path / "to") == ""
    assert made(tmp_path / "to").keys() == {"first/table.csv"}
    assert (tmp_path / "to" / "second").is_dir()


def test_the_remote_has_what_the_cache_lacks(repository: Repository, tmp_path: Path) -> None:
    repository.run("dvc", "remote", "add", "--local", "--default", "beside", str(tmp_path / "remote"))
    repository.run("dvc", "push", "--quiet")
    lose_second(repository)
    assert copied(repository, tmp_path / "to") == ""
    assert made(tmp_path / "to")["second/table.csv"] == b"earlier second"


def test_a_silent_remote_ends_the_copying_in_time(
    repository: Repository, tmp_path: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_second(repository)
    use_s3(repository, silent_server, monkeypatch)
    start = time.monotonic()
    assert copied(repository, tmp_path / "to", timeout=10) == "no answer within 10 s"
    assert time.monotonic() - start < 20
    assert made(tmp_path / "to").keys() == {"first/table.csv"}


def test_a_cache_that_has_everything_needs_no_remote(
    repository: Repository, tmp_path: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_s3(repository, silent_server, monkeypatch)
    assert copied(repository, tmp_path / "to") == ""
    assert len(made(tmp_path / "to")) == 2


def test_a_remote_without_a_server_is_reported(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_second(repository)
    use_s3(repository, "http://127.0.0.1:9", monkeypatch)
    assert "http://127.0.0.1:9" in copied(repository, tmp_path / "to")
    assert made(tmp_path / "to").keys() == {"first/table.csv"}


def test_a_commit_without_the_folder_has_no_files(repository: Repository, tmp_path: Path) -> None:
    repository.run("git", "rm", "--quiet", "dvc.yaml")
    repository.commit("before the first stage")
    assert copied(repository, tmp_path / "to") == ""
    assert not (tmp_path / "to").exists()


def test_a_commit_that_dvc_cannot_read_is_reported(repository: Repository, tmp_path: Path) -> None:
    (repository.folder / "dvc.yaml").write_text("stages: [")
    repository.commit("broken")
    assert "dvc.yaml" in copied(repository, tmp_path / "to")
    assert copied(repository, tmp_path / "to", commit="HEAD~1") == ""
