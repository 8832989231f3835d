"""What a run publishes, to remotes that are real repositories and a real DVC store."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flows.checkout import GitError, sent_commits
from flows.publish import as_name, make_branch, published_already
from tests.helpers import Repository, finished, retrain

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def repository(
    make_repository: Callable[[Path], Repository], tmp_path_factory: pytest.TempPathFactory
) -> Repository:
    """One with an origin, and a DVC remote whose address is relative and known to this machine alone."""
    folder = tmp_path_factory.mktemp("remotes")
    repository = make_repository(folder / "repository")
    repository.run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(folder / "origin"))
    repository.run("git", "remote", "add", "origin", "../origin")
    repository.run("git", "push", "--quiet", "origin", "main")
    repository.run("dvc", "remote", "add", "--local", "--default", "store", str(folder / "store"))
    local = repository.folder / ".dvc" / "config.local"
    local.write_text(local.read_text().replace(str(folder / "store"), "../../store"))
    return repository


def test_a_clone_pulls_what_a_run_published(repository: Repository) -> None:
    output = retrain(repository, "--name", "shared", "--publish", "remotes")
    assert "data pushed to the DVC remote store" in output
    assert "retrain/shared pushed to origin" in output
    folder = repository.folder.parent
    repository.run("git", "clone", "--quiet", "--branch", "retrain/shared", "../origin", "../clone")
    clone = Repository(folder / "clone")
    clone.run("dvc", "remote", "add", "--local", "--default", "store", str(folder / "store"))
    clone.run("dvc", "pull")
    assert clone.run("dvc", "status").strip() == "Data and pipelines are up to date."
    assert "report1_bce" in clone.read("reports/index.html")
    assert "report1_bce.infection.covid.iou" in clone.run(
        "dvc", "metrics", "diff", "origin/main", "retrain/shared"
    )


def test_an_origin_that_refuses_fails_the_run_and_keeps_the_branch(repository: Repository) -> None:
    repository.run("git", "remote", "set-url", "origin", "https://user:secret@127.0.0.1:9/nothing.git")
    output = retrain(
        repository, "--name", "kept", "--set", "report.figures=[1]", "--publish", "remotes", fails=True
    )
    assert "error: retrain/kept is published in" in output.splitlines()[-1]
    assert "but not pushed: git push: " in output
    assert "secret" not in output
    assert repository.run("git", "branch", "--list", "retrain/kept")
    assert finished(output)["publish"] == "Failed"


def test_an_origin_that_stalls_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository(tmp_path)
    repository.run("git", "init", "--quiet")
    repository.run("git", "remote", "add", "origin", "ssh://somebody@nowhere/repository")
    stalled = tmp_path / "ssh"
    stalled.write_text("#!/bin/sh\nexec sleep 30\n")
    stalled.chmod(0o755)
    monkeypatch.setenv("GIT_SSH", str(stalled))
    monkeypatch.setattr("flows.checkout.ORIGIN_PATIENCE", 0.5)
    with pytest.raises(GitError, match=r"^git ls-remote: no end within 0\.5 s$"):
        sent_commits(tmp_path)


def test_a_name_becomes_a_branch() -> None:
    assert as_name("amber-fox") == "amber-fox"
    assert as_name("alpha 0.3 / try") == "alpha-0.3---try"
    assert as_name("../../etc") == "etc"
    assert as_name("--force") == "force"
    assert as_name("ünïcode..x.lock") == "n-code-x"
    assert as_name("...") == "run"


def test_a_taken_name_is_numbered_and_the_same_results_are_found(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    repository.run("git", "init", "--quiet", "--initial-branch=main")
    repository.run("git", "config", "user.name", "Tester")
    repository.run("git", "config", "user.email", "tester@example.org")

    def results(text: str) -> str:
        for name in ("params.yaml", "dvc.lock", "metrics.json"):
            (tmp_path / name).write_text(text)
        repository.commit(text)
        return repository.run("git", "rev-parse", "HEAD").strip()

    base, first, second = results("base"), results("first"), results("second")
    assert make_branch(tmp_path, "x", first) == "retrain/x"
    assert make_branch(tmp_path, "x", second) == "retrain/x-2"
    assert published_already(tmp_path, base, results("first")) == "retrain/x"
    assert published_already(tmp_path, base, results("base")) == base
    assert published_already(tmp_path, base, results("third")) is None
