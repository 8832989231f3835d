"""What of this machine a stage may use: a GPU of its own, or its share of the CPU's cores.

A lock on a file holds a GPU or a core for one stage, whichever flow runs that stage: two flows on one
machine never use a GPU twice. Nothing has to be set up before, and nothing is left behind by a flow that was
killed, since the system takes a lock back when its last holder ends.
"""

import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from tasks.common.cores import available_cores
from tasks.settings.schema import Params
from tasks.support.cli import InputError

#: Seconds between two looks for a free GPU or core.
POLL = 0.5


class Slot(NamedTuple):
    """What one stage has to itself."""

    variables: dict[str, str]
    """Environment variables that keep the stage to its slot."""
    locks: tuple[int, ...]
    """Open files whose inheritance keeps the slot taken."""


class Slots:
    """The slots of this machine: each some units (GPUs or cores) that one stage takes together."""

    def __init__(
        self,
        units: list[str],
        per_stage: int,
        variables: Callable[[list[str]], dict[str, str]],
        more: Mapping[str, int] | None = None,
    ) -> None:
        """`more` holds the stages that take another number of units.

        Raises:
            InputError: the folder for the locks is not this user's alone.
        """
        self._units, self._per_stage, self._variables, self._more = units, per_stage, variables, more or {}
        self._folder = _private_folder(Path(tempfile.gettempdir()) / f"covid-qu-ex-slots-{os.getuid()}")

    def __len__(self) -> int:
        """How many stages may run at the same time."""
        return max(1, len(self._units) // self._per_stage)

    @contextmanager
    def take(self, log: Callable[[str], None], stage: str = "") -> Iterator[Slot]:
        """Hold a slot for a stage, waiting for one where other flows have them all."""
        count = min(self._more.get(stage, self._per_stage), len(self._units))
        waited = False
        while True:
            with ExitStack() as stack:
                held = self._try(stack, count)
                if len(held) == count:
                    locks = tuple(file.fileno() for _, file in held)
                    yield Slot(self._variables([unit for unit, _ in held]), locks)
                    return
            if not waited:
                log(f"waiting: other runs on this machine hold {', '.join(self._units)}")
                waited = True
            time.sleep(POLL)

    def _try(self, stack: ExitStack, count: int) -> list[tuple[str, IO[bytes]]]:
        """Lock so many units, if they are free."""
        held: list[tuple[str, IO[bytes]]] = []
        with self._open("choosing") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)  # one at a time, or two could each hold half
            for unit in self._units:
                if len(held) == count:
                    break
                file = stack.enter_context(self._open(unit.replace("/", "_")))
                with suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held.append((unit, file))
        return held

    def _open(self, name: str) -> IO[bytes]:
        return open(os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "rb+")


def _private_folder(folder: Path) -> Path:
    """Make a folder, or use an existing one that only this user can write to.

    Others can write to the folder around it, and could have made this one before, with links in it.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise InputError(
            f"{folder}: must be a folder that belongs to you and has mode 0700; "
            "remove it, or set TMPDIR to another folder"
        )
    return folder


def compute_slots(params: Params) -> Slots:
    """The slots of this machine for the trainings of `params`.

    With GPUs, of which CUDA_VISIBLE_DEVICES may leave some out, a slot is one GPU, or one for each process
    of a training, with its share of the cores' threads. On the CPU there are as many slots as fit by the
    threads that a training takes, which params.yaml sets, since they change its last digits.
    """
    cores = available_cores()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = _gpu_ids() if visible is None else [gpu for gpu in visible.split(",") if gpu and gpu != "-1"]
    if gpus:
        prefix = "gpu-"

        def variables(units: list[str]) -> dict[str, str]:
            threads = str(max(1, len(units) * cores // len(gpus)))
            return {
                "CUDA_VISIBLE_DEVICES": ",".join(unit.removeprefix(prefix) for unit in units),
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
            }

        processes = {f"train@{name}": plan.processes for name, plan in params.plans.items()}
        return Slots([prefix + gpu for gpu in gpus], per_stage=1, variables=variables, more=processes)
    threads_each = max(plan.threads or cores for plan in params.experiments.values())
    return Slots(
        [f"core-{number}" for number in range(cores)],
        per_stage=min(threads_each, cores),
        variables=lambda _: {},
    )


def _gpu_ids() -> list[str]:
    """The NVIDIA GPUs of this machine, as the driver lists them."""
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number, _ in enumerate(folder.iterdir())] if folder.is_dir() else []
