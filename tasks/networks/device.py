"""The device, threads and number format of a computation, and the settings that make it reproducible."""

import ctypes
import os
import shutil
import sysconfig
import tempfile
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tasks.support.cli import InputError
from tasks.support.cpus import available_cores
from tasks.support.gpus import visible_gpus

#: Minimum number of images in a training on a GPU for which compiling the network pays off.
WORTH_COMPILING = 100_000

#: glibc's `mallopt` parameters (number, value) that keep freed memory in the process.
KEEP_MEMORY = {"M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 64 << 20), "M_MMAP_MAX": (-4, 0)}


class Compute(NamedTuple):
    """Device and number format of a computation; `precision` is fp32 or bf16."""

    device: torch.device
    precision: str

    def autocast(self) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bf16"
        )
        return context

    def place(self, tensor: Tensor) -> Tensor:
        """Move a batch (N, C, H, W) to the device, in the channels-last layout that convolutions prefer."""
        return tensor.to(self.device, memory_format=torch.channels_last, non_blocking=True)


def set_up(seed: int, precision: str, threads: int, processes: int = 1) -> Compute:
    """Seed all generators, require deterministic algorithms, and choose device and number format.

    Args:
        precision: auto, fp32 or bf16; auto is bf16 where the hardware is faster at it than at fp32.
        threads: CPU threads; 0 uses OMP_NUM_THREADS if that is a positive number (or a list that starts with
            one), otherwise all cores that this process may use. The number affects the last digits of a
            result.
        processes: number of processes that share the threads.
    """
    # cuBLAS is deterministic only with a workspace of fixed size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # use_deterministic_algorithms(True) has the same effect but loads the compiler, which takes two seconds.
    torch.set_deterministic_debug_mode("error")
    # Deterministic mode also fills new memory with NaN, a tenth of a step. Nothing reads unwritten memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    threads = threads or _threads_of_environment() or available_cores()
    torch.set_num_threads(max(1, threads // processes))
    _keep_freed_memory()
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and visible_gpus():
        _warn_of_unused_gpu()
    if precision == "auto":
        precision = "bf16" if _has_fast_bf16(device) else "fp32"
    return Compute(device, precision)


@cache
def _warn_of_unused_gpu() -> None:
    """Say once why torch cannot use the GPUs that are visible."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        why = "it finds none"
    except (AssertionError, RuntimeError) as error:  # a build without CUDA; an old driver or no such GPU
        why = str(error).partition("\n")[0]
    print(
        f"warning: a GPU is visible, but torch {torch.__version__} uses the CPU, which is much slower: "
        f"{why}; `cxr doctor` says what to do",
        flush=True,
    )


def _threads_of_environment() -> int:
    """The number in OMP_NUM_THREADS; 0 if there is none. Like OpenMP, ignores words such as `auto`."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_tile") or able.get("avx512_bf16"))


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory; does nothing on other systems.

    Each step allocates the same large blocks as the step before. If they went back to the system, mapping
    their pages again would take a tenth of a step on a CPU (benchmarks/train.py).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for number, value in KEEP_MEMORY.values():
            mallopt(number, value)


def compiled(network: nn.Module, how: str, compute: Compute, images_seen: int) -> nn.Module:
    """The network compiled by torch.compile, sharing its weights, or the network itself.

    Args:
        how: none, fused (operations are fused), graphs (steps are also recorded as CUDA graphs) or auto:
            fused on a GPU if the training is long enough. On a CPU, compiling takes about half a minute and
            saves a tenth of the time.
        images_seen: number of images that the whole training processes.

    Raises:
        InputError: torch.compile needs a C++ compiler and a folder for what it compiles, and one is missing.
    """
    on_gpu = compute.device.type == "cuda"
    if how == "auto":
        pays = on_gpu and images_seen >= WORTH_COMPILING
        how = "fused" if pays and not _cannot_compile() and _triton_works(compute.device) else "none"
    if how == "none":
        return network
    if missing := _cannot_compile():
        raise InputError(f"compile: {how} needs {missing}, or set compile: none")
    torch.use_deterministic_algorithms(True)  # the compiler checks this setting
    mode = "reduce-overhead" if how == "graphs" and on_gpu else "default"
    return torch.compile(network, mode=mode, dynamic=False)  # type: ignore[return-value]


def _cannot_compile() -> str:
    """What torch.compile lacks on this machine, and what to do; "" if it has everything."""
    if not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")):
        return "a C++ compiler (g++), and none was found; install one"
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir())
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if os.statvfs(there).f_flag & os.ST_NOEXEC:
        return (
            f"a folder for compiled programs, but {there} is mounted with noexec; "
            "set TMPDIR to a folder on another disk"
        )
    return ""


def _triton_works(device: torch.device) -> bool:
    """Whether torch.compile's GPU backend supports this GPU and can build its driver."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return headers.exists() and torch.cuda.get_device_capability(device) >= (7, 0)


def is_memory_short(error: Exception) -> bool:
    """Whether an error means that a GPU or the CPU ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
