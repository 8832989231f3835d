"""git, its settings and the repository: really faulty ones."""

import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from flows.checks.check import Finding, Level
from flows.checks.repository import (
    check_author,
    check_changes,
    check_git,
    check_hooks,
    check_shape,
    check_signing,
)
from flows.repository.git import GitError, commit
from tasks.support.cli import InputError
from tests.helpers import Repository


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore the settings of the user who runs the tests."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "repository")
    repository.folder.mkdir()
    repository.run("git", "init", "--quiet", "--initial-branch=main")
    repository.name_author()
    (repository.folder / "dvc.yaml").write_text("stages: {}\n")
    repository.commit("start")
    repository.run("git", "commit", "--quiet", "--allow-empty", "--message", "second")
    return repository


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


@pytest.mark.parametrize(
    "check", [check_git, check_shape, check_author, check_signing, check_hooks, check_changes]
)
def test_a_usual_repository_is_fine(
    check: Callable[[Path], Iterable[Finding]], repository: Repository
) -> None:
    assert only(check(repository.folder)).level is Level.OK


def test_an_old_git_is_a_fault(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "bin" / "git"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho git version 2.25.1\n")
    old.chmod(0o755)
    # Commands of the Python installation come first in the path of the project's commands.
    monkeypatch.setattr("sys.executable", str(old.parent / "python"))
    assert only(check_git(repository.folder)).found == "git 2.25.1 is too old"


def test_a_shallow_clone_is_a_warning(repository: Repository, tmp_path: Path) -> None:
    clone = tmp_path / "shallow"
    subprocess.run(["git", "clone", "--quiet", "--depth=1", repository.folder.as_uri(), clone], check=True)
    finding = only(check_shape(clone))
    assert (finding.level, finding.remedy) == (Level.WARNING, "run `git fetch --unshallow`")
    assert "is a shallow clone" in finding.found


def test_a_worktree_is_fine_and_named(repository: Repository, tmp_path: Path) -> None:
    repository.run("git", "worktree", "add", "--quiet", str(tmp_path / "other"))
    finding = only(check_shape(tmp_path / "other"))
    assert finding == (Level.OK, f"{tmp_path / 'other'}, a worktree of {repository.folder}", "")


def test_a_project_in_a_subfolder_of_another_repository_is_refused(repository: Repository) -> None:
    project = repository.folder / "project"
    project.mkdir()
    (repository.folder / "dvc.yaml").rename(project / "dvc.yaml")
    with pytest.raises(InputError, match="the project needs a repository of its own"):
        list(check_shape(project))


def test_a_repository_without_a_commit_is_a_fault(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    repository.run("git", "init", "--quiet")
    (tmp_path / "dvc.yaml").touch()
    assert only(check_shape(tmp_path)).found == f"{tmp_path} has no commit, so no run can start"


def test_a_sparse_checkout_is_a_warning(repository: Repository) -> None:
    repository.run("git", "sparse-checkout", "set", "docs")
    _, finding = check_shape(repository.folder)
    assert finding.level is Level.WARNING
    assert finding.found.startswith("a sparse checkout leaves out files")


def test_an_unknown_author_is_a_warning(repository: Repository) -> None:
    for name in ("user.name", "user.email"):
        repository.run("git", "config", "--unset", name)
    repository.run("git", "config", "user.useConfigOnly", "true")
    finding = only(check_author(repository.folder))
    assert finding.level is Level.WARNING
    assert "git config --global user.name" in finding.remedy


def test_a_signing_program_that_fails_is_a_warning_because_runs_do_not_sign(repository: Repository) -> None:
    repository.run("git", "config", "commit.gpgSign", "true")
    repository.run("git", "config", "gpg.program", "/bin/false")
    finding = only(check_signing(repository.folder))
    assert finding.level is Level.WARNING
    assert finding.found.startswith("commit.gpgSign is set, but /bin/false does not work: you cannot commit")
    repository.run("git", "commit", "--allow-empty", "--message", "by hand", fails=True)
    (repository.folder / "dvc.yaml").write_text("stages: {} # changed\n")
    commit(repository.folder, "by a run", "dvc.yaml")
    assert repository.run("git", "log", "-1", "--format=%s").strip() == "by a run"


def test_a_signing_key_of_ssh_must_be_named(repository: Repository) -> None:
    repository.run("git", "config", "commit.gpgSign", "true")
    repository.run("git", "config", "gpg.format", "ssh")
    repository.run("git", "config", "gpg.ssh.program", "true")
    assert only(check_signing(repository.folder)).level is Level.WARNING
    repository.run("git", "config", "user.signingKey", "~/.ssh/id_ed25519.pub")
    assert only(check_signing(repository.folder)).level is Level.OK


def test_hooks_are_named_and_those_that_git_skips_are_warnings(repository: Repository) -> None:
    hooks = repository.folder / ".git" / "hooks"
    for name, mode in (("pre-push", 0o755), ("pre-commit", 0o644)):
        (hooks / name).write_text("#!/bin/sh\n")
        (hooks / name).chmod(mode)
    skipped, named = check_hooks(repository.folder)
    assert skipped == (
        Level.WARNING,
        "the git hook pre-commit is not executable, so git skips it",
        f"chmod +x {hooks / 'pre-commit'}",
    )
    assert named == (Level.OK, "git hooks, which runs skip: pre-push", "")


def test_a_missing_folder_of_hooks_is_a_warning(repository: Repository) -> None:
    repository.run("git", "config", "core.hooksPath", ".nowhere")
    finding = only(check_hooks(repository.folder))
    assert finding.level is Level.WARNING
    assert finding.found.startswith(f"core.hooksPath names {repository.folder / '.nowhere'}, which does not")


def test_uncommitted_changes_are_a_warning(repository: Repository) -> None:
    (repository.folder / "dvc.yaml").write_text("stages: {} # changed\n")
    finding = only(check_changes(repository.folder))
    assert finding.found == "runs do not include the uncommitted changes in dvc.yaml"


def test_outside_a_repository_the_error_is_that_of_git(tmp_path: Path) -> None:
    with pytest.raises(GitError, match="not a git repository"):
        list(check_shape(tmp_path))
