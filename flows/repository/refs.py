"""Refs at origin, the repository that other machines have clones of too.

The commits that a run's stages start from elsewhere are `refs/retrain/RUN/COMMIT`: no branches, so that
nobody's fetch or `git branch` shows them.
"""

from pathlib import Path

from flows.repository.git import git

#: Refs at origin of commits that a run's stages on other machines start from; no branches, so that nobody's
#: fetch or `git branch` shows them.
RUN_REFS = "refs/retrain/"

#: Where the main repository is that others have clones of too.
ORIGIN = "origin"

#: Seconds after which git is ended that waits for origin: git itself would wait for a stalled line for ever.
ORIGIN_PATIENCE = 300.0


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
    """Delete refs at origin, which are no longer needed."""
    if refs:
        push_refs(repository, *[f":{ref}" for ref in refs])


def push_refs(repository: Path, *refs: str, dry_run: bool = False) -> None:
    """Push to origin; a ref is as git's refspecs are. A dry run only sees whether origin lets us push."""
    options = ["--dry-run"] if dry_run else []
    git(repository, "push", "--quiet", *options, ORIGIN, *refs, patience=ORIGIN_PATIENCE)


def refs_at_origin(repository: Path, *patterns: str) -> str:
    """Origin's refs of those patterns, a line each, its commit first."""
    return git(repository, "ls-remote", "--quiet", ORIGIN, *patterns, patience=ORIGIN_PATIENCE)
