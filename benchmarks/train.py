"""Compare the cost of a training in our engine, in a plain PyTorch loop and in MONAI.

    python benchmarks/train.py [--data covidqu.zip] [--work FOLDER] [--epochs 6] [--set training.width=32]
    python benchmarks/train.py --table [--size 256 --width 64] [--batches 16,64] [--layouts ...]

Each contestant trains a network from seed 0, in a process of its own, on the same COVID-19 images without
augmentation. They take turns of one epoch each, and the order is reversed every other time. The first epoch
is a warm-up. It is not timed, and neither is validation.

    ours            the engine of tasks/training with the residual U-Net; "ours, fused" with torch.compile
    plain, N        typical user code: a DataLoader with N processes, whose dataset opens the PNG files of an
                    image and its mask with Pillow and resizes them; float32, default memory layout, Adam,
                    loss.item() at each step. Same network and initial weights, same loss, same pixels
    monai, N        MONAI's BasicUNet and its usual transforms in a CacheDataset: every image is decoded and
                    resized once before the first epoch, which is reported separately. MONAI's DiceCELoss with
                    the weights and smoothing of our loss, which makes it the same function

BasicUNet has different blocks: instance normalisation, no shortcuts, and wider maps before its last block.
Its features are (w, 2w, 4w, 8w, 16w, w) for our width w at depth 4, which is 1.05 times our multiply-adds in
a forward pass. A last block of 3/4 w would make it 0.99, but was no faster on a CPU, which prefers powers of
two. Each contestant's network and counts are printed. The last column of the table does not depend on this
difference.

Prints images/s (median, minimum and maximum of the timed epochs); ours divided by each of them, epoch by
epoch; CPU time per image, which other work on the machine disturbs least if OMP_NUM_THREADS is 1; the share
of the time in which a loop waits for its next batch, or in our case assembles it; peak memory (PSS of the
process and its workers, or what torch allocated on CUDA); the share of the rate of a matrix product, in the
contestant's number format, that forward and backward passes reach (MFU); then the loss curves, and the
validation Dice at the network's size. FlopCounterMode counts the multiply-adds of the trained network. The
matrix rate of each format is measured once, for about a second, after the epochs, with the contestant's
number of threads. A share above 100% is reported as a measurement error and omitted.

--table: our engine only, over number format, memory layout, torch.compile and batch size. The first values of
the lists come first, then each change by itself, then several together.

The training settings are defined here and in benchmarks/experiment.py. params.yaml is not read. Images are
synthetic unless --data names the real ones, in the format of data.source. --work keeps the prepared images.

On a GPU machine without the project's environment: Python 3.11 or newer with torch, pandas, pillow, psutil,
requests, safetensors and tqdm. Put wheels of pydantic, pydantic_core, annotated_types, typing_inspection and
ruamel.yaml on PYTHONPATH, and monai for its contestant (`--contestants fused,plain` runs without it).
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from apart import Apart, Pairs, Stopwatch
from experiment import HALF, TRAIN_CLASS, Images, make_plan, parser_of, prepare, unpack
from output import MIB, append_json, percent, ratios, show, spread_of
from PIL import Image
from rates import (
    DEVICE,
    Facts,
    checked_share,
    device_memory,
    matrix_rate,
    number_format,
    operations,
    plan_words,
    synchronise,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from models.losses import make_loss
from models.metrics import confusion, dice
from tasks.networks.device import Compute, set_up
from tasks.networks.network import build_network
from tasks.packed.reader import PackedSplit, scaled
from tasks.settings.experiments import Plan
from tasks.training.batches import Batches
from tasks.training.fitting import Fitter

WAIT = "wait for data"
VALIDATION_BATCH = 32


class Setting(NamedTuple):
    """The settings of a contestant."""

    plan: Plan
    packed: Path
    train_files: list[tuple[Path, Path]] = []  # noqa: RUF012
    val_files: list[tuple[Path, Path]] = []  # noqa: RUF012
    workers: int = 0
    layout: str = "channels_last"

    def split(self, name: str) -> PackedSplit:
        return PackedSplit(self.packed, HALF, name, self.plan.targets, self.plan.train_classes)


class Epoch(NamedTuple):
    seconds: float
    cpu: float
    """CPU seconds of all threads, including those of the loader's processes."""
    wait: float
    """Seconds of each part."""
    loss: float
    val_dice: float


