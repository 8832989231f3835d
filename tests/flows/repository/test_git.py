"""How commands run unattended, and how their errors are reported."""

import shutil
import sys
from pathlib import Path

import psutil
import pytest

from flows.repository.git import GitError, find_repository, git, run
from flows.repository.retry import DeniedError, UnavailableError, with_retries
from tasks.support.cli import InputError
from tests.helpers import eventually


def test_a_project_in_a_subfolder_of_a_repository_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path / "project")
    with pytest.raises(
        InputError, match=r"has no dvc\.yaml at its top; the project needs a repository of its own"
    ):
        find_repository()


def test_a_command_has_no_terminal_to_ask_on(tmp_path: Path) -> None:
    leads_its_session = "import os; print(os.getsid(0) == os.getpid(), end='')"
    assert run(tmp_path, sys.executable, "-c", leads_its_session) == "True"


def test_programs_that_a_command_started_are_killed_with_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^sh: no result within 1 s$"):
        run(tmp_path, "sh", "-c", "sleep 60 & echo $! > pid; wait", timeout=1)
    pid = int((tmp_path / "pid").read_text())
    eventually(
        "the started program has ended",
        lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE,
    )


def test_a_command_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.repository.git.LOCAL_TIMEOUT", 1.0)
    with pytest.raises(GitError, match=r"^git waits: no result within 1 s$"):
        git(tmp_path, "-c", "alias.waits=!sleep 60", "waits")


def test_messages_of_git_are_in_english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert "LC_ALL=C" in git(tmp_path, "-c", "alias.variables=!env", "variables").splitlines()


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="requires ssh-keygen")
def test_signatures_are_not_part_of_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "key")
    (tmp_path / "signers").write_text(f"x@y {(tmp_path / 'key.pub').read_text()}")
    settings = tmp_path / "gitconfig"
    settings.write_text(
        "[user]\nname = x\nemail = x@y\n[log]\nshowSignature = true\n"
        f'[gpg]\nformat = ssh\n[gpg "ssh"]\nallowedSignersFile = {tmp_path}/signers\n'
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    git(tmp_path, "init", "--quiet")
    sign = ("-c", f"user.signingKey={tmp_path}/key", "commit", "--gpg-sign", "--allow-empty", "--quiet")
    git(tmp_path, *sign, "--message", "signed")
    shown = ("log", "-1", "--format=%s")
    assert "signature" in run(tmp_path, "git", *shown)
    assert git(tmp_path, *shown) == "signed"


def test_output_is_read_as_utf_8_in_any_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    assert run(tmp_path, "printf", r"M\303\274ller") == "Müller"
    with pytest.raises(InputError, match=r"^printf: the output is not UTF-8 text"):
        run(tmp_path, "printf", r"M\374ller")


def test_an_error_repeats_no_secret_of_a_url(tmp_path: Path) -> None:
    failing = "echo 'fatal: https://user:token@host/x.zip?signature=abc' >&2; exit 1"
    with pytest.raises(InputError, match=r"^sh: fatal: https://host/x\.zip\?\.\.\.$"):
        run(tmp_path, "sh", "-c", failing)


@pytest.mark.parametrize(
    "message",
    [
        "fatal: Authentication failed for 'https://host/x.git/'",
        "remote: Write access to repository not granted.\nfatal: unable to access 'https://host/x.git/': "
        "The requested URL returned error: 403",
        "fatal: could not read Username for 'https://host': terminal prompts disabled",
        "Host key verification failed.\nfatal: Could not read from remote repository.",
        "git@host: Permission denied (publickey).",
    ],
)
def test_a_refusal_is_not_retried(message: str) -> None:
    attempts = []

    def refused() -> None:
        attempts.append(1)
        raise GitError(f"git push: {message}")

    with pytest.raises(DeniedError):
        with_retries("origin", refused, print)
    assert len(attempts) == 1


@pytest.mark.parametrize("message", ["The requested URL returned error: 503", "Connection timed out"])
def test_an_origin_that_is_away_is_retried(message: str) -> None:
    attempts = []

    def away() -> None:
        attempts.append(1)
        raise GitError(f"git push: {message}")

    with pytest.raises(UnavailableError):
        with_retries("origin", away, print, delays=(0.01,))
    assert len(attempts) == 2
