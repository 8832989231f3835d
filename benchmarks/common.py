"""What benchmarks/train.py, inference.py and gpu.py share: images, contestants and measurements."""

import argparse
import copy
import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import pandas as pd
import psutil
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))
from tasks.common.files import replacing, write_table
from tasks.common.raw import KIND_FOLDERS, RawDataset, Split
from tasks.download import download
from tasks.preprocess import preprocess
from tasks.settings.changes import parse_assignment, with_changes
from tasks.settings.experiments import Plan
from tasks.settings.params import parse_params
from tasks.settings.training import Augment
from tasks.sources.open import open_source

ROOT = Path(__file__).parent.parent
MIB = 2**20
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF, TARGET, TRAIN_CLASS = "infection", "infection", "COVID-19"

#: The training settings of benchmarks, the same in every checkout. params.yaml is not read. --set changes
#: them.
TRAINING = {
    "images": "whole",
    "batch_size": 16,
    "width": 16,
    "depth": 4,
    "patch": 1,
    "deep_supervision": False,
    "optimiser": "adam",
    "learning_rate": 0.001,
    "weight_decay": 0.0,
    "schedule": "constant",
    "ema": 0.0,
    "augment": dict.fromkeys(Augment.model_fields, 0.0),
    "seed": 0,
    "seeds": 1,
    "folds": 1,
    "selection": "balanced",
    "patience": 0,
    "precision": "auto",
    "compile": "auto",
    "threads": 0,
    "processes": 1,
    "accumulate": 1,
    "start_from": None,
}

Item = TypeVar("Item")


# --- the experiment and its images --------------------------------------------------------------------------


def make_plan(data: str, image_size: int, epochs: int, training: Mapping[str, Any], sets: list[str]) -> Plan:
    """Return report 1's experiment with Dice + BCE loss, which MONAI has too. `sets` are KEY=VALUE."""
    experiment = {
        "network": "residual_unet",
        "loss": "dice_bce",
        "targets": [TARGET],
        "train_classes": [TRAIN_CLASS],
    }
    changes = {
        "data": {"source": data},
        "epochs": epochs,
        "alpha": 0.5,
        "training": TRAINING | {"half": HALF, "image_size": image_size} | training,
        "experiments": {"benchmark": experiment},
    }
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    changed = with_changes(
        text, {"benchmark": changes, **{word: parse_assignment(word) for word in sets}}, ["benchmark"]
    )
    return parse_params(changed).plans["benchmark-seed0"]


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options for the images and the size of the network."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", help="a zip, a folder or a URL, as data.source; default: synthetic")
    parser.add_argument("--work", type=Path, help="folder in which prepared images are kept")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="a value of params.yaml"
    )
    return parser


class Images(NamedTuple):
    """The dataset as written by `download` and `preprocess`, of which some images are used."""

    raw: Path
    packed: Path
    table: pd.DataFrame
    """The rows of images.csv that are used."""

    def ids(self, split: Split) -> list[str]:
        return list(self.table["id"][self.table["split"] == split])


def prepare(
    data: str, folder: Path, image_size: int, take: Mapping[Split, int], classes: Sequence[str]
) -> Images:
    """Select a number of images of each split, from some classes, evenly spread over the dataset."""
    raw, whole = packed_dataset(data, folder, image_size)
    table = pd.read_csv(whole / "images.csv")
    table = table[(table["half"] == HALF) & table["class"].isin(classes)]
    parts = [spread(table[table["split"] == split], count) for split, count in take.items()]
    taken = pd.concat(parts)
    view = whole.parent / f"view-{'-'.join(map(str, [image_size, len(classes), *take.values()]))}"
    with replacing(view) as partial:
        (partial / HALF).mkdir(parents=True)
        for split in take:
            (partial / HALF / split).symlink_to(whole.resolve() / HALF / split)
        write_table(taken, partial / "images.csv")
    return Images(raw, view, taken)


def packed_dataset(data: str, folder: Path, image_size: int) -> tuple[Path, Path]:
    """Return the raw and the packed dataset in `folder`, and create them if they do not exist."""
    own = folder / hashlib.sha256(data.encode()).hexdigest()[:8]
    raw, packed = own / "raw", own / f"packed-{image_size}"
    if not raw.exists():
        download(open_source(data, Path.cwd()), raw, data)
    if not packed.exists():
        preprocess(raw, packed, image_size, max_rejected=0.01)
    return raw, packed