class Contestant:
    """A network that is trained epoch by epoch."""

    network: nn.Module
    #: Description of the network, and the requested precision.
    what: str
    precision = "fp32"
    #: Seconds spent before the first epoch.
    caching = 0.0

    def __init__(self, setting: Setting) -> None:
        self.setting, self.watch = setting, Stopwatch()

    def fit(self) -> float:
        """Train for one epoch, and return its mean loss."""
        raise NotImplementedError

    def val_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        split = self.setting.split("Val")
        for start in range(0, len(split), VALIDATION_BATCH):
            rows = slice(start, start + VALIDATION_BATCH)
            yield scaled(split.images(rows)).to(DEVICE), scaled(split.masks(rows)).to(DEVICE)

    def epoch(self, validate: bool = True) -> Epoch:
        synchronise()
        start, cpu = time.perf_counter(), cpu_seconds()
        loss = self.fit()
        synchronise()
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
        wait = self.watch.read().get(WAIT, 0.0)
        return Epoch(seconds, cpu, wait, loss, self.val_dice() if validate else float("nan"))

    @torch.no_grad()
    def val_dice(self) -> float:
        self.network.eval()
        scores = [dice(confusion(self.network(x) > 0, y >= 0.5)) for x, y in self.val_batches()]
        return float(torch.cat(scores).mean())

    def facts(self) -> Facts:
        memory = device_memory()  # before copying the network for counting
        counted = operations(self.network, self.setting.plan.image_size)
        of_format, threads = number_format(self.precision), torch.get_num_threads()
        return Facts(self.what, counted, of_format, threads, memory, self.caching)


def device_name() -> str:
    cpu = f"{torch.get_num_threads()} CPU threads"
    return f"{torch.cuda.get_device_name() if DEVICE.type == 'cuda' else cpu}, torch {torch.__version__}"


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and its child processes so far."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


class Ours(Contestant):
    """Our engine. Everything that this benchmark knows about tasks.train and its setup is in this class."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        plan = setting.plan
        compute = set_up(plan.seed, plan.precision, plan.threads)
        self.network, self.what = build_network(plan, compute), plan_words(plan)
        self.precision = compute.precision
        if setting.layout == "contiguous":
            compute = Contiguous(*compute)
            self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        batches = Batches(setting.split("Train"), compute)
        self._fitter = Fitter(plan, self.network, compute, batches)
        self._fitter._changed = self.watch.on_device(WAIT, self._fitter._changed)

    def fit(self) -> float:
        fitted = self._fitter.run_epoch("ours")
        self._fitter.end_epoch()
        self.watch.add(WAIT, fitted.waited)
        return fitted.loss


class Contiguous(Compute):
    """Places batches in torch's default memory layout."""

    def place(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


class Loop(Contestant):
    """The loop of most tutorials, over any loader, network and loss."""

    batches: Iterable[tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]

    def start(self, network: nn.Module) -> None:
        torch.set_num_threads(self.setting.plan.threads or torch.get_num_threads())
        self.network = network.to(DEVICE)
        self._optimiser = torch.optim.Adam(self.network.parameters(), lr=self.setting.plan.learning_rate)

    def fit(self) -> float:
        total = count = 0.0
        self.network.train()
        for x, y in self.watch.each(WAIT, self.batches):
            x, y = x.to(DEVICE), y.to(DEVICE)
            self._optimiser.zero_grad()
            loss = self.loss(self.network(x), y)
            loss.backward()
            self._optimiser.step()
            total += loss.item() * len(x)
            count += len(x)
        return total / count

    def loader_options(self) -> dict[str, Any]:
        workers = self.setting.workers
        own = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": DEVICE.type == "cuda"}
        return {"batch_size": self.setting.plan.batch_size, "shuffle": True, **own}


class PngFolder(Dataset[tuple[Tensor, Tensor]]):
    """Images and masks (1, S, S) in [0, 1], decoded each time."""

    def __init__(self, files: list[tuple[Path, Path]], size: int) -> None:
        self.files, self.size = files, (size, size)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = (Image.open(file).convert("L") for file in self.files[index])
        return (
            to_tensor(image.resize(self.size, Image.Resampling.BILINEAR)),
            to_tensor(mask.resize(self.size, Image.Resampling.BOX)),
        )


def to_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture, dtype=np.float32) / 255).unsqueeze(0)


