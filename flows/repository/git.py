"""Git, and other commands, in a folder of the repository: unattended, without hooks, in their own words."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tasks.support.cli import InputError

#: Settings of git for commands that nobody watches. Hooks are for what people do; `dvc install` sets some
#: that would run before the cache is shared. Signing needs a key that is unlocked, now and hours later. And
#: a run pushes only what it made, no tags.
UNATTENDED = tuple(
    word
    for setting in (
        f"core.hooksPath={os.devnull}",
        "commit.gpgSign=false",
        "push.gpgSign=false",
        "push.followTags=false",
    )
    for word in ("-c", setting)
)

#: Variables that name a repository; `git rev-parse --local-env-vars` lists them.
GIT_LOCAL = frozenset(
    {
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_COMMON_DIR",
        "GIT_DIR",
        "GIT_GRAFT_FILE",
        "GIT_INDEX_FILE",
        "GIT_NO_REPLACE_OBJECTS",
        "GIT_OBJECT_DIRECTORY",
        "GIT_PREFIX",
        "GIT_REPLACE_REF_BASE",
        "GIT_SHALLOW_FILE",
        "GIT_WORK_TREE",
    }
)

#: Name and password in an address.
PASSWORD = re.compile(r"://[^/@\s]+@")

#: What a command of git or DVC is called, unlike the options before it.
COMMAND_NAME = re.compile(r"[a-z]+(-[a-z]+)*")


class GitError(InputError):
    """Git refused, in its own words."""


def find_repository() -> Path:
    """The root of the git repository that the current folder lies in."""
    return Path(git(Path.cwd(), "rev-parse", "--show-toplevel"))


def resolve(repository: Path, revision: str) -> str:
    """The commit that a revision names."""
    try:
        return git(
            repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"
        )
    except InputError:
        raise InputError(f"revision: {revision!r}: no such branch, tag or commit in {repository}") from None


def commit(checkout: Path, message: str, *paths: str) -> str:
    """Commit what changed at `paths`; the id of the checkout's last commit."""
    # Forced, since the user's own rules may ignore files of these names.
    git(checkout, "add", "--force", "--", *[path for path in paths if (checkout / path).exists()])
    if git(checkout, "diff", "--cached", "--name-only"):
        git(checkout, *_identity(checkout), "commit", "--quiet", "--message", message)
    return git(checkout, "rev-parse", "HEAD")


def _identity(checkout: Path) -> list[str]:
    """Options that name author and committer where the user has not set both, as on a fresh machine."""
    try:
        for who in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
            git(checkout, "var", who)
    except InputError:
        return ["-c", "user.name=retrain", "-c", "user.email=retrain@localhost"]
    return []


def uncommitted(repository: Path) -> list[str]:
    """Tracked files of the user's work tree whose changes a run at HEAD does not see."""
    lines = git(repository, "status", "--porcelain", "--untracked-files=no").splitlines()
    return [line.split(maxsplit=1)[1] for line in lines]


def git(folder: Path, *arguments: str, stdin: str | None = None, patience: float | None = None) -> str:
    """Run git in a folder, for so many seconds at most; its output without the final newline.

    It runs no hooks and signs nothing.

    Raises:
        GitError: it refused, or took too long.
    """
    try:
        return run(folder, "git", *UNATTENDED, *arguments, stdin=stdin, patience=patience)
    except InputError as error:
        raise GitError(str(error)) from None


def run(folder: Path, *command: str, stdin: str | None = None, patience: float | None = None) -> str:
    """Run a command in a folder, for so many seconds at most; its output without the final newline.

    Raises:
        InputError: it failed; in its own words, without the password of an address in them. Or it was ended.
    """
    name = f"{command[0]} {next((word for word in command[1:] if COMMAND_NAME.fullmatch(word)), '')}"
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment(),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=patience,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"{name}: no end within {patience:g} s") from None
    if done.returncode:
        said = PASSWORD.sub("://", (done.stderr or done.stdout).strip())
        raise InputError(f"{name}: {said}")
    return done.stdout.rstrip("\n")


def environment() -> dict[str, str]:
    """This process's environment for commands in a checkout.

    The commands of its own Python installation are found first. What a git hook that started this process
    says of its repository is left out: it would aim every git command at that one. No command waits for
    a password.
    """
    commands = Path(sys.executable).parent
    kept = {name: value for name, value in os.environ.items() if name not in GIT_LOCAL}
    path = f"{commands}{os.pathsep}{os.environ.get('PATH', '')}"
    return kept | {"PATH": path, "GIT_TERMINAL_PROMPT": "0"}