def spread(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return `count` rows, evenly spread over the table, or all if it has fewer."""
    count = min(count, len(table))
    return table.iloc[[i * len(table) // count for i in range(count)]]


def unpack(images: Images, split: Split, folder: Path) -> list[tuple[Path, Path]]:
    """Write the images and their masks as PNG files, and return one pair of paths per image."""
    dataset = RawDataset(images.raw)
    pairs = []
    for image_id in images.ids(split):
        place, name = image_id.rsplit("/", 1)
        files = [folder / place / KIND_FOLDERS[kind] / f"{name}.png" for kind in ("image", TARGET)]
        for kind, file in zip(("image", TARGET), files, strict=True):
            if not file.exists():
                content = dataset.read_bytes(image_id, kind)
                assert content
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        pairs.append((files[0], files[1]))
    return pairs


# --- contestants --------------------------------------------------------------------------------------------


class Pairs:
    """Iterates over the image and label of each batch, which is a dictionary."""

    def __init__(self, loader: Iterable[dict[str, torch.Tensor]]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self._loader:
            yield batch["image"], batch["label"]


class Apart:
    """A contestant in a process of its own, so that its memory and settings are separate."""

    def __init__(self, make: Callable[[Any], object], setting: object) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self._process = psutil.Process(self._pool.submit(os.getpid).result())
        #: Peak memory in bytes, of the process and its child processes together.
        self.memory = 0
        self._wait_for(_begin, make, setting)

    def call(self, method: str, *args: object) -> Any:
        return self._wait_for(_call, method, *args)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def _wait_for(self, work: Callable[..., Any], *args: object) -> Any:
        future = self._pool.submit(work, *args)
        while not future.done():
            with suppress(psutil.Error):
                processes = [self._process, *self._process.children(recursive=True)]
                self.memory = max(self.memory, sum(p.memory_full_info().pss for p in processes))
            wait([future], timeout=1.0)
        return future.result()


_contestants: list[Any] = []


def _begin(make: Callable[[Any], object], setting: object) -> None:
    # The output of the stages would mix with the results.
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    _contestants.append(make(setting))


def _call(method: str, *args: object) -> Any:
    return getattr(_contestants[0], method)(*args)


class Stopwatch:
    """Accumulates seconds per part of the work, by wall clock or by CUDA events, which do not block."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def on_device(self, part: str, function: Callable[..., Item]) -> Callable[..., Item]:
        """Wrap a function so that its time on the device is added up."""

        def timed(*args: Any, **kwargs: Any) -> Item:
            if DEVICE.type == "cpu":
                with self.timing(part):
                    return function(*args, **kwargs)
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            result = function(*args, **kwargs)
            ended.record()
            self._events.append((part, began, ended))
            return result

        return timed

    def on_host(self, part: str, function: Callable[..., Item]) -> Callable[..., Item]:
        """Wrap a function so that its wall time is added up."""

        def timed(*args: Any, **kwargs: Any) -> Item:
            with self.timing(part):
                return function(*args, **kwargs)

        return timed

    def each(self, part: str, items: Iterable[Item]) -> Iterator[Item]:
        """Iterate over items, and add up the time spent waiting for them."""
        waiting = iter(items)
        while True:
            try:
                with self.timing(part):
                    item = next(waiting)
            except StopIteration:
                return
            yield item

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - start)

    def add(self, part: str, seconds: float) -> None:
        self._seconds[part] = self._seconds.get(part, 0.0) + seconds

    def read(self) -> dict[str, float]:
        """Return the seconds of each part since the last call, and reset them."""
        synchronise()
        for part, began, ended in self._events:
            self.add(part, began.elapsed_time(ended) / 1000)
        seconds, self._seconds, self._events = self._seconds, {}, []
        return seconds


# --- measurements -------------------------------------------------------------------------------------------


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


def percent(share: float | None) -> str:
    return "refused" if share is None else f"{share:.1%}"


def append_json(file: Path | None, row: Mapping[str, Any]) -> None:
    if file:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")


def spread_of(values: Sequence[float], form: str = ".1f") -> str:
    """Format the median, minimum and maximum."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratio of each round, since changes in the machine's speed affect both values."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def show(rows: Sequence[Sequence[str]]) -> None:
    """Print columns, the first left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        print("  ".join([f"{first:{widths[0]}}", *cells]), flush=True)