class Plain(Loop):
    """A plain PyTorch loop over PNG files."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        plan = setting.plan
        torch.manual_seed(plan.seed)
        self.start(our_network(plan))
        self.what = plan_words(plan)
        self.loss = make_loss(plan.loss, **plan.loss_options)
        self.batches = DataLoader(PngFolder(setting.train_files, plan.image_size), **self.loader_options())


class Monai(Loop):
    """MONAI, used as in its tutorials."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        # Imported here, so that the other contestants run without it.
        from monai.losses import DiceCELoss
        from monai.utils import set_determinism

        plan = setting.plan
        set_determinism(plan.seed)
        torch.use_deterministic_algorithms(False)
        self.start(monai_network(plan))
        self.what = f"MONAI's BasicUNet, features {plan.width} to {16 * plan.width} and {plan.width}, depth 4"
        self.loss = DiceCELoss(sigmoid=True, lambda_dice=0.5, lambda_ce=0.5, smooth_nr=1.0, smooth_dr=1.0)
        start = time.perf_counter()
        self.batches = self._loader(setting.train_files, **self.loader_options())
        self.caching = time.perf_counter() - start
        self._val = self._loader(setting.val_files, batch_size=VALIDATION_BATCH)

    def _loader(self, files: list[tuple[Path, Path]], **options: Any) -> "Pairs":
        from monai import transforms as of
        from monai.data import CacheDataset
        from monai.data import DataLoader as Loader

        keys, size = ["image", "label"], (self.setting.plan.image_size,) * 2
        transform = of.Compose(
            [
                of.LoadImaged(keys),
                of.EnsureChannelFirstd(keys),
                of.ScaleIntensityd(keys),
                of.Resized(keys, size, mode=("bilinear", "area")),
            ]
        )
        rows = [{"image": str(image), "label": str(mask)} for image, mask in files]
        dataset = CacheDataset(rows, transform, num_workers=os.cpu_count(), progress=False)
        return Pairs(Loader(dataset, **options))

    def val_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        for x, y in self._val:
            yield x.to(DEVICE), y.to(DEVICE)


MAKERS: dict[str, Callable[[Setting], Contestant]] = {"ours": Ours, "plain": Plain, "monai": Monai}


# --- networks -----------------------------------------------------------------------------------------------


def our_network(plan: Plan) -> nn.Module:
    """Return our network in torch's default memory layout."""
    network = build_network(plan, Compute(DEVICE, "fp32"))
    return network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]


def monai_network(plan: Plan) -> nn.Module:
    from monai.networks.nets import BasicUNet

    levels = [plan.width * 2**k for k in range(5)]
    return BasicUNet(spatial_dims=2, in_channels=1, out_channels=1, features=[*levels, plan.width])


# --- running the contestants --------------------------------------------------------------------------------


