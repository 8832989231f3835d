"""What a run publishes: a branch with its params, dvc.lock and metrics, and its data to a remote if any.

A run has one name from its start to its end: its checkout, its branch `retrain/NAME` and its report in
`runs/NAME` all have it. What could not be published at the end is refused at the start.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from string import ascii_letters, digits

from dvc.config import Config

from flows.repository.checkout import RUNS, numbered
from flows.repository.git import GitError, git, resolve, run
from flows.repository.refs import ORIGIN, has_origin, push_refs, refs_at_origin
from flows.repository.retry import DeniedError, UnavailableError, with_retries
from tasks.support.cli import InputError

#: What a run commits, and by what two runs are the same.
RESULTS = ("params.yaml", "dvc.lock", "metrics.json")

PREFIX = "retrain/"

#: The git trailer that marks the commits of runs.
TRAILER = "Retrain-Run"

#: A branch of this name leaves no room for branches below it, which git keeps in a folder of that name.
IN_THE_WAY = f"refs/heads/{PREFIX.removesuffix('/')}"

#: Branches here, and those that were fetched from origin.
BRANCHES = (f"refs/heads/{PREFIX}", f"refs/remotes/{ORIGIN}/{PREFIX}")

#: Seconds between tries at the start of a run, while origin does not answer.
DELAYS = (2, 5, 10)

#: A name is part of paths, whose parts have 255 bytes at most.
LONGEST = 100


def as_name(run_name: str) -> str:
    """A run's name as part of a branch and a path: other than letters, digits and ._- become dashes."""
    kept = set(ascii_letters + digits + "._-")
    name = "".join(letter if letter in kept else "-" for letter in run_name)[:LONGEST].strip(".-")
    return re.sub(r"(\.lock)+$", "", name.replace("..", "-")) or "run"  # as git wants it


# --- names --------------------------------------------------------------------------------------------------


def names_here(repository: Path) -> set[str]:
    """The names that branches, tags and reports in this repository have, and branches as fetched from origin.

    A tag counts since git takes it for the branch of that name.
    """
    reports = {path.name for path in (repository / RUNS).glob("*")}
    return reports | _names(_refs(repository, *BRANCHES, f"refs/tags/{PREFIX}"))


def _names(refs: list[str]) -> set[str]:
    return {ref.partition(f"/{PREFIX}")[2].partition("/")[0] for ref in refs} - {""}


def _refs(repository: Path, *patterns: str) -> list[str]:
    """The full names of refs, the youngest first."""
    return git(
        repository, "for-each-ref", "--format=%(refname)", "--sort=-creatordate", *patterns
    ).splitlines()


def _refs_at_origin(repository: Path) -> list[str]:
    found = refs_at_origin(repository, IN_THE_WAY, f"{IN_THE_WAY}/*")
    return [line.partition("\t")[2] for line in found.splitlines()]


# --- before anything runs -----------------------------------------------------------------------------------


def check_here(repository: Path) -> None:
    """See that branches `retrain/NAME` can be made.

    Raises:
        InputError: a branch has a name that leaves no room for them.
    """
    if IN_THE_WAY in _refs(repository, IN_THE_WAY):
        raise InputError(_no_room(str(repository), "git branch --move retrain OTHER"))


def check_origin(repository: Path, commit: str, run: str, log: Callable[[str], None]) -> set[str]:
    """See that origin lets this repository push branches `retrain/NAME`; the names that are taken there.

    Raises:
        InputError: origin does not answer or refuses, or a branch there leaves no room for them.
    """

    def look() -> list[str]:
        push_refs(repository, f"{commit}:refs/heads/{PREFIX}{run}", dry_run=True)
        return _refs_at_origin(repository)

    try:
        refs = with_retries(ORIGIN, look, log, delays=DELAYS)
    except (DeniedError, UnavailableError) as error:
        raise InputError(f"publish: nothing can be pushed to {error}; `here` needs no {ORIGIN}") from None
    if IN_THE_WAY in refs:
        raise InputError(_no_room(ORIGIN, f"git push {ORIGIN} {ORIGIN}/retrain:refs/heads/OTHER :retrain"))
    return _names(refs)


