"""A checkout of the repository for one flow run: a git worktree at a pinned commit.

DVC hashes dependencies after a stage has run, so a file edited meanwhile would make dvc.lock claim what
did not happen. In a checkout of its own nobody edits, and the user's files and branch are never touched.
The DVC cache is the repository's own: nothing is computed twice.

    runs/.checkouts/NAME/         the worktree of a running flow
    runs/.checkouts/NAME.lock     locked for as long as that flow lives; holds the id of its run

The lock also reserves the name. A flow that is killed leaves it unlocked, and the next one removes both.
"""

import fcntl
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Literal, NamedTuple

import psutil
from dvc.config import Config, merge
from dvc.repo import Repo

from tasks.cli import InputError

#: Under the repository, ignored by git and DVC: results by run name, and the checkouts of running flows.
RUNS = Path("runs")
CHECKOUTS = RUNS / ".checkouts"

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

#: A worktree may be locked too, where git was killed while it made it.
FORCED = ("--force", "--force")

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


def numbered(name: str) -> Iterator[str]:
    """NAME, NAME-2, NAME-3, ..."""
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


@contextmanager
def checked_out(
    repository: Path,
    commit: str,
    name: str,
    run: str,
    taken: Callable[[], Set[str]] = set,
) -> Iterator[Path]:
    """A worktree of a commit for a flow run, on no branch, removed at the end.

    Its folder is called NAME. Where another running flow of this repository has that name, or it is among
    those `taken`, it is NAME-2, and so on. No other flow gets the name until the end.

    What finished stages made is in the DVC cache, where the next run finds it, however this one ends.
    """
    parent = repository / CHECKOUTS
    parent.mkdir(parents=True, exist_ok=True)
    folders = (parent / numbered_name for numbered_name in numbered(name))
    folder, lock = next((folder, lock) for folder in folders if (lock := _reserve(folder, taken)))
    with lock:
        lock.write(run.encode())
        lock.flush()
        os.fsync(lock.fileno())
        try:
            if folder.exists():  # its lock was lost
                _clear(repository, folder)
            # Forced, since git may still know of a worktree here that was deleted by hand.
            git(repository, "worktree", "add", *FORCED, "--quiet", "--detach", str(folder), commit)
            _share_dvc(repository, folder)
            yield folder
        finally:
            _remove(repository, folder)


def _reserve(folder: Path, taken: Callable[[], Set[str]]) -> IO[bytes] | None:
    """The lock of a folder's name; None where that is taken."""
    path = _lock_of(folder)
    try:
        lock = _hold(path, "xb+")
    except (FileExistsError, BlockingIOError):
        return None
    if folder.name not in taken():  # asked under the lock: who had it before may just have published
        return lock
    path.unlink()
    lock.close()
    return None


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _hold(path: Path, mode: Literal["rb+", "xb+"]) -> IO[bytes]:
    """Open a lock file and lock it.

    Raises:
        BlockingIOError: another process holds it, or has just removed it.
        OSError: it can't be opened.
    """
    with ExitStack() as stack:
        lock = stack.enter_context(path.open(mode))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(path, lock):
            raise BlockingIOError
        stack.pop_all()  # whoever gets it closes it
    return lock


def _is_at(path: Path, lock: IO[bytes]) -> bool:
    """Whether an open file is the one at a path still; it may have been removed, and another made there."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    return False


def remove_leftovers(repository: Path) -> list[Leftover]:
    """Remove the checkouts whose flow was killed, and end what still runs in them."""
    removed = []
    for path in sorted((repository / CHECKOUTS).glob("*.lock")):
        with suppress(BlockingIOError, FileNotFoundError), _hold(path, "rb+") as lock:
            folder = path.with_suffix("")
            # A power cut may have left anything in it.
            removed.append(Leftover(folder.name, lock.read().decode(errors="replace")))
            _remove(repository, folder)
    return removed


def _remove(repository: Path, folder: Path) -> None:
    _clear(repository, folder)
    if not folder.exists():
        _lock_of(folder).unlink(missing_ok=True)


def _clear(repository: Path, folder: Path) -> None:
    _end_processes_in(folder)
    with suppress(InputError):  # there is none where making it failed
        git(repository, "worktree", "remove", *FORCED, str(folder))
    shutil.rmtree(folder, ignore_errors=True)  # what was written there meanwhile


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


def push_refs(repository: Path, *refs: str, dry_run: bool = False) -> None:
    """Push to origin; a ref is as git's refspecs are. A dry run only sees whether origin lets us push."""
    options = ["--dry-run"] if dry_run else []
    git(repository, "push", "--quiet", *options, ORIGIN, *refs, patience=ORIGIN_PATIENCE)


def refs_at_origin(repository: Path, *patterns: str) -> str:
    """Origin's refs of those patterns, a line each, its commit first."""
    return git(repository, "ls-remote", "--quiet", ORIGIN, *patterns, patience=ORIGIN_PATIENCE)


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
