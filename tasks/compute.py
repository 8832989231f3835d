"""The device, threads and number format of a computation, and what makes it repeatable."""

import os
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.cores import available_cores


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


def set_up(seed: int, precision: str, threads: int) -> Compute:
    """Seed everything, ask for deterministic algorithms, and choose the device and number format.

    Args:
        precision: auto, fp32 or bf16; auto is bf16 where the hardware multiplies it faster than fp32.
        threads: of the CPU; 0 is what OMP_NUM_THREADS says, or else all the cores that this process may
            use. It is part of what determines the last digits of a result.
    """
    # cuBLAS repeats its results only with a workspace of fixed size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    if not threads and "OMP_NUM_THREADS" not in os.environ:
        threads = available_cores()
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if precision == "auto":
        precision = "bf16" if _has_fast_bf16(device) else "fp32"
    return Compute(device, precision)


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
