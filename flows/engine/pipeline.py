"""The stages of dvc.yaml as a graph, and what the DVC cache has of them."""

import logging
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

from dvc.exceptions import CheckoutError, DvcException
from dvc.repo import Repo
from dvc.utils.serialize import load_yaml, modify_yaml

from flows.repository.dvc_internals import LOCK, is_restored, planned
from tasks.support.cli import InputError


class Pipeline(NamedTuple):
    """What dvc.yaml declares."""

    upstream: dict[str, set[str]]
    """Each stage with the stages whose outputs it reads."""
    order: list[str]
    """The stages as dvc.lock lists them: those that it has, then the others as `dvc repro` adds them."""
    restored: frozenset[str]
    """Those that the DVC cache brought up to date; the others have to run."""


def restore_pipeline(checkout: Path) -> Pipeline:
    """Read dvc.yaml, and bring up to date all that is in the DVC cache, without running anything.

    One process of DVC asks this once for all stages: a process a stage costs more than a second each.

    Raises:
        InputError: DVC refused, in its own words.
    """
    lock = checkout / LOCK
    locked = load_yaml(lock)["stages"] if lock.exists() else {}  # before what is restored is added to it
    logging.getLogger("dvc").setLevel(logging.WARNING)  # the flow's own task runs tell what is cached
    try:
        # DVC makes stages out of the run cache with paths that count from the current folder.
        with chdir(checkout), Repo(str(checkout)) as repo, repo.lock:
            stages = planned(repo)
            upstream = {stage.name: {up.name for up in ups} for stage, ups in stages.items()}
            restored: set[str] = set()
            for stage in stages:
                if upstream[stage.name] <= restored and is_restored(stage):
                    restored.add(stage.name)
    except DvcException as error:
        raise InputError(f"dvc.yaml: {error}") from None
    return Pipeline(upstream, list(dict.fromkeys([*locked, *upstream])), frozenset(restored))


def restore_output(checkout: Path, path: str) -> bool:
    """Put an output there as dvc.lock records it; False where the DVC cache doesn't have it.

    Raises:
        InputError: no stage has such an output.
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
    """List the stages in dvc.lock in that order, not in the one in which they happened to end.

    So the file is the one that `dvc repro` writes, whatever ran side by side.
    """
    with modify_yaml(checkout / LOCK) as lock:
        lock["stages"] = dict(sorted(lock["stages"].items(), key=lambda item: order.index(item[0])))
