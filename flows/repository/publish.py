"""Publish a run: a branch with its params, dvc.lock and metrics, and its data on the DVC remote, if any.

A run has one name from start to end, which its checkout, its branch `retrain/NAME` and its report in
`runs/NAME` share. A run that could not publish its results in the end is refused at its start.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from string import ascii_letters, digits

from dvc.config import Config

from flows.repository.checkout import RUNS, numbered
from flows.repository.git import GitError, git, resolve, run
from flows.repository.refs import ORIGIN, has_origin, push_refs, refs_at_origin
from flows.repository.retry import DeniedError, UnavailableError, with_retries
from tasks.support.cli import InputError

#: The files that a run commits. Two runs with the same contents of these are equal.
RESULTS = ("params.yaml", "dvc.lock", "metrics.json")

PREFIX = "retrain/"

#: The git trailer that marks the commits of runs.
TRAILER = "Retrain-Run"

#: Git stores branches in folders, so a branch of this name prevents any branch below it.
BLOCKING_REF = f"refs/heads/{PREFIX.removesuffix('/')}"

#: Branches in this repository, and those fetched from origin.
BRANCHES = (f"refs/heads/{PREFIX}", f"refs/remotes/{ORIGIN}/{PREFIX}")

#: Seconds between attempts to reach origin when a run starts.
DELAYS = (2, 5, 10)

#: Maximum length of a name. It is part of paths, whose components have at most 255 bytes.
MAX_NAME_LENGTH = 100


def as_name(run_name: str) -> str:
    """Make a run's name valid in branches and paths: characters other than A-Z a-z 0-9 . _ - become -."""
    kept = set(ascii_letters + digits + "._-")
    name = "".join(letter if letter in kept else "-" for letter in run_name)[:MAX_NAME_LENGTH].strip(".-")
    return re.sub(r"(\.lock)+$", "", name.replace("..", "-")) or "run"  # git forbids ".." and ".lock"


# --- names --------------------------------------------------------------------------------------------------


def local_names(repository: Path) -> set[str]:
    """Return the names used by branches, tags and reports here, and by branches fetched from origin.

    Tags count, because git prefers a tag to a branch of the same name.
    """
    reports = {path.name for path in (repository / RUNS).glob("*")}
    return reports | _names(_refs(repository, *BRANCHES, f"refs/tags/{PREFIX}"))


def _names(refs: list[str]) -> set[str]:
    return {ref.partition(f"/{PREFIX}")[2].partition("/")[0] for ref in refs} - {""}


def _refs(repository: Path, *patterns: str) -> list[str]:
    """Return the full names of refs, latest first."""
    return git(
        repository, "for-each-ref", "--format=%(refname)", "--sort=-creatordate", *patterns
    ).splitlines()


def _refs_at_origin(repository: Path) -> list[str]:
    found = refs_at_origin(repository, BLOCKING_REF, f"{BLOCKING_REF}/*")
    return [line.partition("\t")[2] for line in found.splitlines()]


# --- before the run -----------------------------------------------------------------------------------------


def check_local_branches(repository: Path) -> None:
    """Check that branches `retrain/NAME` can be created.

    Raises:
        InputError: a branch `retrain` prevents it.
    """
    if BLOCKING_REF in _refs(repository, BLOCKING_REF):
        raise InputError(_blocked(str(repository), "git branch --move retrain OTHER"))


def check_origin(
    repository: Path,
    commit: str,
    run: str,
    log: Callable[[str], None],
    delays: Sequence[float] = DELAYS,
) -> set[str]:
    """Check that branches `retrain/NAME` can be pushed to origin, and return the names taken there.

    `delays` are the seconds between attempts to reach it.

    Raises:
        InputError: origin does not answer or refuses the push, or a branch `retrain` there prevents it.
    """

    def look() -> list[str]:
        push_refs(repository, f"{commit}:refs/heads/{PREFIX}{run}", dry_run=True)
        return _refs_at_origin(repository)

    try:
        refs = with_retries(ORIGIN, look, log, delays=delays)
    except (DeniedError, UnavailableError) as error:
        raise InputError(f"publish: cannot push to {error}; `here` does not need {ORIGIN}") from None
    if BLOCKING_REF in refs:
        raise InputError(_blocked(ORIGIN, f"git push {ORIGIN} {ORIGIN}/retrain:refs/heads/OTHER :retrain"))
    return _names(refs)


def _blocked(where: str, command: str) -> str:
    branch = PREFIX.removesuffix("/")
    return f"publish: {where} has a branch {branch!r}, so {PREFIX}NAME is impossible; rename it: {command}"


