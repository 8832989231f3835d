"""Runs several processes that train one network together, using torchrun's launcher."""

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.normalisation import synchronised
from tasks.support.cli import InputError

#: Seconds that the other processes get to exit after the first one exits, or after a signal.
GRACE = 10

#: Exit status of a process that ran out of memory.
MEMORY_SHORT = 12


class Group(NamedTuple):
    """The rank of this process and the number of processes. Only the first prints and writes files."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def rows(self, count: int) -> slice | Tensor:
        """This process's images of a batch of `count`; if there are too few, processes share an image."""
        if count >= self.size:
            return slice(self.rank, None, self.size)
        return torch.tensor([self.rank % count])

    def total(self, tensor: Tensor) -> Tensor:
        """Sum the tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def shared(self, text: str) -> str:
        """The text of the first process, in all processes."""
        if self.size == 1:
            return text
        box = [text]
        dist.broadcast_object_list(box)
        return box[0]

    def synchronised(self, network: nn.Module) -> nn.Module:
        """The network, with batch normalisation over the batches of all processes."""
        return network if self.size == 1 else synchronised(network)

    def wrapped(self, network: nn.Module) -> nn.Module:
        """The network with gradients averaged over all processes."""
        if self.size == 1:
            return network
        return DistributedDataParallel(network, forward_sync_buffers=False, gradient_as_bucket_view=True)


ALONE = Group()

#: Exit statuses of a process that was terminated, as the others are after one has failed.
TERMINATED = (-signal.SIGTERM, 128 + signal.SIGTERM)


@contextmanager
def joined(processes: int) -> Iterator[Group]:
    """Join the processes that torchrun started; yields `ALONE` if this is the only process.

    Raises:
        InputError: the number of processes differs from the plan, or exceeds the number of GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size != processes:
        raise InputError(f"processes: {processes}, but torchrun started {size}; the numbers must be equal")
    if size == 1:
        yield ALONE
        return
    gpus = torch.cuda.device_count()
    if 0 < gpus < size:
        raise InputError(f"processes: {processes}, but this machine has {gpus} GPUs; each process needs one")
    rank = int(os.environ["RANK"])
    if gpus:
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if gpus else "gloo")
    yield Group(rank, size)
    dist.destroy_process_group()


def is_member() -> bool:
    """Whether torchrun started this process."""
    return "WORLD_SIZE" in os.environ


def launch(processes: int, *command: str) -> None:
    """Run `python COMMAND` in this many processes, as torchrun does; exit with the status of a failed one.

    Raises:
        torch.OutOfMemoryError: a process ran out of memory.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the stage reports errors itself
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            shutdown_timeout=GRACE,
            logs_specs=DefaultLogsSpecs(folder, redirects=dict.fromkeys(range(1, processes), Std.ERR)),
        )
        try:
            elastic_launch(config, sys.executable)(*command)
        except SignalException as ended:
            sys.exit(128 + ended.sigval)
        except ChildFailedError as error:
            statuses = {rank: failure.exitcode for rank, failure in error.failures.items()}
            if MEMORY_SHORT in statuses.values():
                raise torch.OutOfMemoryError from None
            # All processes report a user error. Print it once, unless the first was terminated before.
            said = statuses.get(0) not in TERMINATED
            for log in sorted(Path(folder).rglob("stderr.log")):
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
                sys.stderr.writelines(line for line in lines if not (said and line.startswith("error: ")))
            sys.exit(_status(statuses))


def _status(statuses: dict[int, int]) -> int:
    """The common exit status: the signal that killed a process, else the status of the first that failed."""
    own = {rank: status for rank, status in statuses.items() if status not in TERMINATED}
    if killed := [-status for status in own.values() if status < 0]:
        return 128 + killed[0]
    return own[min(own)] if own else 128 + signal.SIGTERM
