"""Checks of processors, GPUs, memory, disks and file locks."""

import fcntl
import importlib.util
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from flows.checks.check import Check, Finding, fault, ok, warning
from flows.repository.checkout import RUNS
from flows.repository.git import run
from tasks.support.cpus import available_cores
from tasks.support.gpus import visible_gpus
from tasks.support.locks import HOW_TO_GET_LOCKS, NO_LOCKS

MB, GB = 1e6, 1e9

#: Free space in bytes without which no run gets far, and from which all of the dataset fits.
FULL, ENOUGH = 20 * MB, 10 * GB

FREE_SOME = "free some space, for example with `cxr prune`"

#: Number of files that must still fit.
FILES = 1000

#: Free memory in bytes below which the system may kill a training.
LITTLE_MEMORY = 2 * GB

#: The memory that processes share, as a file system.
SHARED = Path("/dev/shm")  # noqa: S108

#: Its size in bytes that trainings in several processes need. Docker's default is 64 MB.
SHARED_MEMORY = 256 * MB

#: What torch says about itself. Loading it takes seconds, and may crash, so another process does it.
ASK_TORCH = """
import json, torch
try:
    torch.cuda.init()
    error = ""
except Exception as raised:
    error = str(raised).partition("\\n")[0]
names = [torch.cuda.get_device_name(gpu) for gpu in range(torch.cuda.device_count())] if not error else []
print(json.dumps({"version": torch.__version__, "names": names, "error": error}))
"""

#: How to train without the GPUs that were found.
ON_CPU = "or set CUDA_VISIBLE_DEVICES= to train on the CPU"


# --- processors and memory ----------------------------------------------------------------------------------


def check_cores(folder: Path) -> Iterator[Finding]:
    cores, all_cores = available_cores(), os.cpu_count() or 1
    limited = f" of {all_cores}, because of a CPU quota or affinity" if cores < all_cores else ""
    yield ok(f"{cores} CPU cores{limited}")
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if first.isdecimal() and int(first) > cores:
        yield warning(
            f"OMP_NUM_THREADS is {first}, but this process may use {cores} cores: trainings slow down",
            "unset OMP_NUM_THREADS, or set it to the number of cores",
        )


def check_memory(folder: Path) -> Iterator[Finding]:
    memory, limit = psutil.virtual_memory(), memory_limit()
    total = min(memory.total, limit)
    limited = f" of {_size(memory.total)}, because of a memory limit" if total < memory.total else ""
    free = min(memory.available, total)
    if free < LITTLE_MEMORY:
        yield warning(
            f"{_size(free)} of memory are free: the system may end a training",
            "end other programs, or set a smaller training.batch_size",
        )
    else:
        yield ok(f"{_size(total)} of memory{limited}, {_size(free)} free")


def memory_limit(root: Path = Path("/")) -> float:
    """Return the memory in bytes that Linux' control groups leave to this process; infinity if unlimited."""
    limits = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "memory"):
            mount = root / "sys/fs/cgroup" / controllers
            file = "memory.limit_in_bytes" if controllers else "memory.max"
            own = Path(group.strip("/"))
            # In a container, its own group may be the mount.
            texts = [_text(mount / above / file).strip() for above in (own, *own.parents)]
            limits += [float(text) for text in texts if text.isdecimal()]
    return min(limits, default=math.inf)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:  # another system, or not mounted
        return ""


def check_shared_memory(folder: Path) -> Iterator[Finding]:
    """Check the memory through which the processes of one command work together."""
    if not SHARED.is_dir():
        return
    size = shutil.disk_usage(SHARED).total
    if why := why_unwritable(SHARED):
        yield fault(f"{SHARED} cannot be written to: {why}", f"make {SHARED} writable, with mode 1777")
    elif size < SHARED_MEMORY and len(visible_gpus()) > 1:
        yield warning(
            f"{SHARED} has {_size(size)}: trainings in several processes may fail",
            "give the container more, such as `docker run --shm-size 1g`",
        )
    else:
        yield ok(f"{_size(size)} of shared memory")


# --- GPUs ---------------------------------------------------------------------------------------------------


def check_torch_build(folder: Path) -> Iterator[Finding]:
    """Find a torch that cannot use this machine's GPUs, without loading it."""
    gpus, found = visible_gpus(), importlib.util.find_spec("torch")
    if not gpus or not found or not found.origin:
        return
    version = Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
    if not re.search(r"^(cuda|hip)\b.* = ['\"]", version, re.MULTILINE):
        yield fault(
            f"{_gpus(len(gpus))} visible, but torch was built without CUDA: trainings would use the CPU",
            f"install torch from an index that has the CUDA build, {ON_CPU}",
        )


