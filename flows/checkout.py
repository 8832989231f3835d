"""A checkout of the repository for one flow run: a git worktree at a pinned commit.

DVC hashes dependencies after a stage has run, so a file edited meanwhile would make dvc.lock claim what
did not happen. In a checkout of its own nobody edits, and the user's files and branch are never touched.
The DVC cache is the repository's own: nothing is computed twice.

    runs/.checkouts/NAME-xxxx/         the worktree of a running flow
    runs/.checkouts/NAME-xxxx.lock     locked for as long as that flow lives; holds the id of its run
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from dvc.config import Config, merge
from dvc.repo import Repo

from tasks.cli import InputError

#: Under the repository, ignored by git and DVC: results by run name, and the checkouts of running flows.
RUNS = Path("runs")
CHECKOUTS = RUNS / ".checkouts"

#: Hooks are for what people do; `dvc install` sets some that would run before the cache is shared.
NO_HOOKS = ("-c", f"core.hooksPath={os.devnull}")

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

#: Refs at origin of commits that a run's stages on other machines start from; no branches, so that nobody's
#: fetch or `git branch` shows them.
RUN_REFS = "refs/retrain/"

#: Where the main repository is that others have clones of too.
ORIGIN = "origin"

#: Seconds after which git is ended that waits for origin: git itself would wait for a stalled line for ever.
ORIGIN_PATIENCE = 300.0


class GitError(InputError):
    """Git refused, in its own words."""


def find_repository() -> Path:
    """The root of the git repository that the current folder lies in."""
    return Path(git(Path.cwd(), "rev-parse", "--show-toplevel"))


class Leftover(NamedTuple):
    """A checkout whose flow was killed."""

    name: str
    run: str


@contextmanager
def checked_out(repository: Path, commit: str, name: str, run: str) -> Iterator[Path]:
    """A worktree of a commit for a flow run, on no branch, removed at the end.

    What finished stages made is in the DVC cache, where the next run finds it, however this one ends.
    """
    parent = repository / CHECKOUTS
    parent.mkdir(parents=True, exist_ok=True)
    descriptor, path = tempfile.mkstemp(prefix=f"{name}-", suffix=".lock", dir=parent)
    folder = Path(path).with_suffix("")
    with open(descriptor, "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(run.encode())
        lock.flush()
        try:
            git(repository, *NO_HOOKS, "worktree", "add", "--quiet", "--detach", str(folder), commit)
            _share_dvc(repository, folder)
            yield folder
        finally:
            _remove(repository, folder)


def remove_leftovers(repository: Path) -> list[Leftover]:
    """Remove the checkouts whose flow was killed, and end what still runs in them."""
    removed = []
    for path in sorted((repository / CHECKOUTS).glob("*.lock")):
        with suppress(BlockingIOError, FileNotFoundError), path.open("rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder = path.with_suffix("")
            removed.append(Leftover(folder.name, lock.read().decode()))
            _remove(repository, folder)
    return removed


def _remove(repository: Path, folder: Path) -> None:
    _end_processes_in(folder)
    with suppress(InputError):  # there is none where making it failed
        git(repository, "worktree", "remove", "--force", "--force", str(folder))
    shutil.rmtree(folder, ignore_errors=True)  # what was written there meanwhile
    if not folder.exists():
        Path(f"{folder}.lock").unlink(missing_ok=True)


def _end_processes_in(folder: Path) -> None:
    """Kill what works in a folder: the stages that outlived their flow."""
    orphans = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder):
                process.kill()
                orphans.append(process)
    psutil.wait_procs(orphans, timeout=5)


def resolve(repository: Path, revision: str) -> str:
    """The commit that a revision names."""
    try:
        return git(
            repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"
        )
    except InputError:
        raise InputError(f"revision: {revision!r}: no such branch, tag or commit in {repository}") from None


def _share_dvc(repository: Path, checkout: Path) -> None:
    """Let DVC in the checkout use the repository's own cache, remotes and credentials."""
    with Repo(str(repository)) as repo:
        cache, ours = repo.cache.local_cache_dir, repo.config
        levels = [ours.load_one("repo"), ours.load_one("local")]
    config = Config(str(checkout / ".dvc"))
    with config.edit("local") as local:
        for level in levels:
            merge(local, level)
        local["cache"]["dir"] = cache
        # What DVC remembers of the files here is of no use to any other checkout.
        local["core"]["site_cache_dir"] = str(checkout / ".dvc" / "tmp" / "site")
    Path(config.files["local"]).chmod(0o600)


