"""Exchange inputs and results of single stages between machines through the DVC remote.

    REMOTE/files/md5/...                   data, in the layout of `dvc push`
    REMOTE/runs/KE/KEY/VALUE               inputs and outputs of a stage run, as by `dvc push --run-cache`
    REMOTE/retrain-checkpoints/KEY/FILE    checkpoints of an unfinished training

KEY is DVC's hash over a stage's command, dependencies, params and output paths. DVC's commands transfer the
run cache as a whole, which grows with every run. Here each stage's entry is transferred separately, after its
data. An entry that another machine has pushed first is kept, so that all machines use the same result.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dvc.config import ConfigError, NoRemoteError
from dvc.repo import Repo
from dvc.stage import PipelineStage

from flows.engine.runner import Log
from flows.remote.checkpoints import CHECKPOINTS, Checkpoints
from flows.repository.dvc_internals import (
    DVC_LOCK,
    Project,
    cached_entries,
    entries,
    entry_folder,
    get_file,
    inputs_of,
    is_data_missing,
    open_repo,
    pull_parts,
    push_outputs,
    remote_files,
    restore_stage,
    stage_key,
    stage_value,
)
from flows.repository.retry import T, UnavailableError, one_line, with_retries
from tasks.support.cli import InputError

#: Seconds that a running transfer may take after its run was stopped.
LAST_TRANSFER = 15.0


class Remote:
    """The default DVC remote, as the stages of one checkout use it."""

    def __init__(self, checkout: Path, log: Log, stopped: threading.Event | None = None) -> None:
        """Create it. Once `stopped` is set, no operation starts any more."""
        self._project, self._log = Project(checkout), log
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
            with self._project.open() as repo:
                yield repo

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold DVC's lock on the checkout, so that no process changes dvc.lock."""
        with self._repo() as repo, repo.lock:
            yield

    def wait_for_end(self) -> None:
        """Wait until the operations of other threads have ended. None starts after a stop."""
        if DVC_LOCK.acquire(timeout=LAST_TRANSFER):
            DVC_LOCK.release()

    def restore(self, name: str) -> bool:
        """Restore the stage's result from the run cache, here or on the remote.

        Returns:
            False if neither has it.

        Raises:
            UnavailableError: the remote does not answer.
            DeniedError: the remote refuses access.
        """
        tries = 0

        def look() -> bool:
            nonlocal tries
            tries += 1
            found, restored = self._restore(name)
            if found and not restored and tries < 3:  # DVC does not say why data is missing
                raise ConnectionError("some of its data could not be downloaded")
            return restored

        return self.with_retries(f"looking up {name} on the DVC remote", look)

    def _restore(self, name: str) -> tuple[list[str], bool]:
        """Return the entries that the remote has, and whether the result is restored."""
        with self._repo() as repo, repo.lock:
            stage = self._project.stage(name)
            if restore_stage(stage):
                return [], True
            key = self._keys[name] = stage_key(stage)
            files, root = remote_files(repo)
            found = entries(files, files.join(root, *entry_folder(key)))
            for path in found[:1]:  # every machine uses the same entry
                get_file(files, path, cached_entries(repo, key) / files.name(path))
            restored = bool(found) and restore_stage(stage, pull=True)
            if not restored:
                self._broken.update(found)
            return found, restored

    def key(self, name: str) -> str:
        """Return the stage's run-cache key. Available after `restore` returned False."""
        return self._keys[name]

    def push_inputs(self, name: str, upstream: set[str]) -> None:
        """Make sure that the remote has the outputs of the stages in `upstream`, which the stage reads."""

        def push() -> None:
            if missing := upstream - self._pushed:
                with self._repo() as repo:
                    push_outputs(repo, [self._project.stage(each) for each in sorted(missing)])
                self._pushed.update(missing)

        self.with_retries(f"uploading the inputs of {name} to the DVC remote", push)

    def note_pushed(self, name: str) -> None:
        """Record that the remote has the outputs of a stage."""
        self._pushed.add(name)

    def pull_inputs(self, name: str, upstream: Iterable[str]) -> None:
        """Get what the stage reads of the outputs of `upstream`: from this machine's cache, or the remote."""

        def pull() -> None:
            with self._repo() as repo, repo.lock:
                others = [self._project.stage(each) for each in upstream]
                pull_parts(repo, inputs_of(self._project.stage(name), others))

        self.with_retries(f"downloading the inputs of {name} from the DVC remote", pull)

    def push_result(self, name: str) -> None:
        """Upload the stage's outputs, then its run-cache entry. An existing entry on the remote is kept.

        An existing entry whose data is missing is replaced.
        """

        def push() -> None:
            with self._repo() as repo:
                stage = self._project.stage(name)
                key, value = stage_key(stage), stage_value(stage)
                files, root = remote_files(repo)
                there = files.join(root, *entry_folder(key))
                found = entries(files, there)
                if any(path not in self._broken or not is_data_missing(repo, stage, path) for path in found):
                    return
                push_outputs(repo, [stage])
                files.makedirs(there)
                files.put_file(str(cached_entries(repo, key) / value), files.join(there, value))
                for path in found:
                    if files.name(path) != value:
                        files.rm_file(path)

        self.with_retries(f"uploading the result of {name} to the DVC remote", push)

    def checkpoints(self, key: str, folder: Path) -> "Checkpoints":
        with self._repo() as repo:
            files, root = remote_files(repo)
        return Checkpoints(files, files.join(root, CHECKPOINTS, key), folder, self._log)


def is_transferable(stage: PipelineStage) -> bool:
    """Return whether the result of a stage can be transferred between machines.

    DVC's run cache excludes stages without dependencies and stages with persistent outputs. DVC does not push
    outputs with `cache: false`.
    """
    return bool(stage.deps and stage.outs) and all(out.use_cache and not out.persist for out in stage.outs)


def check_remote(repository: Path) -> None:
    """Check that machines can exchange data.

    Raises:
        InputError: no default DVC remote is set, or it does not support a run cache.
    """
    with open_repo(repository) as repo:
        try:
            remote_files(repo)
        except NoRemoteError:
            raise InputError(
                f"{repository}: no default DVC remote is set, which machines need to exchange data"
            ) from None
        except ConfigError as error:
            raise InputError(f"{repository}: DVC remote: {one_line(error)}") from None