def check_gpus(folder: Path) -> Iterator[Finding]:
    """Compare the GPUs of the driver, which runs distribute, with those that torch can use."""
    gpus, torch = visible_gpus(), _ask_torch(folder)
    usable = torch["names"]
    if gpus and not usable:
        yield fault(
            f"{_gpus(len(gpus))} visible, but torch {torch['version']} cannot use any: {torch['error']}",
            f"update the NVIDIA driver, install a torch build for it, {ON_CPU}",
        )
    elif usable and len(gpus) != len(usable):
        numbers = ",".join(map(str, range(len(usable))))
        yield warning(
            f"torch can use {_gpus(len(usable))}, but runs see {len(gpus)}",
            f"set CUDA_VISIBLE_DEVICES={numbers}, so that each stage gets a GPU of its own",
        )
    elif usable:
        yield ok(f"torch {torch['version']} can use {_gpus(len(usable))}: {', '.join(usable)}")
    else:
        yield ok(f"no GPU is visible: torch {torch['version']} uses the CPU")


def _ask_torch(folder: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run(folder, sys.executable, "-c", ASK_TORCH, timeout=60))
    return answer


def check_compiler(folder: Path) -> Iterator[Finding]:
    """Check that compiled code can be run from the temporary folder, as `compile` of params.yaml does."""
    temporary = Path(tempfile.gettempdir())
    if visible_gpus() and os.statvfs(temporary).f_flag & os.ST_NOEXEC:
        yield warning(
            f"{temporary} is mounted with noexec, so compiled trainings fail",
            "set TMPDIR to a folder on another disk, or set training.compile to none",
        )


# --- disks --------------------------------------------------------------------------------------------------


def places(folder: Path) -> list[Path]:
    """Return the folders that every run writes to."""
    wanted = (folder, folder / ".git", folder / ".dvc", folder / RUNS, Path(tempfile.gettempdir()))
    return [path for path in wanted if path.is_dir()]


def check_disks(folder: Path) -> Iterator[Finding]:
    devices = {path.stat().st_dev: path for path in reversed(places(folder))}
    for path in reversed(devices.values()):
        disk = os.statvfs(path)
        free = disk.f_bavail * disk.f_frsize
        if free < FULL:
            yield fault(f"{_size(free)} are free on the disk of {path}", FREE_SOME)
        elif disk.f_files and disk.f_favail < FILES:
            yield fault(f"the disk of {path} has no room for more files, whatever their size", FREE_SOME)
        elif free < ENOUGH:
            yield warning(
                f"{_size(free)} are free on the disk of {path}; all images and trainings need about "
                f"{_size(ENOUGH)}",
                FREE_SOME,
            )
        else:
            yield ok(f"{_size(free)} are free on the disk of {path}")


def check_writing(folder: Path) -> Iterator[Finding]:
    refused = {path: why for path in places(folder) if (why := why_unwritable(path))}
    for path, why in refused.items():
        yield fault(f"{path} cannot be written to: {why}", "change its permissions, or use another folder")
    if not refused:
        yield ok("the project's folders and the temporary folder can be written to")


def why_unwritable(folder: Path) -> str:
    """Return why no file can be created in a folder, or in the one where it would be created; else ""."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def check_locks(folder: Path) -> Iterator[Finding]:
    """Check that files can be locked where runs do so."""
    refused = [path for path in (folder, Path(tempfile.gettempdir())) if not _can_lock(path)]
    for path in refused:
        yield fault(
            f"the file system of {path} has no locks, which keep runs apart",
            HOW_TO_GET_LOCKS,
        )
    if not refused:
        yield ok("files can be locked")


def _can_lock(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in NO_LOCKS  # a folder that is not writable has a check of its own
    return True


def _size(bytes_: float) -> str:
    if bytes_ < GB:
        return f"{bytes_ / MB:.0f} MB"
    return f"{bytes_ / GB:.0f} GB" if bytes_ >= 10 * GB else f"{bytes_ / GB:.1f} GB"


def _gpus(count: int) -> str:
    return f"{count} GPU" if count == 1 else f"{count} GPUs"


CHECKS = (
    Check("cores", check_cores, before_runs=True),
    Check("memory", check_memory, before_runs=True),
    Check("shared memory", check_shared_memory, before_runs=True),
    Check("torch", check_torch_build, before_runs=True),
    Check("GPUs", check_gpus, limit=65),
    Check("compiler", check_compiler, before_runs=True),
    Check("disks", check_disks, before_runs=True),
    Check("permissions", check_writing, before_runs=True),
    Check("locks", check_locks, before_runs=True),
)