def commit(checkout: Path, message: str, *paths: str) -> str:
    """Commit what changed at `paths`; the id of the checkout's last commit."""
    git(checkout, "add", "--", *[path for path in paths if (checkout / path).exists()])
    if git(checkout, "diff", "--cached", "--name-only"):
        git(checkout, *NO_HOOKS, *_author(checkout), "commit", "--quiet", "--message", message)
    return git(checkout, "rev-parse", "HEAD")


def _author(checkout: Path) -> list[str]:
    """Options that name an author where the user has set none, as on a fresh machine."""
    try:
        git(checkout, "var", "GIT_AUTHOR_IDENT")
    except InputError:
        return ["-c", "user.name=retrain", "-c", "user.email=retrain@localhost"]
    return []


def send_commit(checkout: Path, run: str, commit: str) -> None:
    """Push a commit of the checkout to origin for the run's stages elsewhere."""
    push_refs(checkout, f"{commit}:{RUN_REFS}{run}/{commit}")


def fetch_commit(repository: Path, run: str, commit: str) -> bool:
    """Have a commit that a run has sent; False where origin has it no more.

    No ref is made for it here: git keeps what a checkout stands on.
    """
    ref = f"{RUN_REFS}{run}/{commit}"
    if not refs_at_origin(repository, ref).startswith(commit):
        return False
    fetch = ("fetch", "--quiet", "--no-write-fetch-head", "--no-tags")
    git(repository, *fetch, ORIGIN, ref, patience=ORIGIN_PATIENCE)
    return True


def has_origin(repository: Path) -> bool:
    return ORIGIN in git(repository, "remote").split()


def sent_commits(repository: Path) -> dict[str, str]:
    """The refs of all commits that origin has for runs elsewhere, each with its run."""
    refs = [line.split()[1] for line in refs_at_origin(repository, f"{RUN_REFS}*").splitlines()]
    return {ref: ref.removeprefix(RUN_REFS).partition("/")[0] for ref in refs}


def forget_commits(repository: Path, refs: list[str]) -> None:
    """Delete refs at origin, which are no more needed there."""
    if refs:
        push_refs(repository, *[f":{ref}" for ref in refs])


def push_refs(repository: Path, *refs: str) -> None:
    """Push to origin; a ref is as git's refspecs are."""
    git(repository, *NO_HOOKS, "push", "--quiet", ORIGIN, *refs, patience=ORIGIN_PATIENCE)


def refs_at_origin(repository: Path, pattern: str) -> str:
    """Origin's refs of that pattern, a line each, its commit first."""
    return git(repository, "ls-remote", "--quiet", ORIGIN, pattern, patience=ORIGIN_PATIENCE)


def uncommitted(repository: Path) -> list[str]:
    """Tracked files of the user's work tree whose changes a run at HEAD does not see."""
    lines = git(repository, "status", "--porcelain", "--untracked-files=no").splitlines()
    return [line.split(maxsplit=1)[1] for line in lines]


def git(folder: Path, *arguments: str, stdin: str | None = None, patience: float | None = None) -> str:
    """Run git in a folder, for so many seconds at most; its output without the final newline.

    Raises:
        GitError: it refused, or took too long.
    """
    try:
        return run(folder, "git", *arguments, stdin=stdin, patience=patience)
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
