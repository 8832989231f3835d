"""Find and remove files and branches of earlier runs that nothing needs any more.

A result is a branch `retrain/NAME`, its report in `runs/NAME`, or both. Old results are removed first, then
the data in the DVC cache that only they referred to.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flows.repository.cache import Unreferenced, find_unreferenced
from flows.repository.checkout import RUNS, find_leftovers, none_running, remove_leftovers
from flows.repository.dvc_internals import locked_cache
from flows.repository.git import GitError, git
from flows.repository.publish import PREFIX, RESULTS, TRAILER
from tasks.support.checkpoints import FOLDER as CHECKPOINTS
from tasks.support.checkpoints import NAME as CHECKPOINT

#: Reports are moved here before they are deleted, so that no report is ever partly deleted.
DELETED = RUNS / ".deleted"

DAY = 24 * 3600.0

NO_CACHE = Unreferenced([], [])


class Branch(NamedTuple):
    name: str
    commit: str
    committed: float
    """Seconds since 1970."""
    is_checked_out: bool


class Result(NamedTuple):
    """The published result of a run."""

    name: str
    branch: Branch | None
    report: Path | None

    @property
    def made(self) -> float:
        """When the result was made, in seconds since 1970."""
        if self.branch:
            return self.branch.committed
        assert self.report
        return (self.report / "metrics.json").stat().st_mtime


class Removal(NamedTuple):
    """A plan: what can be removed, and what is kept."""

    before: float
    """Only what was made before this time counts as old, in seconds since 1970."""
    results: list[Result]
    folders: list[Path]
    """Reports left by an interrupted removal."""
    checkouts: list[Path]
    checkpoints: list[Path]
    cache: Unreferenced
    kept: list[str]
    """Old items that are kept, and the reason: one line each."""

    @property
    def is_empty(self) -> bool:
        return not any((self.results, self.folders, self.checkouts, self.checkpoints, *self.cache))

    def lines(self) -> Iterator[str]:
        """Yield what would be removed, with the number and size of each kind, and what is kept."""
        branches = [result.branch.name for result in self.results if result.branch]
        reports = [result.report for result in self.results if result.report] + self.folders
        kinds = {
            "branches": (len(branches), 0),
            "reports": (len(reports), size(reports)),
            "checkouts of runs that were killed": (len(self.checkouts), size(self.checkouts)),
            "checkpoints of unfinished trainings": (len(self.checkpoints), size(self.checkpoints)),
            "files in the DVC cache": (len(self.cache.objects), size(self.cache.objects)),
            "entries of DVC's run cache": (len(self.cache.entries), size(self.cache.entries)),
        }
        for kind, (count, total) in kinds.items():
            if count:
                yield f"{count:>7,} {kind}" + (f", {human_size(total)}" if total else "")
        yield from (f"        {name}" for name in branches)
        yield from (f"kept: {line}" for line in self.kept)


def size(paths: list[Path]) -> int:
    """Return the bytes that deleting these files and folders frees. Files with other hard links free none."""
    files = (file for path in paths for file in ([path] if path.is_file() else path.rglob("*")))
    found = (file.lstat() for file in files if not file.is_dir())
    return sum(each.st_size for each in found if each.st_nlink == 1)


def human_size(count: float) -> str:
    """Format a number of bytes."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


# --- find what to remove ------------------------------------------------------------------------------------


def find(repository: Path, days: float, keep_last: int) -> Removal:
    """Find what runs have left that is older than `days`.

    Args:
        repository: The repository.
        days: Minimum age in days.
        keep_last: Number of latest results to keep, however old.
    """
    before = time.time() - days * DAY
    results, kept = _old_results(repository, before, keep_last)
    checkpoints, cache = [], NO_CACHE
    with none_running(repository) as idle, locked_cache(repository) as folder:
        if not idle:
            kept.append("checkpoints and the DVC cache: a run is in progress")
        else:
            checkpoints = _old_checkpoints(repository, before)
            if _is_ours(repository, folder):
                branches = {result.branch.name for result in results if result.branch}
                cache = _unreferenced(repository, folder, branches, before)
            else:
                kept.append(f"the DVC cache {folder}: it is outside the repository, so others may use it")
    return Removal(
        before,
        results,
        sorted((repository / DELETED).glob("*")),
        find_leftovers(repository),
        checkpoints,
        cache,
        kept,
    )


def _old_results(repository: Path, before: float, keep_last: int) -> tuple[list[Result], list[str]]:
    """Return the results to remove, and a line for each old result that is kept."""
    results = sorted(_results(repository), key=lambda result: -result.made)
    old = [result for result in results[keep_last:] if result.made < before]
    removable, kept = [], []
    others = _other_refs(repository, {result.branch.name for result in old if result.branch})
    for result in old:
        if result.branch and result.branch.is_checked_out:
            kept.append(f"{result.branch.name}: it is checked out")
        elif result.branch and not _is_of_runs(repository, result.branch, others):
            kept.append(f"{result.branch.name}: it has commits that no run made")
        else:
            removable.append(result)
    return removable, kept


