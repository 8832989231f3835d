"""The device, threads and number format of a computation, and what makes it repeatable."""

import ctypes
import os
import shutil
import sysconfig
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tasks.common.cores import available_cores
from tasks.support.cli import InputError

#: Images that a training on a GPU must see in all before compiling its network pays.
WORTH_COMPILING = 100_000

#: glibc's names for what `mallopt` sets, and the values that keep memory once it is there.
KEEP_MEMORY = {"M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 64 << 20), "M_MMAP_MAX": (-4, 0)}


class Compute(NamedTuple):
    """Where and how tensors are computed; `precision` is fp32 or bf16."""

    device: torch.device
    precision: str

    def autocast(self) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bf16"
        )
        return context

    def place(self, tensor: Tensor) -> Tensor:
        """A batch of images or masks (N, C, H, W) on the device, channels last as convolutions like it."""
        return tensor.to(self.device, memory_format=torch.channels_last, non_blocking=True)


def set_up(seed: int, precision: str, threads: int, processes: int = 1) -> Compute:
    """Seed everything, ask for deterministic algorithms, and choose the device and number format.

    Args:
        precision: auto, fp32 or bf16; auto is bf16 where the hardware multiplies it faster than fp32.
        threads: of the CPU; 0 is what OMP_NUM_THREADS says, or else all the cores that this process may
            use. It is part of what determines the last digits of a result.
        processes: that share the threads.
    """
    # cuBLAS repeats its results only with a workspace of fixed size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # use_deterministic_algorithms(True) does this too, and takes two seconds to load the compiler.
    torch.set_deterministic_debug_mode("error")
    # That would also write NaN into all memory before its use, a tenth of a step; ours is not read before.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if not threads:
        threads = int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0] or available_cores())
    torch.set_num_threads(max(1, threads // processes))
    _keep_freed_memory()
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if precision == "auto":
        precision = "bf16" if _has_fast_bf16(device) else "fp32"
    return Compute(device, precision)


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed; elsewhere do nothing.

    A step takes the same large blocks as the step before. Each that had been given back to the system
    would cost its pages anew, a tenth of a step on a CPU (benchmarks/train.py).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for number, value in KEEP_MEMORY.values():
            mallopt(number, value)


def compiled(network: nn.Module, how: str, compute: Compute, images_seen: int) -> nn.Module:
    """The network as torch.compile makes it, with the same weights, or as it is.

    Args:
        how: none, fused (operations joined), graphs (and a step recorded as a CUDA graph) or auto: fused on
            a GPU for a training long enough. On a CPU compiling takes about half a minute and saves a
            tenth of the time.
        images_seen: by the whole training.

    Raises:
        InputError: the compiler that torch needs is missing.
    """
    on_gpu = compute.device.type == "cuda"
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if how == "auto":
        pays = on_gpu and images_seen >= WORTH_COMPILING
        how = "fused" if pays and compiler and _triton_works(compute.device) else "none"
    if how == "none":
        return network
    if not compiler:
        raise InputError(f"compile: {how} needs a C++ compiler, g++, and there is none; set compile: none")
    torch.use_deterministic_algorithms(True)  # tells the compiler too
    mode = "reduce-overhead" if how == "graphs" and on_gpu else "default"
    return torch.compile(network, mode=mode, dynamic=False)  # type: ignore[return-value]


def _triton_works(device: torch.device) -> bool:
    """Whether torch.compile's backend for GPUs knows this one, and can build its driver."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return headers.exists() and torch.cuda.get_device_capability(device) >= (7, 0)


def is_memory_short(error: Exception) -> bool:
    """Whether an error tells that memory ran out, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