def published_from(repository: Path, base: str, params: str) -> str | None:
    """Return the latest branch here that a run with these params would reproduce, or None.

    The branch has the same params.yaml and differs from the base only in results, so DVC would run nothing.
    """
    refs = _refs(repository, BRANCHES[0])
    objects = "\n".join(f"{ref}:params.yaml" for ref in refs)
    blobs = git(repository, "cat-file", "--batch-check=%(objectname)", stdin=objects).splitlines()
    ours = git(repository, "hash-object", "--stdin", stdin=params)
    code = [".", *(f":(exclude){path}" for path in RESULTS)]
    for ref, blob in zip(refs, blobs, strict=True):
        if blob == ours and not git(repository, "diff", "--name-only", base, ref, "--", *code):
            return ref.removeprefix("refs/heads/")
    return None


def report_with(folder: Path, metrics: str) -> Path | None:
    """Return the report in a folder below runs/, or None if there is none or its metrics differ."""
    with suppress(OSError, UnicodeDecodeError):
        if (folder / "metrics.json").read_text(encoding="utf-8").strip() == metrics.strip():
            return folder / "index.html"
    return None


# --- after the run ------------------------------------------------------------------------------------------


def published_already(repository: Path, base: str, commit: str) -> str | None:
    """Return the base or the published branch that has the same results as the commit, or None.

    The same means byte for byte: another comment in params.yaml is a change.
    """
    names = [base, *_refs(repository, *BRANCHES)]
    objects = [f"{name}:{path}" for name in (commit, *names) for path in RESULTS]
    blobs = git(repository, "cat-file", "--batch-check=%(objectname)", stdin="\n".join(objects)).splitlines()
    results = [blobs[start : start + len(RESULTS)] for start in range(0, len(blobs), len(RESULTS))]
    same = (name for name, theirs in zip(names, results[1:], strict=True) if theirs == results[0])
    return next((name.removeprefix("refs/heads/").removeprefix("refs/remotes/") for name in same), None)


def make_branch(repository: Path, name: str, commit: str) -> str:
    """Create a branch `retrain/NAME` at the commit. If the name is taken, use `retrain/NAME-2` and so on.

    The run's name was free at its start, so it is taken only if such a branch was created or fetched since.
    """
    for free in _free_names(repository, name):
        branch = f"{PREFIX}{free}"
        try:
            git(repository, "branch", "--no-track", branch, commit)
        except GitError:
            if free not in local_names(repository):
                raise
        else:
            break
    return branch


def _free_names(repository: Path, name: str) -> Iterator[str]:
    return (each for each in numbered(name) if each not in local_names(repository))


def push(repository: Path, checkout: Path, branch: str, log: Callable[[str], None]) -> str:
    """Push the data to the DVC remote, then the branch to origin. Skips each that does not exist.

    The data is pushed first, so that every commit at origin has its data.

    Returns:
        The branch's name at origin. It differs if another branch of that name was pushed during the run.

    Raises:
        InputError: git or DVC failed. The message is theirs.
    """
    if remote := Config(str(checkout / ".dvc"))["core"].get("remote"):
        run(checkout, "dvc", "push", "--quiet")
        log(f"data pushed to the DVC remote {remote}")
    else:
        log("no default DVC remote is set: the data stays in this machine's DVC cache")
    if not has_origin(repository):
        log(f"git has no remote {ORIGIN}: {branch} stays in this repository")
        return branch
    pushed = _push_branch(repository, branch)
    log(f"{pushed} pushed to {ORIGIN}")
    return pushed


def _push_branch(repository: Path, branch: str) -> str:
    ref = f"refs/heads/{branch}"
    try:
        push_refs(repository, ref)
    except GitError:
        with suppress(GitError):
            if _has_other_commit(repository, ref):
                taken = _names(_refs_at_origin(repository))
                names = _free_names(repository, branch.removeprefix(PREFIX))
                free = next(f"{PREFIX}{name}" for name in names if name not in taken)
                push_refs(repository, f"{ref}:refs/heads/{free}")
                return free
        raise
    return branch


def _has_other_commit(repository: Path, ref: str) -> bool:
    """Return whether origin has a different commit at a ref."""
    there = refs_at_origin(repository, ref)
    return bool(there) and not there.startswith(resolve(repository, ref))


def rename(repository: Path, branch: str, to: str) -> None:
    """Rename a branch and its report here to the branch's name at origin."""
    git(repository, "branch", "--move", branch, to)
    report = repository / RUNS / branch.removeprefix(PREFIX)
    if report.exists():
        report.rename(report.with_name(to.removeprefix(PREFIX)))
