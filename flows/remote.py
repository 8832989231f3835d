"""What machines hand each other through the DVC remote, a stage at a time.

    REMOTE/files/md5/...                   data, as `dvc push` leaves them
    REMOTE/runs/KE/KEY/VALUE               what a stage made of what, as `dvc push --run-cache` leaves it
    REMOTE/retrain-checkpoints/KEY/FILE    how far a training has come that is not finished

KEY is DVC's own hash over a stage's command, dependencies, params and the paths of its outputs. DVC's
commands transfer the run cache as a whole, which grows with every run that ever was; here a stage's entry
goes alone, only after its data, and none goes where another machine was first: all take the same.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from dvc.config import ConfigError, NoRemoteError
from dvc.exceptions import CollectCacheError
from dvc.repo import Repo
from dvc.stage import PipelineStage
from dvc.stage.cache import _get_cache_hash, _get_stage_hash
from dvc.stage.serialize import to_single_stage_lockfile
from dvc.utils.serialize import load_yaml

from flows.checkout import GitError
from flows.stages import Tell, is_restored
from tasks.cli import InputError, without_secrets

T = TypeVar("T")

#: A folder that nobody else makes: a DVC remote may be a bucket with other folders in it.
CHECKPOINTS = "retrain-checkpoints"

#: The path of a checkpoint. Nothing else is ever deleted in that folder.
CHECKPOINT = re.compile(rf".*/{CHECKPOINTS}/[0-9a-f]{{64}}/[A-Za-z0-9_-]+-\d+-[0-9a-f]{{16}}\.pt")

#: Seconds between tries while the remote doesn't answer.
DELAYS = (2, 5, 10, 20, 30, 60, 60)

#: Seconds that a transfer may go on after its run was stopped.
LAST_TRANSFER = 15.0

#: What git says where credentials are missing or refused.
GIT_DENIES = (
    "Authentication failed",
    "could not read Username",
    "Permission denied",
    "terminal prompts disabled",
)

#: What an entry of the run cache is called.
ENTRY = re.compile("[0-9a-f]{64}")

#: DVC's own API counts paths from the current folder, which all threads of a process share.
_ONE_AT_A_TIME = threading.RLock()


class RemoteAwayError(Exception):
    """What was asked did not answer, again and again."""


class DeniedError(InputError):
    """The credentials that this machine has won't do."""


def patiently(
    what: str,
    action: Callable[[], T],
    tell: Tell,
    stopped: threading.Event | None = None,
    delays: Sequence[float] = DELAYS,
) -> T:
    """Do what needs the network, again and again where that fails, by default for about three minutes.

    Raises:
        DeniedError: access is denied: another try would be denied too.
        RemoteAwayError: it failed each time.
    """
    stopped = stopped or threading.Event()
    for delay in (*delays, 0):
        try:
            return action()
        except Exception as error:  # each storage has errors of its own, and DVC wraps only some of them
            if isinstance(error, RemoteAwayError) or (
                isinstance(error, InputError) and not isinstance(error, GitError)
            ):
                raise
            said = f"{what}: {_in_a_line(error)}"
            if _is_denied(error):
                raise DeniedError(said) from None
        if not delay or stopped.is_set():
            break
        tell(f"{said}; trying again in {delay} s")
        stopped.wait(delay)
    raise RemoteAwayError(said)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_denied(error: Exception) -> bool:
    names = {type(each).__name__ for each in _chain(error)}
    settings = any(isinstance(each, ConfigError) for each in _chain(error))
    if isinstance(error, GitError):
        return any(words in str(error) for words in GIT_DENIES)
    return settings or bool(names & {"PermissionError", "NoCredentialsError"})


