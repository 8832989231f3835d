"""A checkout of the repository for one flow run: a git worktree at a pinned commit, on its own branch.

DVC hashes dependencies after a stage has run, so a file edited meanwhile would make dvc.lock claim what
did not happen. In a checkout of its own nobody edits, and the user's files and branch are never touched.
The DVC cache is the repository's own: nothing is computed twice.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dvc.repo import Repo

from tasks.cli import InputError

#: Under the repository, ignored by git and DVC: results by run name, and the checkouts of running flows.
RUNS = Path("runs")

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


def find_repository() -> Path:
    """The root of the git repository that the current folder lies in."""
    return Path(git(Path.cwd(), "rev-parse", "--show-toplevel"))


@contextmanager
def checked_out(repository: Path, revision: str, branch: str) -> Iterator[Path]:
    """A worktree of `revision` on the new `branch`, removed at the end; the branch stays, unless it failed.

    Raises:
        InputError: there is no such revision, or the branch exists already.
    """
    commit = resolve(repository, revision)
    folder = repository / RUNS / ".checkouts" / branch.replace("/", "-")
    if git(repository, "branch", "--list", branch):
        raise InputError(f"{branch}: this branch exists already; choose another name")
    try:
        git(repository, *NO_HOOKS, "worktree", "add", "--quiet", "-b", branch, str(folder), commit)
        _share_cache(repository, folder)
        yield folder
    except BaseException:
        # What finished stages made is in the cache, where the next run finds it.
        with suppress(InputError):
            git(repository, "worktree", "remove", "--force", str(folder))
        with suppress(InputError):
            git(repository, "branch", "--quiet", "-D", branch)
        raise
    git(repository, "worktree", "remove", "--force", str(folder))


def resolve(repository: Path, revision: str) -> str:
    """The commit that a revision names."""
    try:
        return git(repository, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except InputError:
        raise InputError(f"{revision}: no such revision in {repository}") from None


def _share_cache(repository: Path, checkout: Path) -> None:
    """Let the checkout use the repository's own DVC cache."""
    with Repo(str(repository)) as repo:
        cache = repo.cache.local_cache_dir
    run(checkout, "dvc", "config", "--local", "cache.dir", cache)


def commit(checkout: Path, message: str, *paths: str) -> str:
    """Commit what changed at `paths`; the id of the checkout's last commit."""
    git(checkout, "add", "--", *[path for path in paths if (checkout / path).exists()])
    if git(checkout, "status", "--porcelain", "--untracked-files=no"):
        git(checkout, *NO_HOOKS, *_author(checkout), "commit", "--quiet", "--message", message)
    return git(checkout, "rev-parse", "HEAD")


def _author(checkout: Path) -> list[str]:
    """Options that name an author where the user has set none, as on a fresh machine."""
    try:
        git(checkout, "var", "GIT_AUTHOR_IDENT")
    except InputError:
        return ["-c", "user.name=retrain", "-c", "user.email=retrain@localhost"]
    return []


def uncommitted(repository: Path) -> list[str]:
    """Tracked files of the user's work tree whose changes a run at HEAD does not see."""
    lines = git(repository, "status", "--porcelain", "--untracked-files=no").splitlines()
    return [line.split(maxsplit=1)[1] for line in lines]


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder; its output without the final newline.

    Raises:
        InputError: git refused, in git's own words.
    """
    return run(folder, "git", *arguments)


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{' '.join(command[:2])}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.rstrip("\n")


def environment() -> dict[str, str]:
    """This process's environment for commands in a checkout.

    The commands of its own Python installation are found first. What a git hook that started this process
    says of its repository is left out: it would aim every git command at that one.
    """
    commands = Path(sys.executable).parent
    kept = {name: value for name, value in os.environ.items() if name not in GIT_LOCAL}
    return kept | {"PATH": f"{commands}{os.pathsep}{os.environ.get('PATH', '')}"}
