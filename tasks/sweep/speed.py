"""Measure how long networks take for an image, on this machine: a program of its own, as it imports torch.

Reads JSON from stdin, a list of [network folder, whether the mirror image is averaged], and prints JSON. The
result depends on the machine and is never an input of a stage.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tasks.inference.predict import load_networks
from tasks.networks.device import set_up
from tasks.networks.network import DESCRIPTION
from tasks.settings.experiments import Plan
from tasks.support.cli import stage_main

#: Images in a batch, batches before the measurement, and batches that are measured.
BATCH, WARM_UP, REPEATS = 4, 2, 7

#: What a network's time depends on.
SIGNATURE = ("network", "width", "depth", "patch", "image_size", "targets", "deep_supervision", "precision")


def milliseconds(folder: Path, flip_average: bool) -> float:
    """The median time of the forward passes for an image, with the copies to the device and back.

    Args:
        folder: The folder of a network.
        flip_average: Whether the mirror image is predicted too.
    """
    plan = _plan(folder)
    compute = set_up(plan.seed, plan.precision, 0)  # all cores
    (network,) = load_networks(folder, compute)
    images = torch.rand(BATCH, 1, plan.image_size, plan.image_size)
    times = []
    for _ in range(WARM_UP + REPEATS):
        began = time.perf_counter()
        with torch.no_grad(), compute.autocast():
            x = compute.place(images)
            for _ in range(1 + flip_average):
                torch.sigmoid(network(x).float()).cpu()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[WARM_UP:]) / BATCH


def device() -> str:
    """The model of the GPU, or `CPU`."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _plan(folder: Path) -> Plan:
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    return Plan.from_json(json.dumps(description["plan"]))


def _signature(folder: Path, flip_average: bool) -> tuple[Any, ...]:
    plan = _plan(folder)
    return (*(getattr(plan, key) for key in SIGNATURE), flip_average)


def main() -> None:
    measured: dict[tuple[Any, ...], float] = {}
    times = []
    for path, flip_average in json.load(sys.stdin):
        key = _signature(Path(path), flip_average)
        if key not in measured:
            measured[key] = milliseconds(Path(path), flip_average)
        times.append(measured[key])
    print(json.dumps({"device": device(), "milliseconds": times}))


if __name__ == "__main__":
    stage_main(main)
