"""Run git and other commands in the repository, unattended: without hooks, signatures or password prompts."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tasks.support.cli import InputError, without_secrets

#: Git options for unattended commands. Hooks are meant for people, and those of `dvc install` would run
#: before the cache is shared. Signing needs a key that is unlocked, now and hours later. With showSignature,
#: lines of gpg would stand between those that this project reads. A run pushes only what it made, so no tags.
UNATTENDED = tuple(
    word
    for setting in (
        f"core.hooksPath={os.devnull}",
        "commit.gpgSign=false",
        "log.showSignature=false",
        "push.gpgSign=false",
        "push.followTags=false",
    )
    for word in ("-c", setting)
)

#: Environment variables that point git at a repository, as listed by `git rev-parse --local-env-vars`.
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

#: Environment variable that labels the commands of runs, servers and workers, and all their descendants.
UNATTENDED_LABEL = "RETRAIN_UNATTENDED"

#: Timeout in seconds for commands that reach no other machine. They take seconds. One that does not end waits
#: for something, such as a file server that is away, and its run would keep the deployment's only slot.
LOCAL_TIMEOUT = 600.0

#: The name of a git or DVC command, as opposed to the options before it.
COMMAND_NAME = re.compile(r"[a-z]+(-[a-z]+)*")


class GitError(InputError):
    """A git command failed. The message is git's."""


def find_repository(folder: Path | None = None) -> Path:
    """Return the root of the git repository that contains a folder, by default the current one.

    Raises:
        InputError: the repository is not the project's, or has the project in a subfolder.
    """
    root = Path(git(folder or Path.cwd(), "rev-parse", "--show-toplevel"))
    if not (root / "dvc.yaml").exists():
        raise InputError(
            f"{root}: this git repository has no dvc.yaml at its top; "
            "the project needs a repository of its own"
        )
    return root


def resolve(repository: Path, revision: str) -> str:
    """Return the commit that a revision names.

    Raises:
        InputError: there is no such branch, tag or commit.
    """
    try:
        return git(
            repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"
        )
    except InputError:
        raise InputError(f"revision: {revision!r}: no such branch, tag or commit in {repository}") from None


def commit(checkout: Path, message: str, *paths: str) -> str:
    """Commit the changes at `paths`, if any, and return the checkout's last commit."""
    # --force, because the user's own rules may ignore files of these names.
    git(checkout, "add", "--force", "--", *[path for path in paths if (checkout / path).exists()])
    if git(checkout, "diff", "--cached", "--name-only"):
        git(checkout, *author_options(checkout), "commit", "--quiet", "--message", message)
    return git(checkout, "rev-parse", "HEAD")


def reword(checkout: Path, message: str) -> str:
    """Give the checkout's last commit another message, and return the new commit."""
    options = author_options(checkout)
    git(checkout, *options, "commit", "--quiet", "--amend", "--allow-empty", "--message", message)
    return git(checkout, "rev-parse", "HEAD")


def author_options(checkout: Path) -> list[str]:
    """Return options that set author and committer where git knows none, as on a fresh machine."""
    try:
        for who in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
            git(checkout, "var", who)
    except InputError:
        return ["-c", "user.name=retrain", "-c", "user.email=retrain@localhost"]
    return []


def uncommitted(repository: Path) -> list[str]:
    """Return the tracked files with uncommitted changes, which a run at HEAD does not include."""
    lines = git(repository, "status", "--porcelain", "--untracked-files=no").splitlines()
    return [line.split(maxsplit=1)[1] for line in lines]


def git(
    folder: Path,
    *arguments: str,
    stdin: str | None = None,
    timeout: float | None = None,
    errors: str = "strict",
) -> str:
    """Run git in a folder, without hooks and signatures, and return its output without the final newline.

    Args:
        timeout: Seconds after which the command is killed, by default LOCAL_TIMEOUT.
        errors: What to do with output that is not UTF-8, as for bytes.decode.

    Raises:
        GitError: the command failed or timed out.
    """
    try:
        # Messages are in English, because some of them are recognised.
        return run(
            folder,
            "git",
            *UNATTENDED,
            *arguments,
            stdin=stdin,
            timeout=timeout or LOCAL_TIMEOUT,
            errors=errors,
            LC_ALL="C",
        )
    except InputError as error:
        raise GitError(str(error)) from None


def run(
    folder: Path,
    *command: str,
    stdin: str | None = None,
    timeout: float | None = None,
    errors: str = "strict",
    **variables: str,
) -> str:
    """Run a command in a folder and return its output without the final newline.

    The command has a session of its own: programs that it starts, such as ssh, cannot ask on the terminal,
    and all of them are killed with it.

    Args:
        timeout: Seconds after which the command is killed.
        errors: What to do with output that is not UTF-8, as for bytes.decode.
        variables: Additional environment variables.

    Raises:
        InputError: the command failed or timed out. The message is the command's, with passwords in URLs
            removed.
    """
    name = " ".join([command[0], *[word for word in command[1:] if COMMAND_NAME.fullmatch(word)][:1]])
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment() | variables,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            output, complaints = process.communicate(None if stdin is None else stdin.encode(), timeout)
        except subprocess.TimeoutExpired:
            _kill_session(process)
            raise InputError(f"{name}: no result within {timeout:g} s") from None
        except BaseException:  # such as Ctrl-C, which does not reach another session
            _kill_session(process)
            raise
    if process.returncode:
        message = (complaints or output).decode(errors="replace").strip()
        raise InputError(f"{name}: {without_secrets(message)}")
    try:
        return output.decode(errors=errors).rstrip("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: the output is not UTF-8 text ({error.reason})") from None


def _kill_session(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def environment() -> dict[str, str]:
    """Return the environment for commands in a checkout.

    Commands of this Python installation come first in PATH. Variables that a git hook sets are removed,
    because they would redirect every git command to the hook's repository. Git never prompts for a password.
    A label tells the commands from a person's own programs in the same folder.
    """
    commands = Path(sys.executable).parent
    kept = {name: value for name, value in os.environ.items() if name not in GIT_LOCAL}
    path = f"{commands}{os.pathsep}{os.environ.get('PATH', '')}"
    return kept | {"PATH": path, "GIT_TERMINAL_PROMPT": "0", UNATTENDED_LABEL: "1"}
