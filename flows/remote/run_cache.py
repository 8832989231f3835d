"""What machines hand each other through the DVC remote, a stage at a time.

    REMOTE/files/md5/...                   data, as `dvc push` leaves them
    REMOTE/runs/KE/KEY/VALUE               what a stage made of what, as `dvc push --run-cache` leaves it
    REMOTE/retrain-checkpoints/KEY/FILE    how far a training has come that is not finished

KEY is DVC's own hash over a stage's command, dependencies, params and the paths of its outputs. DVC's
commands transfer the run cache as a whole, which grows with every run that ever was; here a stage's entry
goes alone, only after its data, and none goes where another machine was first: all take the same.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dvc.config import ConfigError, NoRemoteError
from dvc.repo import Repo
from dvc.stage import PipelineStage

from flows.engine.runner import Log
from flows.remote.checkpoints import CHECKPOINTS, Checkpoints
from flows.repository.dvc_internals import (
    DVC_LOCK,
    cached_entries,
    entries,
    entry_folder,
    get_file,
    is_data_missing,
    open_repo,
    remote_files,
    restore_stage,
    stage_key,
    stage_value,
)
from flows.repository.retry import T, UnavailableError, one_line, with_retries
from tasks.support.cli import InputError

#: Seconds that a transfer may go on after its run was stopped.
LAST_TRANSFER = 15.0


class Remote:
    """The default DVC remote, as the stages of one checkout use it."""

    def __init__(self, checkout: Path, log: Log, stopped: threading.Event | None = None) -> None:
        """Once `stopped` is set, nothing more is begun."""
        self._checkout, self._log = checkout, log
        self._stopped = stopped or threading.Event()
        self._pushed: set[str] = set()
        self._keys: dict[str, str] = {}
        self._broken: set[str] = set()

    def with_retries(self, what: str, action: Callable[[], T]) -> T:
        return with_retries(what, action, self._log, self._stopped)

    @contextmanager
    def _repo(self) -> Iterator[Repo]:
        logging.getLogger("dvc").setLevel(logging.WARNING)
        with DVC_LOCK:
            if self._stopped.is_set():
                raise UnavailableError("stopped")
            with open_repo(self._checkout) as repo:
                yield repo

    def wait_for_end(self) -> None:
        """Wait until what goes on, in other threads, has ended: nothing new begins once it is stopped."""
        if DVC_LOCK.acquire(timeout=LAST_TRANSFER):
            DVC_LOCK.release()

    def restore(self, name: str) -> bool:
        """Take the stage's result from the run cache, here or on the remote; False where neither has it."""
        tries = 0

        def look() -> bool:
            nonlocal tries
            tries += 1
            found, restored = self._restore(name)
            if found and not restored and tries < 3:  # DVC doesn't say why data did not come
                raise ConnectionError("not all of its data came")
            return restored

        return self.with_retries(f"looking for {name} on the DVC remote", look)

    def _restore(self, name: str) -> tuple[list[str], bool]:
        """The entries that the remote has, and whether the result is there now."""
        with self._repo() as repo, repo.lock:
            stage = repo.stage.load_one(name=name)
            if restore_stage(stage):
                return [], True
            key = self._keys[name] = stage_key(stage)
            files, root = remote_files(repo)
            found = entries(files, files.join(root, *entry_folder(key)))
            for path in found[:1]:  # all machines take the same one
                get_file(files, path, cached_entries(repo, key) / files.name(path))
            restored = bool(found) and restore_stage(stage, pull=True)
            if not restored:
                self._broken.update(found)
            return found, restored

    def key(self, name: str) -> str:
        """What the stage's result depends on; known once that was looked for in vain."""
        return self._keys[name]

    def push_inputs(self, name: str, upstream: set[str]) -> None:
        """Have on the remote what the stage reads of other stages, which are `upstream`."""

        def push() -> None:
            if missing := upstream - self._pushed:
                with self._repo() as repo:
                    repo.push(targets=sorted(missing))
                self._pushed.update(missing)

        self.with_retries(f"sending the inputs of {name} to the DVC remote", push)

    def note_pushed(self, name: str) -> None:
        """Know that the remote has the outputs of a stage."""
        self._pushed.add(name)

    def pull_inputs(self, name: str) -> None:
        """Bring just what the stage reads of other stages."""

        def pull() -> None:
            with self._repo() as repo:
                if targets := _inputs(repo, repo.stage.load_one(name=name)):
                    repo.pull(targets=targets, force=True)

        self.with_retries(f"getting the inputs of {name} from the DVC remote", pull)

    def push_result(self, name: str) -> None:
        """Send the stage's outputs, and then word of them; a result that the remote has already stays.

        An entry there whose data are gone is replaced.
        """

        def push() -> None:
            with self._repo() as repo:
                stage = repo.stage.load_one(name=name)
                key, value = stage_key(stage), stage_value(stage)
                files, root = remote_files(repo)
                there = files.join(root, *entry_folder(key))
                found = entries(files, there)
                if any(path not in self._broken or not is_data_missing(repo, stage, path) for path in found):
                    return
                repo.push(targets=[name])
                files.makedirs(there)
                files.put_file(str(cached_entries(repo, key) / value), files.join(there, value))
                for path in found:
                    if files.name(path) != value:
                        files.rm_file(path)

        self.with_retries(f"sending the result of {name} to the DVC remote", push)

    def checkpoints(self, key: str, folder: Path) -> "Checkpoints":
        with self._repo() as repo:
            files, root = remote_files(repo)
        return Checkpoints(files, files.join(root, CHECKPOINTS, key), folder, self._log)


def can_travel(stage: PipelineStage) -> bool:
    """Whether another machine can hand over what the stage makes.

    DVC keeps no run of a stage without inputs or with outputs that persist, and pushes no output that it
    doesn't cache.
    """
    return bool(stage.deps and stage.outs) and all(out.use_cache and not out.persist for out in stage.outs)


def _inputs(repo: Repo, stage: PipelineStage) -> list[str]:
    """The outputs of other stages, or the parts of them, that a stage reads."""
    targets = set()
    outs = [Path(out.fs_path) for out in repo.index.outs]
    for path in (Path(dep.fs_path) for dep in stage.deps):
        if any(path.is_relative_to(out) for out in outs):
            targets.add(path)
        targets |= {out for out in outs if out.is_relative_to(path)}
    return sorted(str(path) for path in targets)


def check_remote(repository: Path) -> None:
    """See that data can go to other machines and come back.

    Raises:
        InputError: no default DVC remote is set, or one that has no run cache.
    """
    with open_repo(repository) as repo:
        try:
            remote_files(repo)
        except NoRemoteError:
            raise InputError(
                f"{repository}: no default DVC remote is set, by which machines hand over data"
            ) from None
        except ConfigError as error:
            raise InputError(f"{repository}: DVC remote: {one_line(error)}") from None
