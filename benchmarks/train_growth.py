"""Measure how the cost of a training grows with its dataset: time per image, and memory.

    python benchmarks/train_growth.py [--images 1000,10000,33920] [--steps 40] [--size 128] [--width 16]

The images are noise, packed as by the stage preprocess. Their content affects neither time nor memory. Each
dataset is used in a process of its own, for a number of steps of 16 images in random order. Memory is
anonymous memory (RssAnon), without the pages of mapped arrays, which the system reclaims when needed. On CUDA
it is the peak that torch allocated.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from experiment import make_plan

from tasks.networks.device import set_up
from tasks.networks.network import build_network
from tasks.packed.reader import PackedSplit
from tasks.training.batches import Batches
from tasks.training.fitting import Fitter

BATCH = 16


class EnoughError(Exception):
    """Raised when all steps are done."""


def pack(folder: Path, images: int, size: int) -> None:
    """Write noise in the layout of data/packed, with only a Train split."""
    (folder / "infection" / "Train").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for kind in ("image", "infection"):
        shape, path = (images, size, size), folder / "infection" / "Train" / f"{kind}.npy"
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        for start in range(0, images, 1000):
            part = array[start : start + 1000]
            part[:] = noise.integers(0, 256, part.shape, dtype=np.uint8)
    rows = {"half": "infection", "split": "Train", "class": "COVID-19", "row": range(images)}
    pd.DataFrame(rows).assign(id=lambda t: "image" + t["row"].astype(str)).to_csv(
        folder / "images.csv", index=False
    )


def train(folder: Path, plan: Any, steps: int, found: Any) -> None:
    """Train, and store seconds per step and MiB in `found`."""
    compute = set_up(0, plan.precision, plan.threads)
    split = PackedSplit(folder, "infection", "Train", plan.targets, plan.train_classes)
    digest = time.perf_counter()
    split.digest()
    digest = time.perf_counter() - digest
    fitter = Fitter(plan, build_network(plan, compute), compute, Batches(split, compute))
    ends: list[float] = []

    def after_step() -> None:
        if compute.device.type == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
        if len(ends) > steps:
            raise EnoughError

    try:
        fitter.run_epoch("training", after_step)
    except EnoughError:
        memory = torch.cuda.max_memory_allocated() / 2**20 if compute.device.type == "cuda" else anonymous()
        found.put((statistics.median(np.diff(ends)), digest, memory))


def anonymous() -> float:
    """Return the anonymous memory of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", default="1000,10000,33920")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--width", type=int, default=16)
    args = parser.parse_args()
    plan = make_plan("phantom://", args.size, 1, {"width": args.width, "depth": 4, "batch_size": BATCH}, [])
    context = multiprocessing.get_context("spawn")
    print(f"{'images':>8}{'ms/image':>14}{'memory':>12}{'hashing for checkpoints':>28}")
    for images in map(int, args.images.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            pack(Path(folder), images, args.size)
            found = context.Queue()
            process = context.Process(target=train, args=(Path(folder), plan, args.steps, found))
            process.start()
            seconds, digest, memory = found.get()
            process.join()
        print(f"{images:8,}{1000 * seconds / BATCH:14.1f}{memory:8.0f} MiB{digest:26.1f} s", flush=True)


if __name__ == "__main__":
    main()
