"""The stage graph of dvc.yaml, and which of its stages the DVC cache can restore."""

import logging
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

from dvc.exceptions import CheckoutError, DvcException
from dvc.repo import Repo
from dvc.utils.serialize import load_yaml

from flows.repository.dvc_internals import restore_stage, stages_in_order
from flows.repository.lock_text import LOCK, select_entries
from tasks.support.cli import InputError


class Pipeline(NamedTuple):
    """The stages that dvc.yaml declares."""

    upstream: dict[str, set[str]]
    """For each stage, the stages whose outputs it reads."""
    order: list[str]
    """The stages in the order of dvc.lock, followed by those it lacks, in the order `dvc repro` adds them."""
    restored: frozenset[str]
    """The stages that the DVC cache brought up to date. All others have to run."""

    def up_to(self, wanted: Callable[[str], bool]) -> "Pipeline":
        """Return only the stages that are wanted, and those on which they depend."""
        needed: set[str] = set()
        waiting = {name for name in self.upstream if wanted(name)}
        while waiting:
            needed |= waiting
            waiting = {up for name in waiting for up in self.upstream[name]} - needed
        return Pipeline(
            {name: ups for name, ups in self.upstream.items() if name in needed},
            self.order,
            self.restored & needed,
        )


def restore_pipeline(checkout: Path) -> Pipeline:
    """Read dvc.yaml and restore every stage that the DVC cache has, without running a command.

    One process checks all stages, because a DVC process per stage takes more than a second each.

    Raises:
        InputError: DVC reported an error. The message is DVC's.
    """
    lock = checkout / LOCK
    locked = load_yaml(lock)["stages"] if lock.exists() else {}  # read before restoring adds stages to it
    logging.getLogger("dvc").setLevel(logging.WARNING)  # the flow's task runs already show what is cached
    try:
        # DVC resolves the paths of stages from the run cache against the current folder.
        with chdir(checkout), Repo(str(checkout)) as repo, repo.lock:
            stages = stages_in_order(repo)
            upstream = {stage.name: {up.name for up in ups} for stage, ups in stages.items()}
            restored: set[str] = set()
            for stage in stages:
                if upstream[stage.name] <= restored and restore_stage(stage):
                    restored.add(stage.name)
    except DvcException as error:
        raise InputError(f"dvc.yaml: {error}") from None
    return Pipeline(upstream, list(dict.fromkeys([*locked, *upstream])), frozenset(restored))


def restore_output(checkout: Path, path: str) -> bool:
    """Check an output out as dvc.lock records it. Returns False if the DVC cache does not have it.

    Raises:
        InputError: no stage has this output.
    """
    try:
        with chdir(checkout), Repo(str(checkout)) as repo:
            repo.checkout(targets=[path], force=True)
    except CheckoutError:
        return False
    except DvcException as error:
        raise InputError(f"dvc.yaml: {error}") from None
    return (checkout / path).exists()


def sort_lock(checkout: Path, order: list[str]) -> None:
    """Sort the stages in dvc.lock by `order`, instead of the order in which they finished, and drop others.

    The file is then identical to the one that `dvc repro` writes, whatever ran in parallel.
    """
    select_entries(checkout, order)
