"""A checkout of the repository for one flow run: a git worktree at a pinned commit.

DVC hashes dependencies after a stage has run, so a file edited meanwhile would make dvc.lock claim what
did not happen. In a checkout of its own nobody edits, and the user's files and branch are never touched.
The DVC cache is the repository's own: nothing is computed twice.

    runs/.checkouts/NAME/         the worktree of a running flow
    runs/.checkouts/NAME.lock     locked for as long as that flow lives; holds the id of its run
    runs/.running.lock            locked by all running flows together, or by `cxr prune` alone

The lock also reserves the name. A flow that is killed leaves it unlocked, and the next one removes both.
"""

import fcntl
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Literal, NamedTuple

import psutil

from flows.repository.dvc_internals import share_cache
from flows.repository.git import git
from tasks.support.cli import InputError

#: Under the repository, ignored by git and DVC: results by run name, and the checkouts of running flows.
RUNS = Path("runs")

CHECKOUTS = RUNS / ".checkouts"

#: No run starts while another process holds it alone.
RUNNING = RUNS / ".running.lock"

#: A worktree may be locked too, where git was killed while it made it.
FORCED = ("--force", "--force")


class Leftover(NamedTuple):
    """A checkout whose flow was killed."""

    name: str
    run: str


def numbered(name: str) -> Iterator[str]:
    """NAME, NAME-2, NAME-3, ..."""
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


@contextmanager
def checked_out(
    repository: Path,
    commit: str,
    name: str,
    run: str,
    taken: Callable[[], Set[str]] = set,
) -> Iterator[Path]:
    """A worktree of a commit for a flow run, on no branch, removed at the end.

    Its folder is called NAME. Where another running flow of this repository has that name, or it is among
    those `taken`, it is NAME-2, and so on. No other flow gets the name until the end.

    What finished stages made is in the DVC cache, where the next run finds it, however this one ends.
    """
    parent = repository / CHECKOUTS
    parent.mkdir(parents=True, exist_ok=True)
    folders = (parent / numbered_name for numbered_name in numbered(name))
    with (repository / RUNNING).open("ab") as running:
        fcntl.flock(running, fcntl.LOCK_SH)
        folder, lock = next((folder, lock) for folder in folders if (lock := _reserve(folder, taken)))
        with lock:
            lock.write(run.encode())
            lock.flush()
            os.fsync(lock.fileno())
            try:
                if folder.exists():  # its lock was lost
                    _clear(repository, folder)
                # Forced, since git may still know of a worktree here that was deleted by hand.
                git(repository, "worktree", "add", *FORCED, "--quiet", "--detach", str(folder), commit)
                share_cache(repository, folder)
                yield folder
            finally:
                _remove(repository, folder)


@contextmanager
def none_running(repository: Path) -> Iterator[bool]:
    """Whether no run is running; if so, none starts within."""
    path = repository / RUNNING
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as running:
        try:
            fcntl.flock(running, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _reserve(folder: Path, taken: Callable[[], Set[str]]) -> IO[bytes] | None:
    """The lock of a folder's name; None where that is taken."""
    path = _lock_of(folder)
    try:
        lock = _hold(path, "xb+")
    except (FileExistsError, BlockingIOError):
        return None
    if folder.name not in taken():  # asked under the lock: who had it before may just have published
        return lock
    path.unlink()
    lock.close()
    return None


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _hold(path: Path, mode: Literal["rb+", "xb+"]) -> IO[bytes]:
    """Open a lock file and lock it.

    Raises:
        BlockingIOError: another process holds it, or has just removed it.
        OSError: it can't be opened.
    """
    with ExitStack() as stack:
        lock = stack.enter_context(path.open(mode))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(path, lock):
            raise BlockingIOError
        stack.pop_all()  # whoever gets it closes it
    return lock


def _is_at(path: Path, lock: IO[bytes]) -> bool:
    """Whether an open file is the one at a path still; it may have been removed, and another made there."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    return False


def remove_leftovers(repository: Path) -> list[Leftover]:
    """Remove the checkouts whose flow was killed, and end what still runs in them."""
    removed = []
    for folder, lock in _leftovers(repository):
        # A power cut may have left anything in it.
        removed.append(Leftover(folder.name, lock.read().decode(errors="replace")))
        _remove(repository, folder)
    return removed


def find_leftovers(repository: Path) -> list[Path]:
    """The checkouts whose flow was killed."""
    return [folder for folder, _ in _leftovers(repository)]


def _leftovers(repository: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """The checkouts whose flow was killed, each with its lock, which is held until the next."""
    for path in sorted((repository / CHECKOUTS).glob("*.lock")):
        with suppress(BlockingIOError, FileNotFoundError), _hold(path, "rb+") as lock:
            yield path.with_suffix(""), lock


def _remove(repository: Path, folder: Path) -> None:
    _clear(repository, folder)
    if not folder.exists():
        _lock_of(folder).unlink(missing_ok=True)


def _clear(repository: Path, folder: Path) -> None:
    _end_processes_in(folder)
    with suppress(InputError):  # there is none where making it failed
        git(repository, "worktree", "remove", *FORCED, str(folder))
    shutil.rmtree(folder, ignore_errors=True)  # what was written there meanwhile


def _end_processes_in(folder: Path) -> None:
    """Kill what works in a folder: the stages that outlived their flow."""
    orphans = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder):
                process.kill()
                orphans.append(process)
    psutil.wait_procs(orphans, timeout=5)
