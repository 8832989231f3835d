"""Checkouts of the repository for flow runs: each is a git worktree at a pinned commit.

DVC hashes dependencies after a stage has run. If a file were edited while a stage runs, dvc.lock would record
inputs that the stage never read. Nobody edits a run's own checkout, and the user's files and branch stay
untouched. The checkout uses the repository's DVC cache, so nothing is computed twice.

    runs/.checkouts/NAME/         the worktree of a running flow
    runs/.checkouts/NAME.lock     locked while that flow is alive; holds the id of its run
    runs/.running.lock            shared lock of all running flows; exclusive lock of `cxr prune`

NAME.lock also reserves the name. A killed flow leaves it unlocked, and the next flow removes both.
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
from flows.repository.git import UNATTENDED_LABEL, git
from tasks.support.cli import InputError
from tasks.support.locks import lock_file

#: Folder in the repository, ignored by git and DVC, with the results of each run and the checkouts.
RUNS = Path("runs")

CHECKOUTS = RUNS / ".checkouts"

#: No run starts while another process holds this lock exclusively.
RUNNING = RUNS / ".running.lock"

#: Given twice, because a worktree stays locked if git was killed while creating it.
FORCED = ("--force", "--force")


class Leftover(NamedTuple):
    """The checkout of a killed flow."""

    name: str
    run: str


def numbered(name: str) -> Iterator[str]:
    """Yield NAME, NAME-2, NAME-3, ..."""
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
    """Create a worktree of a commit for a flow run, with a detached HEAD, and remove it on exit.

    Its folder is called NAME. If another running flow of this repository has that name, or `taken()` contains
    it, the folder is called NAME-2, and so on. The name stays reserved until exit.

    However the run ends, the outputs of its finished stages stay in the DVC cache for the next run.
    """
    parent = repository / CHECKOUTS
    parent.mkdir(parents=True, exist_ok=True)
    folders = (parent / numbered_name for numbered_name in numbered(name))
    with (repository / RUNNING).open("ab+") as running:
        lock_file(running, fcntl.LOCK_SH)
        folder, lock = next((folder, lock) for folder in folders if (lock := _reserve(folder, taken)))
        with lock:
            lock.write(run.encode())
            lock.flush()
            os.fsync(lock.fileno())
            try:
                if folder.exists():  # its lock file was lost
                    _clear(repository, folder)
                # --force, because git may still list a worktree here that was deleted by hand.
                git(repository, "worktree", "add", *FORCED, "--quiet", "--detach", str(folder), commit)
                share_cache(repository, folder)
                yield folder
            finally:
                _remove(repository, folder)


@contextmanager
def none_running(repository: Path) -> Iterator[bool]:
    """Yield whether no run is running. If True, no run can start before exit."""
    path = repository / RUNNING
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as running:
        try:
            lock_file(running, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _reserve(folder: Path, taken: Callable[[], Set[str]]) -> IO[bytes] | None:
    """Lock the name of a folder. Returns None if the name is taken."""
    path = _lock_of(folder)
    try:
        lock = _hold(path, "xb+")
    except (FileExistsError, BlockingIOError):
        return None
    if folder.name not in taken():  # checked under the lock: its previous holder may have just published
        return lock
    path.unlink()
    lock.close()
    return None


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _hold(path: Path, mode: Literal["rb+", "xb+"]) -> IO[bytes]:
    """Open a lock file and lock it.

    Raises:
        BlockingIOError: another process holds it or has just removed it.
        OSError: the file cannot be opened.
    """
    with ExitStack() as stack:
        lock = stack.enter_context(path.open(mode))
        lock_file(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(path, lock):
            raise BlockingIOError
        stack.pop_all()  # the caller closes it
    return lock


def _is_at(path: Path, lock: IO[bytes]) -> bool:
    """Return whether an open file is still the one at `path`, which may have been replaced."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    return False


def remove_leftovers(repository: Path) -> list[Leftover]:
    """Remove the checkouts of killed flows, and kill the processes that still run in them."""
    removed = []
    for folder, lock in _leftovers(repository):
        # After a power cut the lock file may hold anything.
        removed.append(Leftover(folder.name, lock.read().decode(errors="replace")))
        _remove(repository, folder)
    return removed


def find_leftovers(repository: Path) -> list[Path]:
    """Return the checkouts of killed flows."""
    return [folder for folder, _ in _leftovers(repository)]


def _leftovers(repository: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Yield each checkout of a killed flow with its lock, which is held until the next one is requested."""
    for path in sorted((repository / CHECKOUTS).glob("*.lock")):
        with suppress(BlockingIOError, FileNotFoundError), _hold(path, "rb+") as lock:
            yield path.with_suffix(""), lock


def _remove(repository: Path, folder: Path) -> None:
    _clear(repository, folder)
    if not folder.exists():
        _lock_of(folder).unlink(missing_ok=True)


def _clear(repository: Path, folder: Path) -> None:
    _end_processes_in(folder)
    with suppress(InputError):  # no worktree exists if creating it failed
        git(repository, "worktree", "remove", *FORCED, str(folder))
    shutil.rmtree(folder, ignore_errors=True)  # files written after git removed the worktree


def _end_processes_in(folder: Path) -> None:
    """Kill the stages and other commands of a run that work in a folder and outlived their flow.

    The shell or editor of somebody who looks at the checkout stays.
    """
    orphans = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            works_there = process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder)
            if works_there and UNATTENDED_LABEL in process.environ():
                process.kill()
                orphans.append(process)
    psutil.wait_procs(orphans, timeout=5)
