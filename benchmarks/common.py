"""What benchmarks/train.py and benchmarks/inference.py share: images, contestants, figures."""

import argparse
import hashlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import pandas as pd
import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from tasks.download import download
from tasks.files import replacing, write_table
from tasks.params import Plan, parse_assignment, parse_params, with_changes
from tasks.preprocess import preprocess
from tasks.raw import KIND_FOLDERS, RawDataset, Split
from tasks.sources import open_source

ROOT = Path(__file__).parent.parent
MIB = 2**20
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF, TARGET, TRAIN_CLASS = "infection", "infection", "COVID-19"

Item = TypeVar("Item")


# --- the experiment and its images --------------------------------------------------------------------------


def make_plan(data: str, image_size: int, epochs: int, training: Mapping[str, Any], sets: list[str]) -> Plan:
    """Report 1's experiment with another loss: of Dice and BCE, which MONAI has too. `sets` are KEY=VALUE."""
    experiment = {
        "network": "residual_unet",
        "loss": "dice_bce",
        "images": "packed",
        "targets": [TARGET],
        "train_classes": [TRAIN_CLASS],
    }
    changes = {
        "data": {"source": data},
        "half": HALF,
        "image_size": image_size,
        "epochs": epochs,
        "alpha": 0.5,
        "training": training,
        "experiments": {"benchmark": experiment},
    }
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    changed = with_changes(
        text, {"benchmark": changes, **{word: parse_assignment(word) for word in sets}}, ["benchmark"]
    )
    return parse_params(changed).plans["benchmark"]


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """With the options that say on which images, and of which size the network is."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", help="a zip, a folder or a URL, as data.source; default: synthetic")
    parser.add_argument("--work", type=Path, help="prepare the images there and keep them")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="for ours"
    )
    return parser


class Images(NamedTuple):
    """The dataset as `download` and `preprocess` make it, of which the table takes some images alone."""

    raw: Path
    packed: Path
    table: pd.DataFrame
    """The rows of images.csv that are taken."""

    def ids(self, split: Split) -> list[str]:
        return list(self.table["id"][self.table["split"] == split])


def prepare(
    data: str, folder: Path, image_size: int, take: Mapping[Split, int], classes: Sequence[str]
) -> Images:
    """Download and preprocess, unless `folder` holds it; `take` so many of each split, spread over all."""
    own = folder / hashlib.sha256(data.encode()).hexdigest()[:8]
    raw, whole = own / "raw", own / f"packed-{image_size}"
    if not raw.exists():
        download(open_source(data, Path.cwd()), raw, data)
    if not whole.exists():
        preprocess(raw, whole, image_size, max_rejected=0.01)
    table = pd.read_csv(whole / "images.csv")
    table = table[(table["half"] == HALF) & table["class"].isin(classes)]
    parts = [spread(table[table["split"] == split], count) for split, count in take.items()]
    taken = pd.concat(parts)
    view = own / f"view-{'-'.join(map(str, [image_size, len(classes), *take.values()]))}"
    with replacing(view) as partial:
        (partial / HALF).mkdir(parents=True)
        for split in take:
            (partial / HALF / split).symlink_to(whole.resolve() / HALF / split)
        write_table(taken, partial / "images.csv")
    return Images(raw, view, taken)


def spread(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """So many rows, evenly over the table; all where it has no more."""
    count = min(count, len(table))
    return table.iloc[[i * len(table) // count for i in range(count)]]


def unpack(images: Images, split: Split, folder: Path) -> list[tuple[Path, Path]]:
    """The PNG files of the images and of their masks, as files; a pair an image."""
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


class Apart:
    """A contestant in a process of its own, so that its memory and settings are its own."""

    def __init__(self, make: Callable[[Any], object], setting: object) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self._process = psutil.Process(self._pool.submit(os.getpid).result())
        #: Bytes, of the process and its own processes together.
        self.memory = 0
        self._wait_for(_begin, make, setting)

    def call(self, method: str, *args: object) -> Any:
        return self._wait_for(_call, method, *args)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def _wait_for(self, work: Callable[..., Any], *args: object) -> Any:
        asked = self._pool.submit(work, *args)
        while not asked.done():
            with suppress(psutil.Error):
                processes = [self._process, *self._process.children(recursive=True)]
                self.memory = max(self.memory, sum(p.memory_full_info().pss for p in processes))
            wait([asked], timeout=1.0)
        return asked.result()


_contestants: list[Any] = []


def _begin(make: Callable[[Any], object], setting: object) -> None:
    # The stages' own lines would stand among the figures.
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    _contestants.append(make(setting))


def _call(method: str, *args: object) -> Any:
    return getattr(_contestants[0], method)(*args)


class Stopwatch:
    """Seconds spent in parts of the work, by the clock or by CUDA's own, which holds nothing up."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def on_device(self, part: str, function: Callable[..., Item]) -> Callable[..., Item]:
        """A function like this one whose time on the device is added up."""

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
        """A function like this one that is timed."""

        def timed(*args: Any, **kwargs: Any) -> Item:
            with self.timing(part):
                return function(*args, **kwargs)

        return timed

    def each(self, part: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items; what is timed is the wait for them."""
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
        """What came together since the last reading."""
        synchronise()
        for part, began, ended in self._events:
            self.add(part, began.elapsed_time(ended) / 1000)
        seconds, self._seconds, self._events = self._seconds, {}, []
        return seconds


# --- figures ------------------------------------------------------------------------------------------------


def synchronise() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(dtype: torch.dtype, repeats: int = 10) -> float:
    """Operations a second of a large matrix product, two a multiply-add; the best of a few."""
    side = 8192 if DEVICE.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=DEVICE).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(repeats):
        synchronise()
        start = time.perf_counter()
        a @ b
        synchronise()
        best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best


def spread_of(values: Sequence[float], form: str = ".1f") -> str:
    """Median, and least to most."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Of each round: the machine's moods hit both."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def show(rows: Sequence[Sequence[str]]) -> None:
    """Columns below each other, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        print("  ".join([f"{first:{widths[0]}}", *cells]), flush=True)
