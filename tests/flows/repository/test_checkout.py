"""Checkouts and commits of runs, with various git settings."""

import fcntl
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from flows.deployment.automations import report_ended_runs
from flows.deployment.supervision import exclusive
from flows.repository.checkout import CHECKOUTS, checked_out, none_running, remove_leftovers
from flows.repository.git import UNATTENDED_LABEL, commit, environment, git, resolve
from flows.worker import kill_leftovers
from tests.helpers import Repository


@pytest.fixture(scope="module")
def repository(
    make_repository: Callable[[Path], Repository], tmp_path_factory: pytest.TempPathFactory
) -> Repository:
    return make_repository(tmp_path_factory.mktemp("checkouts") / "repository")


@pytest.fixture
def head(repository: Repository) -> str:
    return resolve(repository.folder, "HEAD")


def flock_of_nfs(file: IO[bytes], operation: int) -> None:
    """Lock as NFS does: by byte ranges, which only a file that is open for reading or writing can have."""
    fcntl.lockf(file, operation)


def left(repository: Repository) -> list[str]:
    return [path.name for path in (repository.folder / CHECKOUTS).iterdir()]


class TestName:
    def test_is_unique_among_running_flows(self, repository: Repository, head: str) -> None:
        with (
            checked_out(repository.folder, head, "x", "") as first,
            checked_out(repository.folder, head, "x", "") as second,
            checked_out(repository.folder, head, "x", "", lambda: {"x-3"}) as third,
        ):
            assert [path.name for path in (first, second, third)] == ["x", "x-2", "x-4"]
            assert all((path / "dvc.yaml").exists() for path in (first, second, third))
            assert remove_leftovers(repository.folder) == []
        assert left(repository) == []
        with checked_out(repository.folder, head, "x", "") as again:
            assert again.name == "x"

    def test_taken_names_are_read_once_the_name_is_reserved(self, repository: Repository, head: str) -> None:
        """Otherwise the flow that had the name before could publish and end in between."""
        seen = []

        def taken() -> set[str]:
            seen.append(left(repository))
            return set()

        with checked_out(repository.folder, head, "x", "", taken):
            assert seen == [["x.lock"]]

    def test_is_free_again_after_its_flow_was_killed(self, repository: Repository, head: str) -> None:
        code = (
            "import sys; from pathlib import Path; from flows.repository.checkout import checked_out\n"
            f"with checked_out(Path.cwd(), {head!r}, 'killed', 'its-id'):\n"
            "    print('there', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=repository.folder,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as flow:
            assert flow.stdout and flow.stdout.readline() == "there\n"
            flow.send_signal(signal.SIGKILL)
        assert sorted(left(repository)) == ["killed", "killed.lock"]
        assert remove_leftovers(repository.folder) == [("killed", "its-id")]
        assert left(repository) == []
        with checked_out(repository.folder, head, "killed", "") as again:
            assert again.name == "killed"

    def test_is_free_if_a_folder_has_no_lock(self, repository: Repository, head: str) -> None:
        (repository.folder / CHECKOUTS / "x").mkdir(parents=True)
        (repository.folder / CHECKOUTS / "x" / "file").touch()
        with checked_out(repository.folder, head, "x", "") as checkout:
            assert (checkout.name, (checkout / "file").exists()) == ("x", False)

    def test_is_free_if_a_worktree_was_deleted_by_hand(self, repository: Repository, head: str) -> None:
        folder = repository.folder / CHECKOUTS / "x"
        repository.run("git", "worktree", "add", "--quiet", "--detach", str(folder), head)
        repository.run("git", "worktree", "lock", str(folder))
        repository.run("rm", "-r", str(folder))
        with checked_out(repository.folder, head, "x", "") as checkout:
            assert checkout.name == "x"


def test_a_checkout_can_be_on_nfs(repository: Repository, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", flock_of_nfs)
    with checked_out(repository.folder, head, "x", "") as checkout:
        assert checkout.exists()
    with none_running(repository.folder) as none:
        assert none
    assert remove_leftovers(repository.folder) == []
    with exclusive(repository.folder, "serve") as lock:
        assert lock


def test_at_its_end_a_run_kills_its_own_commands_but_no_other_program(
    repository: Repository, head: str
) -> None:
    with checked_out(repository.folder, head, "x", "") as checkout:
        persons = {name: value for name, value in environment().items() if name != UNATTENDED_LABEL}
        shell = subprocess.Popen(["sleep", "60"], cwd=checkout, env=persons)
        stage = subprocess.Popen(["sleep", "60"], cwd=checkout, env=environment())
    try:
        stage.wait(5)
        assert shell.poll() is None
    finally:
        shell.kill()
        shell.wait()


@pytest.mark.parametrize("content", [b"", b"\0" * 36, b"\xff\xfe"], ids=["empty", "zeros", "no text"])
def test_a_lock_file_without_an_id_after_a_power_cut_is_removed(
    repository: Repository, content: bytes
) -> None:
    lock = repository.folder / CHECKOUTS / "cut.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_bytes(content)
    report_ended_runs("http://127.0.0.1:9/api", kill_leftovers(repository.folder))
    assert left(repository) == []


GIT_CONFIGS = {
    "signs": "[user]\nname = x\nemail = x@y\n[commit]\ngpgSign = true\n[gpg]\nprogram = false",
    "nobody": "[user]\nuseConfigOnly = true",
    "ignores": "[core]\nexcludesFile = {home}/ignored",
    "hooks": "[core]\nhooksPath = {home}/hooks",
}


@pytest.mark.parametrize("how", GIT_CONFIGS)
def test_a_run_commits_with_any_git_settings(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ignored").write_text("*.lock\n")
    (tmp_path / "hooks").mkdir()
    for hook in ("commit-msg", "reference-transaction"):
        (tmp_path / "hooks" / hook).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "hooks" / hook).chmod(0o755)
    settings = tmp_path / "gitconfig"
    settings.write_text(GIT_CONFIGS[how].format(home=tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    folder = tmp_path / "repository"
    git(tmp_path, "init", "--quiet", str(folder))
    (folder / "dvc.lock").write_text("a result")
    assert commit(folder, "done", "dvc.lock", "metrics.json")
    assert git(folder, "show", "HEAD:dvc.lock") == "a result"


def test_a_run_commits_if_only_the_author_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.useConfigOnly")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "true")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody")
    monkeypatch.setenv("GIT_AUTHOR_EMAIL", "somebody@example.org")
    git(tmp_path, "init", "--quiet")
    (tmp_path / "dvc.lock").write_text("a result")
    commit(tmp_path, "done", "dvc.lock")
    assert git(tmp_path, "log", "-1", "--format=%an, %cn") == "Somebody, retrain"
