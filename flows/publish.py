"""What a run publishes: a branch with its params, dvc.lock and metrics, and its data to a remote if any."""

from collections.abc import Callable
from pathlib import Path
from string import ascii_letters, digits

from dvc.config import Config

from flows.checkout import ORIGIN, git, has_origin, push_refs, run

#: What a run commits, and by what two runs are the same.
RESULTS = ("params.yaml", "dvc.lock", "metrics.json")

PREFIX = "retrain/"


def as_name(run_name: str) -> str:
    """A run's name as part of a branch and a path: other than letters, digits and ._- become dashes."""
    kept = set(ascii_letters + digits + "._-")
    name = "".join(letter if letter in kept else "-" for letter in run_name).strip(".-")
    return name.replace("..", "-").removesuffix(".lock") or "run"


def published_already(repository: Path, base: str, commit: str) -> str | None:
    """The published branch, or the base, whose results are the commit's own; None if there is none."""
    pattern = f"refs/heads/{PREFIX}", f"refs/remotes/{ORIGIN}/{PREFIX}"
    refs = git(repository, "for-each-ref", "--format=%(refname:short)", "--sort=-creatordate", *pattern)
    names = [base, *refs.split()]
    asked = [f"{name}:{path}" for name in (commit, *names) for path in RESULTS]
    told = git(repository, "cat-file", "--batch-check=%(objectname)", stdin="\n".join(asked)).splitlines()
    results = [told[start : start + len(RESULTS)] for start in range(0, len(told), len(RESULTS))]
    return next((name for name, theirs in zip(names, results[1:], strict=True) if theirs == results[0]), None)


def make_branch(repository: Path, name: str, commit: str) -> str:
    """A new branch `retrain/NAME` at the commit; where the name is taken, `retrain/NAME-2` and so on."""
    taken = set(git(repository, "for-each-ref", "--format=%(refname:short)", f"refs/heads/{PREFIX}").split())
    names = (f"{PREFIX}{name}{suffix}" for suffix in ("", *map("-{}".format, range(2, 10_000))))
    branch = next(branch for branch in names if branch not in taken)
    git(repository, "branch", "--no-track", branch, commit)
    return branch


def push(repository: Path, checkout: Path, branch: str, tell: Callable[[str], None]) -> None:
    """Push the data to the DVC remote, then the branch to origin, each where there is one.

    The data go first, so that nobody finds a commit whose data are not there.

    Raises:
        InputError: git or DVC refused, in their own words.
    """
    if remote := Config(str(checkout / ".dvc"))["core"].get("remote"):
        run(checkout, "dvc", "push", "--quiet")
        tell(f"data pushed to the DVC remote {remote}")
    else:
        tell("no default DVC remote is set: the data stay in this machine's DVC cache")
    if has_origin(repository):
        push_refs(repository, f"refs/heads/{branch}")
        tell(f"{branch} pushed to {ORIGIN}")
    else:
        tell(f"git has no remote {ORIGIN}: {branch} stays in this repository")
