"""`cxr prune`: remove the results of old runs."""

import sys
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number


def prune(
    *,
    keep: Annotated[float, Parameter(metavar="DAYS", validator=Number(gte=0))] = 30,
    keep_last: Annotated[int, Parameter(metavar="N", validator=Number(gte=0))] = 3,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Remove old results of runs, and the data that only they used.

    Removes local branches retrain/NAME with their reports, checkouts of killed runs, old checkpoints, and
    data in the DVC cache that no commit, worktree or recent run refers to. Lists everything first, and asks
    for confirmation.

    Args:
        keep: Keep everything younger than this many days.
        keep_last: Keep the latest N results, whatever their age.
        dry_run: Only list what would be removed.
        yes: Remove without asking.

    Examples:
        cxr prune --dry-run
        cxr prune --keep 7 --keep-last 10
        cxr prune --yes
    """
    from flows.prune import find, remove
    from flows.repository.git import find_repository
    from tasks.support.cli import InputError

    repository = find_repository()
    plan = find(repository, keep, keep_last)
    print("nothing to remove" if plan.is_empty else "to remove:")
    for line in plan.lines():
        print(line)
    if plan.is_empty or dry_run:
        return
    if not yes:
        if not sys.stdin.isatty():
            raise InputError("nothing was removed: no terminal to ask for confirmation; pass --yes")
        if not _confirmed():
            print("nothing was removed")
            return
    remove(repository, plan)
    print("removed")


def _confirmed() -> bool:
    try:
        return input("Remove? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        print()
        return False