def _in_a_line(error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return without_secrets(said)


@contextmanager
def opened(folder: Path) -> Iterator[Repo]:
    """DVC's own API on a repository or checkout, in one thread at a time."""
    with _ONE_AT_A_TIME, chdir(folder), Repo(str(folder), _wait_for_lock=True) as repo:
        yield repo


class Remote:
    """The default DVC remote, as the stages of one checkout use it."""

    def __init__(self, checkout: Path, tell: Tell, stopped: threading.Event | None = None) -> None:
        """Once `stopped` is set, nothing more is begun."""
        self._checkout, self._tell = checkout, tell
        self._stopped = stopped or threading.Event()
        self._pushed: set[str] = set()
        self._keys: dict[str, str] = {}
        self._broken: set[str] = set()

    def patiently(self, what: str, action: Callable[[], T]) -> T:
        return patiently(what, action, self._tell, self._stopped)

    @contextmanager
    def _repo(self) -> Iterator[Repo]:
        logging.getLogger("dvc").setLevel(logging.WARNING)
        with _ONE_AT_A_TIME:
            if self._stopped.is_set():
                raise RemoteAwayError("stopped")
            with opened(self._checkout) as repo:
                yield repo

    def wait_for_end(self) -> None:
        """Wait until what goes on, in other threads, has ended: nothing new begins once it is stopped."""
        if _ONE_AT_A_TIME.acquire(timeout=LAST_TRANSFER):
            _ONE_AT_A_TIME.release()

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

        return self.patiently(f"looking for {name} on the DVC remote", look)

    def _restore(self, name: str) -> tuple[list[str], bool]:
        """The entries that the remote has, and whether the result is there now."""
        with self._repo() as repo, repo.lock:
            stage = repo.stage.load_one(name=name)
            if is_restored(stage):
                return [], True
            key = self._keys[name] = _key_of(stage)
            files, root = _files(repo)
            found = _entries(files, files.join(root, *_entry_folder(key)))
            for path in found[:1]:  # all machines take the same one
                _get(files, path, _cached(repo, key) / files.name(path))
            restored = bool(found) and is_restored(stage, pull=True)
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

        self.patiently(f"sending the inputs of {name} to the DVC remote", push)

    def note_pushed(self, name: str) -> None:
        """Know that the remote has the outputs of a stage."""
        self._pushed.add(name)

    def pull_inputs(self, name: str) -> None:
        """Bring just what the stage reads of other stages."""

        def pull() -> None:
            with self._repo() as repo:
                if targets := _inputs(repo, repo.stage.load_one(name=name)):
                    repo.pull(targets=targets, force=True)

        self.patiently(f"getting the inputs of {name} from the DVC remote", pull)

    def push_result(self, name: str) -> None:
        """Send the stage's outputs, and then word of them; a result that the remote has already stays.

        An entry there of which the data are gone is replaced.
        """

        def push() -> None:
            with self._repo() as repo:
                stage = repo.stage.load_one(name=name)
                key, value = _key_of(stage), _get_cache_hash(to_single_stage_lockfile(stage))
                files, root = _files(repo)
                there = files.join(root, *_entry_folder(key))
                found = _entries(files, there)
                if any(path not in self._broken or not _lacks_data(repo, stage, path) for path in found):
                    return
                repo.push(targets=[name])
                files.makedirs(there)
                files.put_file(str(_cached(repo, key) / value), files.join(there, value))
                for path in found:
                    if files.name(path) != value:
                        files.rm_file(path)

        self.patiently(f"sending the result of {name} to the DVC remote", push)

    def checkpoints(self, key: str, folder: Path) -> "Checkpoints":
        with self._repo() as repo:
            files, root = _files(repo)
        return Checkpoints(files, files.join(root, CHECKPOINTS, key), folder, self._tell)


def can_travel(stage: PipelineStage) -> bool:
    """Whether another machine can hand over what the stage makes.

    DVC keeps no run of a stage without inputs or with outputs that persist, and pushes no output that it
    doesn't cache.
    """
    return bool(stage.deps and stage.outs) and all(out.use_cache and not out.persist for out in stage.outs)


def _key_of(stage: PipelineStage) -> str:
    stage.save_deps()
    key: str = _get_stage_hash(stage)
    return key


def _entry_folder(key: str) -> tuple[str, ...]:
    return "runs", key[:2], key


def _cached(repo: Repo, key: str) -> Path:
    """Where this machine's DVC cache has the entries of a key."""
    return Path(repo.stage_cache.cache_dir).parent.joinpath(*_entry_folder(key))


def _entries(files: Any, folder: str) -> list[str]:
    return [path for path in _find(files, folder) if ENTRY.fullmatch(files.name(path))]


def _lacks_data(repo: Repo, stage: PipelineStage, entry: str) -> bool:
    """Whether data of the stage's entry are gone from the remote: it may just have been away for a while."""
    files, _ = _files(repo)
    path = _cached(repo, _key_of(stage)) / files.name(entry)
    _get(files, entry, path)
    made = repo.stage_cache._create_stage(load_yaml(str(path)), wdir=stage.wdir)
    try:
        states = [repo.cloud.status(objects) for objects in made.get_used_objs().values()]
    except CollectCacheError:  # the list of a folder's files
        return True
    return any(state.missing or state.new for state in states)


def _inputs(repo: Repo, stage: PipelineStage) -> list[str]:
    """The outputs of other stages, or the parts of them, that a stage reads."""
    targets = set()
    outs = [Path(out.fs_path) for out in repo.index.outs]
    for path in (Path(dep.fs_path) for dep in stage.deps):
        if any(path.is_relative_to(out) for out in outs):
            targets.add(path)
        targets |= {out for out in outs if out.is_relative_to(path)}
    return sorted(str(path) for path in targets)


def _files(repo: Repo) -> tuple[Any, str]:
    """The remote's file system, and its folder there."""
    odb = repo.cloud.get_remote_odb(None, "push", hash_name="md5-dos2unix")
    return odb.fs, odb.path


def _find(files: Any, folder: str) -> list[str]:
    with suppress(FileNotFoundError):
        return sorted(files.find(folder))
    return []


def _get(files: Any, path: str, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    # Not in the same folder: DVC takes whatever lies among its entries for one.
    beside = to.parent.with_name(f".{to.name}.{os.getpid()}")
    files.get_file(path, str(beside))
    beside.replace(to)


class Checkpoints:
    """The checkpoints of one training, here and on the remote, where they outlive this machine.

    with remote.checkpoints(key, folder) as checkpoints:
        ...
        checkpoints.remove()
    """

    #: Seconds between two looks at the folder.
    EVERY = 5.0

    #: Sending may take this share of the time: a checkpoint is three times as large as its network.
    SHARE_OF_TIME = 0.1

    def __init__(self, files: Any, there: str, folder: Path, tell: Tell) -> None:
        self._files, self._there, self._folder, self._tell = files, there, folder, tell
        self._sent: dict[str, tuple[int, int]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_sending, daemon=True)

    def __enter__(self) -> "Checkpoints":
        """Take up those that are on the remote, and send each new one there from now on."""
        patiently("looking for checkpoints", self._fetch, self._tell)
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        """Send the last."""
        self._ended.set()
        self._thread.join()
        self._send()

    def remove(self) -> None:
        """Delete them on the remote: the training is finished."""
        self._ended.set()
        self._thread.join()
        for path in self._folder.glob("*.pt"):
            path.unlink()
        try:
            for there in _checkpoints(self._files, self._there):
                self._files.rm_file(there)
        except Exception as error:  # another run has no use for it, and the next sweep takes it
            self._tell(f"checkpoints stay on the remote: {_in_a_line(error)}")

    def _fetch(self) -> None:
        for path in _checkpoints(self._files, self._there):
            name = self._files.name(path)
            _get(self._files, path, self._folder / name)
            self._sent[name] = _version(self._folder / name)
            self._tell(f"took up the checkpoint {name}")

    def _keep_sending(self) -> None:
        pause = self.EVERY
        while not self._ended.wait(pause):
            started = time.monotonic()
            self._send()
            pause = max(self.EVERY, (time.monotonic() - started) / self.SHARE_OF_TIME)

    def _send(self) -> None:
        """Send what is new; a training goes on where that fails, and the next look tries again."""
        for path in sorted(self._folder.glob("*.pt")):
            snapshot = path.with_suffix(".sent")
            try:
                version = _version(path)
                if self._sent.get(path.name) == version:
                    continue
                # The training may replace it meanwhile.
                snapshot.unlink(missing_ok=True)
                snapshot.hardlink_to(path)
                self._files.makedirs(self._there)
                self._files.put_file(str(snapshot), self._files.join(self._there, path.name))
                self._sent[path.name] = version
            except FileNotFoundError:  # finished, just now
                continue
            except Exception as error:
                self._tell(f"warning: the checkpoint is not on the remote: {_in_a_line(error)}")
            finally:
                snapshot.unlink(missing_ok=True)


def _version(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def _checkpoints(files: Any, folder: str) -> list[str]:
    """The checkpoints in a folder and below it."""
    return [path for path in _find(files, folder) if CHECKPOINT.fullmatch(path)]


def sweep_checkpoints(checkout: Path, older_than: float) -> None:
    """Delete checkpoints on the remote that were sent more than so many seconds ago."""
    with opened(checkout) as repo:
        files, root = _files(repo)
    for path in _checkpoints(files, files.join(root, CHECKPOINTS)):
        with suppress(FileNotFoundError):  # finished, just now
            if time.time() - files.modified(path).timestamp() > older_than:
                files.rm_file(path)


def check_remote(repository: Path) -> None:
    """See that data can go to other machines and come back.

    Raises:
        InputError: no default DVC remote is set, or one that has no run cache.
    """
    with opened(repository) as repo:
        try:
            _files(repo)
        except NoRemoteError:
            raise InputError(
                f"{repository}: no default DVC remote is set, by which machines hand over data"
            ) from None
        except ConfigError as error:
            raise InputError(f"{repository}: DVC remote: {_in_a_line(error)}") from None
