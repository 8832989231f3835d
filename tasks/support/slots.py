"""Slots: the share of this machine that one stage may use, either a GPU of its own or some CPU cores.

Each GPU and core has a lock file, which the stage that uses it holds, whichever flow runs that stage. Two
flows of one user with the same temporary folder therefore never share a GPU. No setup is needed, and a killed
flow leaves nothing behind: the operating system releases a lock when its last holder ends.

A training that no flow started takes a slot by itself, such as those of `dvc queue start --jobs 2`.

A cluster job has slots of its own: its GPUs and cores are numbered from 0, whichever they are.
"""

import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from tasks.support.cli import InputError
from tasks.support.cpus import available_cores
from tasks.support.gpus import visible_gpus
from tasks.support.locks import lock_file

#: Environment variable of a process that runs in a slot, and of its child processes.
VARIABLE = "RETRAIN_SLOT"

#: Seconds between two attempts to lock a free GPU or core.
POLL = 0.5


class Slot(NamedTuple):
    """The share of the machine that one stage holds."""

    variables: dict[str, str]
    """Environment variables that restrict the stage to its slot."""
    locks: tuple[int, ...]
    """File descriptors of the locks. The slot stays taken while a child process has inherited them."""


class Slots:
    """The slots of this machine. A slot consists of one or more units (GPUs or cores)."""

    def __init__(
        self,
        units: list[str],
        per_stage: int,
        variables: Callable[[list[str]], dict[str, str]],
        more: Mapping[str, int] | None = None,
    ) -> None:
        """Create the slots. `more` maps the stages that need another number of units to that number.

        Raises:
            InputError: the folder for the lock files is accessible to other users.
        """
        self._units, self._per_stage, self._variables, self._more = units, per_stage, variables, more or {}
        job = os.environ.get("SLURM_JOB_ID", "")
        name = "-".join(filter(None, ("covid-qu-ex-slots", str(os.getuid()), job)))
        self._folder = _private_folder(Path(tempfile.gettempdir()) / name)

    def __len__(self) -> int:
        """Return the number of stages that can run at the same time."""
        return max(1, len(self._units) // self._per_stage)

    @contextmanager
    def acquire(self, log: Callable[[str], None], stage: str = "") -> Iterator[Slot]:
        """Hold a slot for a stage. Waits while other flows hold all of them."""
        count = min(self._more.get(stage, self._per_stage), len(self._units))
        waited = False
        while True:
            with ExitStack() as stack:
                held = self._try(stack, count)
                if len(held) == count:
                    locks = tuple(file.fileno() for _, file in held)
                    units = [unit for unit, _ in held]
                    yield Slot(self._variables(units) | {VARIABLE: ",".join(units)}, locks)
                    return
            if not waited:
                log(f"waiting for a free slot: other runs on this machine use {', '.join(self._units)}")
                waited = True
            time.sleep(POLL)

    def _try(self, stack: ExitStack, count: int) -> list[tuple[str, IO[bytes]]]:
        """Lock up to `count` units that are free."""
        held: list[tuple[str, IO[bytes]]] = []
        with self._open("choosing") as turn:
            lock_file(turn, fcntl.LOCK_EX)  # one process at a time, or two could hold half a slot each
            for unit in self._units:
                if len(held) == count:
                    break
                file = stack.enter_context(self._open(unit.replace("/", "_")))
                with suppress(BlockingIOError):
                    lock_file(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held.append((unit, file))
        return held

    def _open(self, name: str) -> IO[bytes]:
        def opener(path: str, flags: int) -> int:
            return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)

        return open(self._folder / name, "rb+", opener=opener)


def _private_folder(folder: Path) -> Path:
    """Create a folder, or accept an existing one that only this user can access.

    Its parent is writable by every user, so somebody else could have created it first, with symlinks in it.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise InputError(
            f"{folder} must be a folder that belongs to you and has mode 0700; "
            "remove it, or set TMPDIR to another folder"
        )
    return folder


class Wanted(Protocol):
    """What a training needs."""

    @property
    def threads(self) -> int:
        """CPU threads; 0 uses all cores."""

    @property
    def processes(self) -> int:
        """Processes, each with a GPU of its own."""


def slots_for(trainings: Mapping[str, Wanted]) -> Slots:
    """Return the slots of this machine for trainings, by name.

    On a machine with GPUs, a slot is one GPU, or one GPU for each process of a training, with a proportional
    share of the CPU threads. CUDA_VISIBLE_DEVICES can restrict the GPUs. On a CPU, the number of slots
    follows from the threads that a training uses. params.yaml sets them, because they change the last digits
    of results.

    Raises:
        InputError: the folder for the lock files is accessible to other users.
    """
    cores = available_cores()
    if gpus := visible_gpus():
        prefix = "gpu-"

        def variables(units: list[str]) -> dict[str, str]:
            threads = str(max(1, len(units) * cores // len(gpus)))
            return {
                "CUDA_VISIBLE_DEVICES": ",".join(unit.removeprefix(prefix) for unit in units),
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
            }

        processes = {f"train@{name}": training.processes for name, training in trainings.items()}
        return Slots([prefix + gpu for gpu in gpus], per_stage=1, variables=variables, more=processes)
    threads_each = max(training.threads or cores for training in trainings.values())
    return Slots(
        [f"core-{number}" for number in range(cores)],
        per_stage=min(threads_each, cores),
        variables=lambda _: {},
    )


@contextmanager
def own_slot(name: str, training: Wanted) -> Iterator[None]:
    """Run a training in a slot, unless this process has been started in one.

    Must come before the first use of CUDA.
    """
    if VARIABLE in os.environ:
        yield
        return
    with slots_for({name: training}).acquire(lambda line: print(line, flush=True), f"train@{name}") as slot:
        before = {variable: os.environ.get(variable) for variable in slot.variables}
        os.environ.update(slot.variables)
        try:
            yield
        finally:
            for variable, value in before.items():
                os.environ.pop(variable) if value is None else os.environ.update({variable: value})
