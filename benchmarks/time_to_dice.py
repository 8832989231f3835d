"""Compare how long a training takes until its masks are good: ours, a plain PyTorch loop, MONAI and nnU-Net.

    python benchmarks/time_to_dice.py OUT --data covidqu.zip [--work FOLDER] [--nnunet-python PYTHON]
    python benchmarks/time_to_dice.py OUT ... --contestants ours,plain --target 0.7 --limit 1200 --repeats 3

The task is the infection mask of the COVID-19 images, trained on all of Train and scored on all of Val, at
128x128. Measured are the seconds of training until the mean Val Dice first reaches --target: Dice of each
image at probability 0.5, then the mean over the images. One function scores the masks of all contestants.

    ours     the engine of tasks/training with the experiment `combined` of params.yaml and
             presets/laptop.yaml, for this target and these images alone: residual U-Net of width 24 on
             patches of 2x2 pixels, BCE + IoU of the batch, AdamW, one-cycle schedule over 28 epochs up to
             0.003, averaged weights, its augmentation, precision auto. --experiment and --set choose others
    plain    a loop as in tutorials: all images in memory as float32 tensors, DataLoader without workers,
             plain U-Net of report 2 (two convolutions with batch normalisation a level), Adam at 0.001, BCE
             + Dice loss, float32, loss.item() at each step, no augmentation
    monai    network, optimiser and scaling of MONAI's 2D tutorial (2d_segmentation/torch): UNet with two
             residual units a level, Adam at 0.001, ScaleIntensity; a CacheDataset, DiceCELoss; horizontal
             flips instead of the tutorial's crops and quarter turns, which do not suit X-rays; float32
    nnunet   nnU-Net v2's configuration 2d with its own plans, trainer, schedule and augmentation, of which
             only the start is run (benchmarks/nnunet.py); skipped if PYTHON cannot import nnunetv2
    same     the plain loop with our network and its first weights: what the engine and its settings add

The networks of `plain` and `monai` have the number of parameters of ours, as closely as a whole number for
the width allows. The batches of all but nnU-Net have the size of ours. Masks are binary, except for ours,
whose targets are the marked share of each pixel.

The clock starts before the first batch of the first step, when all images lie decoded at 128x128 in memory
(in nnU-Net's files, for nnU-Net). It stands still during validation. A contestant validates after the first
step that ends a tenth of its time so far after the last validation, but at least --every / 5 and at most
--every seconds after it: by default 2 to 10. So a result is late by up to 10%, or 2 s, and a step. A run
ends at the target, after --limit seconds of training, or, for ours, with its last epoch. Masks are predicted
in each contestant's own precision; the table has the seconds of all validations of a run.

Each run is a process of its own with the same cores and number of threads. Contestants take turns, and the
order is reversed every other time. Repeat N has seed N - 1. OUT holds runs/*.jsonl, with one line for each
validation, written at once, and results.json, results.md and curves.svg, written after each run. The same
command continues after an interruption, with the run that was interrupted.

The rate of our step at the full size, and its share of the machine's matrix rate, are in
benchmarks/train.py:

    python benchmarks/train.py --table --size 256 --width 64 --images 32 --epochs 3 \\
        --layouts channels_last --compile none --batches 16

33,920 divided by its images/s is the seconds that an epoch over the whole dataset would take.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contestants import Contestant, Monai, Ours, Plain, Setting
from dice_curves import Point, Run, svg, table_of
from experiment import HALF, ROOT, TARGET, TRAIN_CLASS, prepare
from output import append_json
from train import cpu_seconds

from models.metrics import confusion, dice
from tasks.common.files import replacing
from tasks.packed.reader import PackedSplit, scaled
from tasks.settings.changes import parse_assignment, read_preset, with_changes
from tasks.settings.experiments import Plan
from tasks.settings.params import parse_params

#: Images per forward pass in validation.
AT_ONCE = 32

#: A validation follows this share of the time so far after the last, but within every / SHORTER to every.
LATE, SHORTER = 0.1, 5

#: More images than any split has.
ALL = 10**9


def make_nnunet(setting: Setting, seed: int) -> Contestant:
    from nnunet import NnUnet  # in a Python that has nnunetv2

    return NnUnet(setting, seed)


MAKERS: dict[str, Callable[[Setting, int], Contestant]] = {
    "ours": Ours,
    "plain": Plain,
    "monai": Monai,
    "nnunet": make_nnunet,
    "same": partial(Plain, same=True),
}


# --- one run ------------------------------------------------------------------------------------------------


class EndedError(Exception):
    """The run has reached its target or its limit."""


class Course:
    """Validates between the steps of a training, and ends it. The clock stands still during validation."""

    def __init__(
        self, setting: Setting, validate: Callable[[], float], write: Callable[[Point], None]
    ) -> None:
        self._setting, self._validate, self._write = setting, validate, write
        self._steps, self._due = 0, setting.every / SHORTER
        #: When the clocks started, moved on by what validations took.
        self._start, self._cpu_start = time.perf_counter(), cpu_seconds()

    def after_step(self) -> None:
        """Validate if it is time to.

        Raises:
            EndedError: the target or the limit is reached.
        """
        self._steps += 1
        seconds = self._seconds()
        if seconds < min(self._due, self._setting.limit):
            return
        if self._score(seconds) >= self._setting.target:
            raise EndedError("target")
        if seconds >= self._setting.limit:
            raise EndedError("limit")

    def end(self) -> str:
        """Validate after the last step of a training that came to its end. Returns how the run ended."""
        return "target" if self._score(self._seconds()) >= self._setting.target else "last epoch"

    def _seconds(self) -> float:
        return time.perf_counter() - self._start

    def _score(self, seconds: float) -> float:
        begun, cpu_begun = time.perf_counter(), cpu_seconds()
        found = self._validate()
        took = time.perf_counter() - begun
        cpu = cpu_begun - self._cpu_start
        self._write({"seconds": seconds, "cpu": cpu, "steps": self._steps, "dice": found, "validation": took})
        every = self._setting.every
        self._due = seconds + min(every, max(every / SHORTER, seconds * LATE))
        self._start += time.perf_counter() - begun
        self._cpu_start += cpu_seconds() - cpu_begun
        return found


@torch.no_grad()
def mean_dice(contestant: Contestant, val: PackedSplit) -> float:
    """Return the mean over the Val images of the Dice of the contestant's masks, at the network's size."""
    network, scores = contestant.network, []
    training = network.training
    network.eval()
    for start in range(0, len(val), AT_ONCE):
        rows = slice(start, min(start + AT_ONCE, len(val)))
        reference = scaled(val.masks(rows)) >= 0.5
        scores.append(dice(confusion(contestant.marked(rows), reference)))
    network.train(training)
    return float(torch.cat(scores).mean())


def run(setting: Setting, name: str, repeat: int, file: Path) -> None:
    """Train one contestant in this process. Writes its facts, points and end to a file, at once."""
    file.unlink(missing_ok=True)  # of an interrupted run
    contestant = MAKERS[name](setting, repeat - 1)
    append_json(file, {"facts": contestant.facts, "load": os.getloadavg()[0]})
    val = setting.split("Val")
    course = Course(setting, lambda: mean_dice(contestant, val), partial(append_json, file))
    try:
        contestant.train(course.after_step)
        ended = course.end()
    except EndedError as error:
        ended = str(error)
    append_json(file, {"ended": ended})
    contestant.close()


def run_alone(out: Path, name: str, repeat: int) -> None:
    """Run a contestant in a process that was started for it, on the first cores that it may use."""
    setting = Setting.from_json(json.loads((out / "setting.json").read_text(encoding="utf-8")))
    cores = sorted(os.sched_getaffinity(0))[: setting.threads]
    os.sched_setaffinity(0, cores)
    run(setting, name, repeat, file_of(out, name, repeat))


def file_of(out: Path, name: str, repeat: int) -> Path:
    return out / "runs" / f"{name}-{repeat}.jsonl"


# --- all runs -----------------------------------------------------------------------------------------------


def read_run(out: Path, name: str, repeat: int) -> Run | None:
    """Read a run; None if there is none that got to its first step."""
    file = file_of(out, name, repeat)
    if not file.exists():
        return None
    # The last line of a killed run may be incomplete.
    whole = [row for row in file.read_text(encoding="utf-8").splitlines(keepends=True) if row.endswith("\n")]
    if not whole:
        return None
    first, *lines = map(json.loads, whole)
    ended = lines.pop()["ended"] if lines and "ended" in lines[-1] else ""
    return Run(name, repeat, first["facts"], first["load"], lines, ended)


def race(out: Path, setting: Setting, names: Sequence[str], repeats: int, nnunet_python: str) -> None:
    """Run the contestants in turns, and write the results after each run."""
    pythons = {name: nnunet_python if name == "nnunet" else sys.executable for name in names}
    failures = {name: why for name in names if (why := skipped(name, pythons[name]))}
    for repeat in range(1, repeats + 1):
        for name in names if repeat % 2 else reversed(names):
            done = read_run(out, name, repeat)
            if name not in failures and not (done and done.ended):
                if failed := start(out, setting, name, repeat, pythons[name]):
                    failures[name] = failed
                print(line_of(read_run(out, name, repeat), setting.target, failed), flush=True)
            runs = [found for r in range(1, repeats + 1) for n in names if (found := read_run(out, n, r))]
            write_results(out, setting, names, runs, failures)


def skipped(name: str, python: str) -> str:
    """Return why a contestant cannot run, or an empty text."""
    module = {"monai": "monai", "nnunet": "nnunetv2"}.get(name)
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    if module and subprocess.run([python, "-c", look], capture_output=True).returncode:
        return f"skipped: {python} cannot import {module}"
    return ""


def start(out: Path, setting: Setting, name: str, repeat: int, python: str) -> str:
    """Run a contestant in a process of its own. Returns how it failed, or an empty text."""
    file = file_of(out, name, repeat)
    file.parent.mkdir(exist_ok=True)
    command = [python, __file__, str(out), "--run", name, "--repeat", str(repeat)]
    numbers = {"OMP_NUM_THREADS": str(setting.threads), "CUDA_VISIBLE_DEVICES": ""}
    log = file.with_suffix(".log")
    with log.open("w", encoding="utf-8") as lines:
        ended = subprocess.run(command, env=os.environ | numbers, stdout=lines, stderr=lines)
    if not ended.returncode:
        return ""
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    return f"failed: {said[-1][:200]} ({log})"


def line_of(found: Run | None, target: float, failed: str) -> str:
    if found is None or failed:
        return failed
    seconds, best = found.seconds(target), max(p["dice"] for p in found.points)
    reached = f"{target} after {seconds:.1f} s" if seconds < math.inf else f"{target} not reached"
    return f"{found.name}, repeat {found.repeat}: {reached}; best Val Dice {best:.4f} (load {found.load:.1f})"


def write_results(
    out: Path, setting: Setting, names: Sequence[str], runs: Sequence[Run], failures: Mapping[str, str]
) -> None:
    """Write results.json, results.md and curves.svg."""
    target = setting.target
    document = {
        "machine": machine(),
        "setting": setting.to_json(),
        "train_images": len(setting.split("Train")),
        "val_images": len(setting.split("Val")),
        "failures": failures,
        "runs": [of._asdict() | {"seconds": finite(of.seconds(target))} for of in runs],
    }
    texts = {
        "results.json": json.dumps(document, indent=1),
        "results.md": "\n".join(table_of(names, runs, failures, target, setting.limit)),
        "curves.svg": svg(names, runs, target),
    }
    for file, text in texts.items():
        with replacing(out / file) as beside:
            beside.write_text(text + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = model[0].partition(":")[2].strip() if model else platform.processor()
    return {"processor": processor, "cores": os.cpu_count(), "torch": torch.__version__}


def finite(seconds: float) -> float | None:
    return seconds if seconds < math.inf else None


# --- command line -------------------------------------------------------------------------------------------


def make_setting(args: argparse.Namespace, work: Path) -> Setting:
    """Prepare the images, and read the experiment from params.yaml and the preset laptop."""
    plan = plan_of(args)
    images = prepare(args.data, work, plan.image_size, {"Train": ALL, "Val": ALL}, [TRAIN_CLASS])
    return Setting(plan, images.packed, args.threads, args.target, args.every, args.limit)


def plan_of(args: argparse.Namespace) -> Plan:
    one = {"targets": [TARGET], "train_classes": [TRAIN_CLASS], "prediction": {"within_lungs": False}}
    changes = {
        "presets/laptop.yaml": read_preset(ROOT / "presets" / "laptop.yaml"),
        "the task": {
            "data": {"source": args.data},
            "training": {"half": HALF, "seeds": 1},
            "experiments": {args.experiment: one},
        },
        **{word: parse_assignment(word) for word in args.sets},
    }
    params = with_changes((ROOT / "params.yaml").read_text("utf-8"), changes, [args.experiment])
    return parse_params(params).plans[f"{args.experiment}-seed0"]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--data", default="phantom://", help="a zip, a folder or a URL, as data.source")
    parser.add_argument("--work", type=Path, help="folder in which prepared images are kept")
    parser.add_argument("--experiment", default="combined", help="experiment of params.yaml for ours")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="a value of params.yaml"
    )
    parser.add_argument("--contestants", default="ours,plain,monai,nnunet", help="of " + ", ".join(MAKERS))
    parser.add_argument("--target", type=float, default=0.7, help="mean Val Dice")
    parser.add_argument("--limit", type=float, default=1200, help="seconds of training of each run")
    parser.add_argument(
        "--every", type=float, default=10, help="most seconds of training between validations"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="threads and cores of each run")
    parser.add_argument("--nnunet-python", default=sys.executable, help="a Python that can import nnunetv2")
    parser.add_argument("--run", choices=MAKERS, help=argparse.SUPPRESS)  # in the process of one run
    parser.add_argument("--repeat", type=int, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    args = make_parser().parse_args()
    if args.run:
        run_alone(args.out, args.run, args.repeat)
        return
    names = args.contestants.split(",")
    if unknown := [name for name in names if name not in MAKERS]:
        sys.exit(f"error: --contestants: {unknown[0]!r} is not one of {', '.join(MAKERS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    # Prepared images must remain for a command that continues.
    setting = make_setting(args, args.work or args.out / "work")
    there = args.out / "setting.json"
    wanted = json.dumps(setting.to_json(), indent=1) + "\n"
    if there.exists() and there.read_text(encoding="utf-8") != wanted:
        sys.exit(f"error: {args.out} holds results with other settings; name another folder")
    there.write_text(wanted, encoding="utf-8")
    race(args.out, setting, names, args.repeats, args.nnunet_python)
    print("\n" + (args.out / "results.md").read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
