"""Refs at origin, the repository that all machines share.

A run pushes the commits that its stages on other machines start from as `refs/retrain/RUN/COMMIT`. These are
not branches, so that `git fetch` and `git branch` do not show them to anybody.
"""

from pathlib import Path

from flows.repository.git import GitError, git

#: Prefix of the refs of commits that a run's stages on other machines start from.
RUN_REFS = "refs/retrain/"

#: The git remote of the shared repository.
ORIGIN = "origin"

#: Seconds after which git commands at origin are killed. Git itself would wait on a stalled connection
#: forever.
ORIGIN_TIMEOUT = 300.0


def send_commit(checkout: Path, run: str, commit: str) -> None:
    """Push a commit of the checkout to origin, for the run's stages on other machines."""
    push_refs(checkout, f"{commit}:{RUN_REFS}{run}/{commit}")


def fetch_commit(repository: Path, run: str, commit: str) -> bool:
    """Fetch a commit that a run has pushed. Returns False if origin no longer has it.

    No local ref is created: git keeps the commits that worktrees have checked out.
    """
    ref = f"{RUN_REFS}{run}/{commit}"
    fetch = ("fetch", "--quiet", "--no-write-fetch-head", "--no-tags")
    try:
        git(repository, *fetch, ORIGIN, ref, timeout=ORIGIN_TIMEOUT)
        git(repository, "cat-file", "-e", commit)  # the ref may be one of another commit
    except GitError:
        if refs_at_origin(repository, ref).startswith(commit):
            raise
        return False
    return True


def has_origin(repository: Path) -> bool:
    return ORIGIN in git(repository, "remote").split()


def sent_commits(repository: Path) -> dict[str, str]:
    """Return the refs of all commits that runs have pushed for their stages, each with the id of its run."""
    refs = [line.split()[1] for line in refs_at_origin(repository, f"{RUN_REFS}*").splitlines()]
    return {ref: ref.removeprefix(RUN_REFS).partition("/")[0] for ref in refs}


def forget_commits(repository: Path, refs: list[str]) -> None:
    """Delete refs at origin that are no longer needed."""
    if refs:
        push_refs(repository, *[f":{ref}" for ref in refs])


def push_refs(repository: Path, *refs: str, dry_run: bool = False, atomic: bool = False) -> None:
    """Push refspecs to origin. A dry run only checks whether origin accepts pushes.

    With `atomic`, origin takes all of them or none.
    """
    options = ["--dry-run"] * dry_run + ["--atomic"] * atomic
    git(repository, "push", "--quiet", *options, ORIGIN, *refs, timeout=ORIGIN_TIMEOUT)


def refs_at_origin(repository: Path, *patterns: str) -> str:
    """Return the refs at origin that match the patterns, one a line, as COMMIT, tab, REF."""
    return git(repository, "ls-remote", "--quiet", ORIGIN, *patterns, timeout=ORIGIN_TIMEOUT)