def _no_room(where: str, way_out: str) -> str:
    branch = PREFIX.removesuffix("/")
    return f"publish: {where} has a branch {branch!r}, so git can make no {PREFIX}NAME; rename it: {way_out}"


def published_from(repository: Path, base: str, params: str) -> str | None:
    """The youngest branch here that a run of these params from the base would repeat; None if there is none.

    It has this params.yaml, and differs from the base in results alone. So DVC would find nothing to run.
    """
    refs = _refs(repository, BRANCHES[0])
    asked = "\n".join(f"{ref}:params.yaml" for ref in refs)
    blobs = git(repository, "cat-file", "--batch-check=%(objectname)", stdin=asked).splitlines()
    ours = git(repository, "hash-object", "--stdin", stdin=params)
    code = [".", *(f":(exclude){path}" for path in RESULTS)]
    for ref, blob in zip(refs, blobs, strict=True):
        if blob == ours and not git(repository, "diff", "--name-only", base, ref, "--", *code):
            return ref.removeprefix("refs/heads/")
    return None


def report_with(folder: Path, metrics: str) -> Path | None:
    """The report in a folder under runs/; None where there is none, or one of other metrics."""
    with suppress(OSError, UnicodeDecodeError):
        if (folder / "metrics.json").read_text(encoding="utf-8").strip() == metrics.strip():
            return folder / "index.html"
    return None


# --- at the end ---------------------------------------------------------------------------------------------


def published_already(repository: Path, base: str, commit: str) -> str | None:
    """The published branch, or the base, whose results are the commit's own; None if there is none."""
    names = [base, *_refs(repository, *BRANCHES)]
    asked = [f"{name}:{path}" for name in (commit, *names) for path in RESULTS]
    told = git(repository, "cat-file", "--batch-check=%(objectname)", stdin="\n".join(asked)).splitlines()
    results = [told[start : start + len(RESULTS)] for start in range(0, len(told), len(RESULTS))]
    same = (name for name, theirs in zip(names, results[1:], strict=True) if theirs == results[0])
    return next((name.removeprefix("refs/heads/").removeprefix("refs/remotes/") for name in same), None)


def make_branch(repository: Path, name: str, commit: str) -> str:
    """A new branch `retrain/NAME` at the commit; where the name is taken, `retrain/NAME-2` and so on.

    A run's own name was free at its start, and is taken only where somebody made or fetched such a branch
    since.
    """
    for free in _free(repository, name):
        branch = f"{PREFIX}{free}"
        try:
            git(repository, "branch", "--no-track", branch, commit)
        except GitError:
            if free not in names_here(repository):
                raise
        else:
            break
    return branch


def _free(repository: Path, name: str) -> Iterator[str]:
    return (each for each in numbered(name) if each not in names_here(repository))


def push(repository: Path, checkout: Path, branch: str, log: Callable[[str], None]) -> str:
    """Push the data to the DVC remote, then the branch to origin, each where there is one.

    The data go first, so that nobody finds a commit whose data are not there.

    Returns:
        The branch's name at origin: another one where somebody has pushed a branch of its name since the run
        started.

    Raises:
        InputError: git or DVC refused, in their own words.
    """
    if remote := Config(str(checkout / ".dvc"))["core"].get("remote"):
        run(checkout, "dvc", "push", "--quiet")
        log(f"data pushed to the DVC remote {remote}")
    else:
        log("no default DVC remote is set: the data stay in this machine's DVC cache")
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
            if _is_another(repository, ref):
                taken = _names(_refs_at_origin(repository))
                names = _free(repository, branch.removeprefix(PREFIX))
                free = next(f"{PREFIX}{name}" for name in names if name not in taken)
                push_refs(repository, f"{ref}:refs/heads/{free}")
                return free
        raise
    return branch


def _is_another(repository: Path, ref: str) -> bool:
    """Whether origin has another commit at a ref."""
    there = refs_at_origin(repository, ref)
    return bool(there) and not there.startswith(resolve(repository, ref))


def rename(repository: Path, branch: str, to: str) -> None:
    """Give a branch here and its report the name that the branch got at origin."""
    git(repository, "branch", "--move", branch, to)
    report = repository / RUNS / branch.removeprefix(PREFIX)
    if report.exists():
        report.rename(report.with_name(to.removeprefix(PREFIX)))