def race(settings: dict[str, Setting], epochs: int) -> None:
    images = len(settings["ours"].split("Train"))
    of_epochs: dict[str, list[Epoch]] = {name: [] for name in settings}
    with ExitStack() as stack:
        contestants = {
            name: stack.enter_context(Apart(MAKERS[kind_of(name)], setting))
            for name, setting in settings.items()
        }
        for number in range(epochs):
            for name in sorted(contestants, reverse=number % 2 == 1):
                of_epochs[name].append(contestants[name].call("epoch"))
            took = ", ".join(f"{name}: {of[-1].seconds:.1f} s" for name, of in of_epochs.items())
            print(f"epoch {number + 1} of {epochs}: {took}", file=sys.stderr)
        facts = {name: contestant.call("facts") for name, contestant in contestants.items()}

    show_contestants(facts)
    speeds = {name: [images / one.seconds for one in of[1:]] for name, of in of_epochs.items()}
    rows = [["", "images/s", "ours is x as fast", "CPU ms/image", "waits for data", "memory", "of the peak"]]
    for name, of in of_epochs.items():
        ratio = "" if name == "ours" else spread_of(ratios(speeds["ours"], speeds[name]), ".2f")
        wait = sum(one.wait for one in of[1:]) / sum(one.seconds for one in of[1:])
        memory = facts[name].device_memory or contestants[name].memory
        used = facts[name].share(name, facts[name].operations.step, statistics.median(speeds[name]))
        cpu = spread_of([1000 * one.cpu / images for one in of[1:]])
        shares = [f"{wait:.1%}", f"{memory / MIB:.0f} MiB", percent(used)]
        rows.append([name, spread_of(speeds[name]), ratio, cpu, *shares])
    show(rows)
    for name, fact in facts.items():
        if fact.caching:
            print(f"{name}: {fact.caching:.1f} s of caching before the first epoch")
    for title, value in (("mean training loss", "loss"), ("validation Dice", "val_dice")):
        print(f"\n{title}")
        show(
            [["epoch", *map(str, range(1, epochs + 1))]]
            + [[name, *(f"{getattr(one, value):.4f}" for one in of)] for name, of in of_epochs.items()]
        )


def kind_of(name: str) -> str:
    return name.partition(",")[0]


def show_contestants(facts: dict[str, Facts]) -> None:
    for name, fact in facts.items():
        times = fact.operations.forward / facts["ours"].operations.forward
        print(f"{name}: {fact.line()}; forward {times:.3f} times ours")
    for of_format, threads in sorted({(fact.number_format, fact.threads) for fact in facts.values()}):
        rate = matrix_rate(of_format, threads)
        print(f"a matrix product in {of_format} reaches {rate / 1e9:.1f} GFLOP/s with {threads} threads")
    print(flush=True)


# --- the table ----------------------------------------------------------------------------------------------


COLUMNS = ("precision", "layout", "compile", "batch", "images/s", "waits", "memory", "GFLOP/s", "MFU")
ROW = "{:10}{:15}{:9}{:>6}  {:>28}{:>8}{:>12}{:>14}{:>9}"


def table(settings: Iterator[Setting], epochs: int, file: Path | None) -> None:
    """Measure each setting. Prints a table, and appends its rows to the file of JSON lines."""
    before = None
    print(ROW.format(*COLUMNS))
    for setting in settings:
        plan = setting.plan
        row = {"precision": plan.precision, "layout": setting.layout, "compile": plan.compile}
        row |= {"batch": plan.batch_size}
        try:
            facts, found = run_alone(setting, epochs)
        except (RuntimeError, ValueError) as error:  # out of memory, or the compiler failed
            found = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"}
            figures = [found["failed"][:60], "", "", "", ""]
        else:
            if facts.network != before:
                print(facts.line())
            before, figures = facts.network, words_of(found)
        append_json(file, row | found)
        print(ROW.format(*row.values(), *figures), flush=True)


def run_alone(setting: Setting, epochs: int) -> tuple[Facts, dict[str, Any]]:
    """Measure our engine: images/s and shares as in the table, memory in bytes."""
    with Apart(Ours, setting) as contestant:
        of = [contestant.call("epoch", False) for _ in range(epochs)][1:]
        facts: Facts = contestant.call("facts")
    speeds = [len(setting.split("Train")) / one.seconds for one in of]
    speed, seconds = statistics.median(speeds), sum(one.seconds for one in of)
    return facts, {
        "network": facts.network,
        **facts.operations._asdict(),
        "images_per_second": speeds,
        "wait": checked_share("wait for data", sum(one.wait for one in of), seconds, "the time"),
        "memory": facts.device_memory or contestant.memory,
        "flops": facts.operations.step * speed,
        "number_format": facts.number_format,
        "matrix_rate": facts.peak,
        "mfu": facts.share("ours", facts.operations.step, speed),
    }


