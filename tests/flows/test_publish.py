"""Publishing of runs to real git repositories and a real DVC remote."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from prefect.logging import disable_run_logger

from flows.repository.git import GitError
from flows.repository.publish import (
    as_name,
    check_local_branches,
    check_origin,
    local_names,
    make_branch,
    published_already,
    push,
    rename,
)
from flows.repository.refs import sent_commits
from flows.run import show
from tasks.support.cli import InputError
from tests.helpers import Repository, finished, retrain

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def repository(
    make_prepared_repository: Callable[[Path], Repository], tmp_path_factory: pytest.TempPathFactory
) -> Repository:
    """A repository with an origin, and a DVC remote with a relative URL that only this machine knows.

    Its user signs commits and pushes with a locked key.
    """
    folder = tmp_path_factory.mktemp("remotes")
    repository = make_prepared_repository(folder / "repository")
    repository.run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(folder / "origin"))
    repository.run("git", "remote", "add", "origin", "../origin")
    repository.run("git", "push", "--quiet", "origin", "main")
    repository.run("dvc", "remote", "add", "--local", "--default", "store", str(folder / "store"))
    local = repository.folder / ".dvc" / "config.local"
    local.write_text(local.read_text().replace(str(folder / "store"), "../../store"))
    repository.run("git", "config", "commit.gpgSign", "true")
    repository.run("git", "config", "push.gpgSign", "true")
    repository.run("git", "config", "gpg.program", "false")
    return repository


def metrics(repository: Repository, branch: str) -> str:
    return repository.run("git", "show", f"{branch}:metrics.json")


class TestInOrder:
    def test_a_clone_pulls_what_a_run_published(self, repository: Repository) -> None:
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
        assert "report1_bce.test.infection.covid.iou" in clone.run(
            "dvc", "metrics", "diff", "origin/main", "retrain/shared"
        )

    @pytest.mark.soak
    def test_a_name_taken_here_or_at_origin_gets_a_number_everywhere(self, repository: Repository) -> None:
        before = {name: repository.read(f"runs/shared/{name}") for name in ("metrics.json", "index.html")}
        # A branch that another machine has pushed and this repository has not fetched.
        repository.run(
            "git", "push", "--quiet", "--no-signed", "../origin", "main:refs/heads/retrain/shared-2"
        )
        output = retrain(repository, "--name", "shared", "--set", "alpha=0.9", "--publish", "remotes")
        assert "the name shared is taken; this run is called shared-3" in output
        assert "retrain/shared-3 pushed to origin" in output
        assert f"report:  {repository.folder}/runs/shared-3/index.html" in output
        assert repository.run("git", "log", "-1", "--format=%s", "retrain/shared-3").startswith(
            "Retrain shared-3: alpha=0.9"
        )
        assert {name: repository.read(f"runs/shared/{name}") for name in before} == before
        assert metrics(repository, "retrain/shared") == before["metrics.json"]
        assert metrics(repository, "retrain/shared-3") == repository.read("runs/shared-3/metrics.json")
        assert metrics(repository, "retrain/shared-3") != before["metrics.json"]


@pytest.mark.soak
def test_if_origin_refuses_the_push_the_run_fails_and_the_next_run_pushes_its_branch(
    repository: Repository,
) -> None:
    options = ("--set", "report.figures=[1]", "--publish", "remotes")
    hook = repository.folder.parent / "origin" / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho not now >&2; exit 1\n")
    hook.chmod(0o755)
    output = retrain(repository, "--name", "kept", *options, fails=True)
    assert "error: retrain/kept is published in" in output.splitlines()[-1]
    assert "but not pushed: git push: remote: not now" in output
    assert repository.run("git", "branch", "--list", "retrain/kept")
    assert finished(output)["publish"] == "Failed"

    hook.unlink()
    output = retrain(repository, "--name", "kept", *options)
    assert output.splitlines()[-1] == (
        f"nothing changed since retrain/kept; pushed now; report: {repository.folder}/runs/kept/index.html"
    )
    assert "retrain/kept" in repository.run("git", "ls-remote", "../origin")
    assert "retrain/kept-2" not in repository.run("git", "branch", "--list")


class Pair(NamedTuple):
    """A repository with two commits on main, and its origin."""

    folder: Path
    origin: Path
    first: str
    second: str

    def run(self, *command: str) -> str:
        return Repository(self.folder).run(*command)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    folder, origin = tmp_path / "repository", tmp_path / "origin"
    folder.mkdir()
    here = Repository(folder)
    here.run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(origin))
    here.run("git", "init", "--quiet", "--initial-branch=main")
    here.run("git", "config", "user.name", "Tester")
    here.run("git", "config", "user.email", "tester@example.org")
    here.run("git", "remote", "add", "origin", str(origin))
    commits = []
    for text in ("first", "second"):
        (folder / "file").write_text(text)
        here.commit(text)
        commits.append(here.run("git", "rev-parse", "HEAD").strip())
    here.run("git", "push", "--quiet", "origin", "main")
    return Pair(folder, origin, *commits)


def test_names_of_branches_tags_reports_and_fetched_branches_are_taken(pair: Pair) -> None:
    pair.run("git", "branch", "retrain/here")
    pair.run("git", "branch", "retrain/below/it")
    pair.run("git", "tag", "retrain/tag")
    pair.run("git", "push", "--quiet", "origin", "main:refs/heads/retrain/fetched")
    pair.run("git", "fetch", "--quiet")
    pair.run("git", "branch", "retrained")
    (pair.folder / "runs" / "report").mkdir(parents=True)
    assert local_names(pair.folder) == {"here", "below", "tag", "fetched", "report"}


def test_a_tag_is_not_confused_with_a_branch_of_the_same_name(pair: Pair) -> None:
    for name in ("params.yaml", "dvc.lock", "metrics.json"):
        (pair.folder / name).write_text("results")
    Repository(pair.folder).commit("results")
    pair.run("git", "branch", "retrain/x", "HEAD")
    pair.run("git", "tag", "retrain/x", pair.first)
    assert published_already(pair.folder, pair.first, "HEAD") == "retrain/x"
    assert make_branch(pair.folder, "x", pair.first) == "retrain/x-2"


def test_a_branch_named_retrain_is_refused(pair: Pair) -> None:
    check_local_branches(pair.folder)
    pair.run("git", "branch", "retrain")
    with pytest.raises(InputError, match=r"has a branch 'retrain', .*: git branch --move retrain OTHER$"):
        check_local_branches(pair.folder)


def taken_at_origin(pair: Pair) -> set[str]:
    return check_origin(pair.folder, pair.second, "run", print)


def test_checking_origin_returns_its_names_and_changes_nothing(pair: Pair) -> None:
    pair.run("git", "push", "--quiet", "origin", "main:refs/heads/retrain/there")
    before = pair.run("git", "ls-remote")
    assert taken_at_origin(pair) == {"there"}
    assert pair.run("git", "ls-remote") == before


def test_a_branch_named_retrain_at_origin_is_refused(pair: Pair) -> None:
    pair.run("git", "push", "--quiet", "origin", "main:refs/heads/retrain")
    with pytest.raises(InputError) as refused:
        taken_at_origin(pair)
    assert str(refused.value) == (
        "publish: origin has a branch 'retrain', so retrain/NAME is impossible; "
        "rename it: git push origin origin/retrain:refs/heads/OTHER :retrain"
    )
    # The command from the message.
    pair.run("git", "fetch", "--quiet")
    pair.run("git", "push", "--quiet", "origin", "origin/retrain:refs/heads/OTHER", ":retrain")
    assert taken_at_origin(pair) == set()


@pytest.mark.parametrize(
    "only",
    [
        pytest.param(["--push"], id="refuses pushes"),
        pytest.param([], marks=pytest.mark.soak, id="does not answer"),
    ],
)
def test_an_origin_that_cannot_be_pushed_to_is_refused(
    pair: Pair, only: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.repository.publish.DELAYS", ())
    address = "https://user:secret@127.0.0.1:9/nothing.git"
    pair.run("git", "remote", "set-url", *only, "origin", address)
    with pytest.raises(InputError) as refused:
        taken_at_origin(pair)
    line = str(refused.value)
    assert line.startswith("publish: cannot push to origin: git push: fatal: unable to access ")
    assert line.endswith("; `here` does not need origin")
    assert "secret" not in line and "\n" not in line


def test_if_two_runs_chose_the_same_name_the_second_to_push_is_renamed(pair: Pair) -> None:
    pair.run("git", "branch", "retrain/x-2")  # not pushed
    pair.run("git", "push", "--quiet", "origin", "main:refs/heads/retrain/x-3")
    pair.run("git", "push", "--quiet", "origin", "main:refs/heads/retrain/x")
    pair.run("git", "branch", "retrain/x", pair.first)
    (pair.folder / "runs" / "x").mkdir(parents=True)
    pair.run("git", "push", "--quiet", "origin", ":retrain/x")
    pair.run("git", "checkout", "--quiet", "-b", "other", pair.first)
    Repository(pair.folder).run("git", "commit", "--quiet", "--allow-empty", "--message", "another")
    pair.run("git", "push", "--quiet", "origin", "other:refs/heads/retrain/x")

    assert push(pair.folder, pair.folder, "retrain/x", print) == "retrain/x-4"
    rename(pair.folder, "retrain/x", "retrain/x-4")
    assert pair.run("git", "rev-parse", "retrain/x-4").strip() == pair.first
    assert pair.run("git", "ls-remote", "origin", "retrain/x-4").startswith(pair.first)
    assert [path.name for path in (pair.folder / "runs").iterdir()] == ["x-4"]
    assert push(pair.folder, pair.folder, "retrain/x-4", print) == "retrain/x-4"


def test_commands_at_a_stalled_origin_time_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository(tmp_path)
    repository.run("git", "init", "--quiet")
    repository.run("git", "remote", "add", "origin", "ssh://somebody@nowhere/repository")
    stalled = tmp_path / "ssh"
    stalled.write_text("#!/bin/sh\nexec sleep 30\n")
    stalled.chmod(0o755)
    monkeypatch.setenv("GIT_SSH", str(stalled))
    monkeypatch.setattr("flows.repository.refs.ORIGIN_TIMEOUT", 0.5)
    with pytest.raises(GitError, match=r"^git ls-remote: no result within 0\.5 s$"):
        sent_commits(tmp_path)


def test_a_failed_artifact_does_not_fail_the_run() -> None:
    def refused() -> None:
        raise httpx.HTTPError("413 Payload Too Large")

    shown: list[str] = []
    with disable_run_logger():
        show(refused, lambda: shown.append("the next"))
    assert shown == ["the next"]


def test_names_are_made_valid_for_branches() -> None:
    assert as_name("amber-fox") == "amber-fox"
    assert as_name("alpha 0.3 / try") == "alpha-0.3---try"
    assert as_name("../../etc") == "etc"
    assert as_name("--force") == "force"
    assert as_name("ünïcode..x.lock") == "n-code-x"
    assert as_name("...") == "run"
    assert as_name("x.lock.lock") == "x"
    assert len(as_name("a long name, " * 50)) <= 100


def test_a_taken_name_is_numbered_and_equal_results_are_found(tmp_path: Path) -> None:
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
