"""The operations of networks, and the rates that this machine reaches."""

import copy
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))
from tasks.settings.experiments import Plan

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronise() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def device_memory() -> int:
    """Return the peak memory in bytes that torch allocated on CUDA."""
    return torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0


class Operations(NamedTuple):
    """Operations per image. A multiply-add counts as two."""

    forward: int
    step: int
    """Forward and backward pass."""
    parameters: int


def operations(network: nn.Module, size: int) -> Operations:
    """Count the operations of a network on a copy on the meta device. Drops the network's gradients."""
    network.zero_grad()
    copied = copy.deepcopy(network).to("meta").train()
    with FlopCounterMode(display=False) as counted:
        logits = copied(torch.empty(1, 1, size, size, device="meta"))
        forward = counted.get_total_flops()
        outputs = logits if isinstance(logits, tuple) else (logits,)
        torch.stack([output.sum() for output in outputs]).sum().backward()
    return Operations(forward, counted.get_total_flops(), sum(p.numel() for p in network.parameters()))


def plan_words(plan: Plan) -> str:
    """Describe the network of a plan."""
    return f"{plan.network}, width {plan.width}, depth {plan.depth}, patch {plan.patch}"


def number_format(precision: str) -> str:
    """Return the format of convolutions: fp32, bf16, or tf32, which is torch's default for fp32 on CUDA."""
    rounds = DEVICE.type == "cuda" and torch.backends.cudnn.allow_tf32
    return "tf32" if precision == "fp32" and rounds else precision


#: Maximum matrix size, seconds of a product that is long enough, and total seconds.
LARGEST, LONG, TIMED_FOR = {"cuda": 8192, "cpu": 2048}[DEVICE.type], 0.1, 1.0


@cache
def matrix_rate(of_format: str, threads: int) -> float:
    """Measure operations/s of a large matrix product in a number format. Returns the best of several.

    A multiply-add counts as two operations. The matrices grow until a product takes long enough, so a format
    that the processor only emulates takes seconds, not minutes.
    """
    with _computing_in(of_format, threads):
        side, seconds = 128, 0.0
        while side < LARGEST and seconds < LONG:
            side *= 2
            a, b = (torch.randn(side, side, device=DEVICE).to(_dtype(of_format)) for _ in range(2))
            seconds = min(_product_seconds(a, b) for _ in range(2))
        ends = time.perf_counter() + TIMED_FOR
        while time.perf_counter() < ends:
            seconds = min(seconds, _product_seconds(a, b))
    return 2 * side**3 / seconds


def _dtype(of_format: str) -> torch.dtype:
    return torch.bfloat16 if of_format == "bf16" else torch.float32


@contextmanager
def _computing_in(of_format: str, threads: int) -> Iterator[None]:
    threads_before, precision_before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if of_format == "tf32" else "highest")
    yield
    torch.set_num_threads(threads_before)
    torch.set_float32_matmul_precision(precision_before)


def _product_seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    synchronise()
    start = time.perf_counter()
    a @ b
    synchronise()
    return time.perf_counter() - start


def checked_share(what: str, part: float, whole: float, of: str) -> float | None:
    """Return part / whole. Above 1 one of them was measured wrong: prints a line and returns None."""
    share = part / whole
    if 0 <= share <= 1:
        return share
    print(f"measurement error: {what}: {share:.1%} of {of} is impossible; omitting it", flush=True)
    return None


class Facts(NamedTuple):
    """A contestant's network, and how it was computed."""

    network: str
    operations: Operations
    number_format: str
    threads: int
    device_memory: int
    caching: float = 0.0
    """Seconds before the first epoch."""

    def line(self) -> str:
        of = self.operations
        return (
            f"{self.network}: {of.parameters:,} parameters; million multiply-adds per image: "
            f"{of.forward / 2e6:.1f} forward, {of.step / 2e6:.1f} with backward; "
            f"computes in {self.number_format}"
        )

    @property
    def peak(self) -> float:
        """The rate to which shares refer, in operations/s."""
        return matrix_rate(self.number_format, self.threads)

    def share(self, name: str, each: int, speed: float) -> float | None:
        """Return the share of the peak that `speed` images/s with `each` operations per image reach."""
        of = f"the {self.number_format} matrix rate"
        return checked_share(f"{name} at {speed:.1f} images/s", each * speed, self.peak, of)