def _results(repository: Path) -> Iterator[Result]:
    branches = {branch.name.removeprefix(PREFIX): branch for branch in _branches(repository)}
    reports = {
        path.parent.name: path.parent
        for path in (repository / RUNS).glob("[!.]*/metrics.json")
        if (path.parent / "index.html").exists()
    }
    for name in branches.keys() | reports.keys():
        yield Result(name, branches.get(name), reports.get(name))


def _branches(repository: Path) -> Iterator[Branch]:
    columns = "%(refname:short)%00%(objectname)%00%(committerdate:unix)%00%(worktreepath)"
    for line in git(repository, "for-each-ref", f"--format={columns}", f"refs/heads/{PREFIX}").splitlines():
        name, commit, committed, worktree = line.split("\0")
        yield Branch(name.removeprefix("heads/"), commit, float(committed), bool(worktree))


def _other_refs(repository: Path, branches: set[str]) -> list[str]:
    """Return all refs except some branches, the commits checked out in worktrees, and all stashes."""
    refs = git(repository, "for-each-ref", "--format=%(refname)").splitlines()
    heads = [line.removeprefix("HEAD ") for line in _worktrees(repository, "HEAD ")]
    stashed = git(repository, "stash", "list", "--format=%H").splitlines()  # the ref is only the latest one
    return [ref for ref in refs if ref.removeprefix("refs/heads/") not in branches] + heads + stashed


def _worktrees(repository: Path, word: str) -> list[str]:
    """Return the lines that start with `word` in git's list of worktrees."""
    listed = git(repository, "worktree", "list", "--porcelain").splitlines()
    return [line for line in listed if line.startswith(word) and not line.endswith(" " + 40 * "0")]


def _is_of_runs(repository: Path, branch: Branch, others: list[str]) -> bool:
    """Return whether runs made its last commit and all commits that no other ref has, unchanged since."""
    marked = f"%(trailers:key={TRAILER},valueonly,separator=%x2C)"
    if not git(repository, "log", "--max-count=1", f"--format={marked}", branch.commit):
        return False
    own = "\n".join([branch.commit, *(f"^{ref}" for ref in others)])
    log = git(repository, "log", f"--format=%x00%at %ct {marked}", "--name-only", "--stdin", stdin=own)
    for record in log.split("\0")[1:]:
        heading, *files = record.splitlines()
        authored, committed, *run = heading.split(maxsplit=2)
        if not run or authored != committed or not set(filter(None, files)) <= set(RESULTS):
            return False
    return True


def _old_checkpoints(repository: Path, before: float) -> list[Path]:
    found = sorted(path for path in (repository / CHECKPOINTS).glob("*") if CHECKPOINT.fullmatch(path.name))
    return [path for path in found if path.stat().st_mtime < before]


def _unreferenced(repository: Path, cache: Path, branches: set[str], before: float) -> Unreferenced:
    """Find the data in the DVC cache that nothing except some branches refers to."""
    trees = [Path(line.removeprefix("worktree ")) for line in _worktrees(repository, "worktree ")]
    there = [tree for tree in trees if tree.is_dir()]
    return find_unreferenced(repository, cache, there, _other_refs(repository, branches), before)


def _is_ours(repository: Path, cache: Path) -> bool:
    """Return whether a DVC cache belongs to this repository only."""
    return cache.resolve().is_relative_to(repository.resolve())


# --- remove it ----------------------------------------------------------------------------------------------


def remove(repository: Path, plan: Removal) -> None:
    """Carry out a plan. If it is interrupted at any point, the next `find` includes the rest."""
    for result in plan.results:
        _remove_result(repository, result)
    for folder in (repository / DELETED).glob("*"):
        shutil.rmtree(folder)
    if plan.checkouts:
        remove_leftovers(repository)
    with none_running(repository) as idle, locked_cache(repository) as cache:
        if not idle:
            return
        for path in plan.checkpoints:
            path.unlink(missing_ok=True)
        if _is_ours(repository, cache):
            # Searched again, because new references may have been made since.
            _unreferenced(repository, cache, set(), plan.before).remove()


def _remove_experiments(repository: Path, sweep: str) -> None:
    """Remove the trials of a sweep from the experiments of DVC."""
    for ref in git(
        repository, "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{sweep}.*"
    ).splitlines():
        git(repository, "update-ref", "-d", ref)


def _remove_result(repository: Path, result: Result) -> None:
    if branch := result.branch:
        now = git(repository, "for-each-ref", "--format=%(objectname)", f"refs/heads/{branch.name}")
        if now != branch.commit:  # it has new commits
            return
        try:
            git(repository, "branch", "--delete", "--force", branch.name)
        except GitError:  # it is checked out now
            return
        _remove_experiments(repository, result.name)
    if result.report and result.report.exists():
        (repository / DELETED).mkdir(exist_ok=True)
        target = repository / DELETED / result.name
        shutil.rmtree(target, ignore_errors=True)
        result.report.rename(target)