def words_of(found: dict[str, Any]) -> list[str]:
    memory, flops = f"{found['memory'] / MIB:.0f} MiB", f"{found['flops'] / 1e9:.1f}"
    speeds = spread_of(found["images_per_second"])
    return [speeds, percent(found["wait"]), memory, flops, percent(found["mfu"])]


def make_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=6, help="number of epochs; the first is not timed")
    parser.add_argument("--workers", default="0,2", help="numbers of DataLoader workers of the plain loop")
    parser.add_argument("--monai-workers", default="0", help="the same for MONAI, whose items are cached")
    parser.add_argument("--contestants", default="fused,plain,monai", help="contestants besides ours")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--json", type=Path, help="append the table's rows to this file of JSON lines")
    parser.add_argument("--precisions", help="default: those that are fast on this device")
    parser.add_argument("--layouts", default="channels_last,contiguous")
    parser.add_argument("--compile", default="none,fused,graphs")
    parser.add_argument("--batches", default="16,64")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    # As in the real dataset, 1,864 of 5,826 phantoms are COVID-19 images in Train.
    data = args.data or f"phantom://{max(9, round(args.images * 3.2))}"
    with nullcontext(args.work) if args.work else tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if args.table:
            table(table_settings(args, data, work), args.epochs, args.json)
        else:
            race(race_settings(args, data, work), args.epochs)


def race_settings(args: argparse.Namespace, data: str, work: Path) -> dict[str, Setting]:
    images = prepare(data, work, args.size, {"Train": args.images, "Val": args.images // 4}, [TRAIN_CLASS])
    files = [unpack(images, split, work / "png") for split in ("Train", "Val")]
    setting = Setting(plan_of(args, data), images.packed, *files)
    wanted = args.contestants.split(",")
    settings = {"ours": setting}
    if "fused" in wanted:
        settings["ours, fused"] = setting._replace(plan=plan_of(args, data, compile="fused"))
    for kind, workers in (("plain", args.workers), ("monai", args.monai_workers)):
        if kind in wanted:
            settings |= {f"{kind}, {n}": setting._replace(workers=int(n)) for n in workers.split(",")}
    shape = f"{args.size}x{args.size}, batches of {args.batch}"
    print(f"\n{len(files[0])} Train and {len(files[1])} Val images of {shape}, on {device_name()}")
    return settings


def table_settings(args: argparse.Namespace, data: str, work: Path) -> Iterator[Setting]:
    precisions = args.precisions or fast_precisions()
    words = [of.split(",") for of in (precisions, args.layouts, args.compile, args.batches)]
    base = [first for first, *_ in words]
    for chosen in sorted(product(*words), key=lambda some: sum(map(str.__ne__, some, base))):
        precision, layout, mode, batch = chosen
        plan = plan_of(args, data, precision=precision, batch_size=int(batch), compile=mode)
        yield Setting(plan, whole_batches(args, data, work, int(batch)), layout=layout)


def whole_batches(args: argparse.Namespace, data: str, work: Path, batch: int) -> Path:
    """Use only whole batches if possible, because another batch size would be compiled again."""

    def some(count: int) -> Images:
        return prepare(data, work, args.size, {"Train": count}, [TRAIN_CLASS])

    count = len(some(args.images).table)
    return some(max(count // batch, 1) * batch).packed


def fast_precisions() -> str:
    """Return the precisions that a training would choose on this device, and on CUDA the other one too."""
    best = set_up(0, "auto", torch.get_num_threads()).precision
    return "bf16,fp32" if best == "bf16" else "fp32,bf16" if DEVICE.type == "cuda" else "fp32"


def plan_of(args: argparse.Namespace, data: str, **training: Any) -> Plan:
    shared = {"width": args.width, "depth": args.depth, "batch_size": args.batch, **training}
    return make_plan(data, args.size, args.epochs, shared, args.sets)


if __name__ == "__main__":
    main()
