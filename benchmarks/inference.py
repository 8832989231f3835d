"""Measure the cost of evaluation: the code of the stage `evaluate`, part by part, and a plain loop.

    python benchmarks/inference.py [--data covidqu.zip] [--work FOLDER] [--images 256] [--rounds 5]

First trains a network for a few epochs, so that its masks have realistic outlines. Then runs these
contestants, each in a process of its own, on the same Test images of all classes:

    network         probabilities at the network's size, tasks.inference.predict.predict_images network,
    twice  the same, averaged with those of the mirrored images own size        probabilities and reference
    masks at the masks' size, tasks.inference.predict.predict_cases evaluation      the whole stage: every
    score, calibration, masks as PNGs, tables plain, N        typical user code: batches of N PNG files
    decoded and resized by Pillow, the network in
                    float32 and the default memory layout, sigmoid, resizing to the mask's size, threshold,
                    and IoU per image with numpy. Nothing else is scored or written

They take turns. The order is reversed every other round, and the first round is a warm-up. Prints images/s
(median, minimum and maximum of the rounds); the share of the rate of a matrix product in the same number
format that the network's passes reach; peak memory, on CUDA as allocated by torch; the mean IoU of
contestants that compute it; and how the time of `evaluation` is distributed. For the images, and for the
requirements on a GPU machine, see benchmarks/train.py.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from apart import Apart, Stopwatch
from experiment import HALF, TARGET, make_plan, parser_of, prepare, unpack
from output import MIB, append_json, percent, show, spread_of
from PIL import Image
from rates import DEVICE, Facts, checked_share, device_memory, number_format, operations, plan_words
from torch import Tensor
from torch.nn import functional

import tasks.evaluate
import tasks.inference.predict
import tasks.scoring.images
from tasks.common.raw import CLASSES, RawDataset
from tasks.inference.masks import PLAIN
from tasks.inference.predict import predict_cases, predict_images
from tasks.networks.device import Compute, set_up
from tasks.networks.network import load_network
from tasks.packed.reader import PackedSplit
from tasks.settings.experiments import Plan
from tasks.train import train


class Setting(NamedTuple):
    """The settings of a contestant."""

    plan: Plan
    packed: Path
    raw: Path
    trained: Path
    files: list[tuple[Path, Path]]
    flip: bool = False
    batch: int = 1


class Round(NamedTuple):
    seconds: float
    iou: float | None
    parts: dict[str, float]
    """Seconds of each part."""


class Contestant:
    """A network, and what is done with it."""

    def __init__(self, setting: Setting, compute: Compute) -> None:
        self.setting, self.compute, self.watch = setting, compute, Stopwatch()
        self.network = load_network(setting.trained / "network", compute)

    def work(self) -> float | None:
        """Process all images once. Returns their mean IoU, if it is computed."""
        raise NotImplementedError

    def facts(self) -> Facts:
        memory, plan = device_memory(), self.setting.plan
        of_format, threads = number_format(self.compute.precision), torch.get_num_threads()
        return Facts(plan_words(plan), operations(self.network, plan.image_size), of_format, threads, memory)

    def run(self) -> Round:
        start = time.perf_counter()
        iou = self.work()
        seconds = time.perf_counter() - start
        return Round(seconds, iou, self.watch.read())


class Predicting(Contestant):
    """Base of contestants that start with a network of the stage."""

    def __init__(self, setting: Setting) -> None:
        plan = setting.plan
        super().__init__(setting, set_up(plan.seed, plan.precision, plan.threads))
        self.split = PackedSplit(setting.packed, HALF, "Test")
        self.dataset = RawDataset(setting.raw)


class Network(Predicting):
    def work(self) -> None:
        for _ in predict_images([self.network], self.split, self.compute, self.setting.flip, "network"):
            pass


class OwnSize(Predicting):
    def work(self) -> None:
        plan, flip = self.setting.plan, self.setting.flip
        for _ in predict_cases(
            [self.network], plan, self.split, self.dataset, self.compute, flip, "own size"
        ):
            pass


class Evaluation(Predicting):
    """The whole stage, with its parts timed from inside."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        watch, batches = self.watch, tasks.inference.predict.predict_images
        tasks.inference.predict.predict_images = lambda *args: watch.each("network", batches(*args))
        for place, name, part in (
            (tasks.inference.predict, "read_mask", "true masks decoded"),
            (tasks.inference.predict, "resized", "probabilities resized"),
            (tasks.evaluate, "score_masks", "scores"),
            (tasks.scoring.images, "surface_distances", "surfaces"),
            (tasks.scoring.images, "hausdorff95", "surfaces"),
            (tasks.scoring.images, "surface_dice", "surfaces"),
            (tasks.evaluate, "calibration_bins", "calibration"),
            (tasks.evaluate, "encode_mask", "predicted masks encoded"),
        ):
            if hasattr(place, name):  # otherwise its time is part of its caller's
                setattr(place, name, watch.on_host(part, getattr(place, name)))

    def work(self) -> float:
        s = self.setting
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "evaluation"
            prediction = PLAIN.model_copy(update={"flip_average": s.flip})
            tasks.evaluate.evaluate(s.plan, prediction, s.trained / "network", s.packed, s.raw, out)
            rows = pd.read_csv(out / "images.csv")
        return float(rows.loc[(rows["target"] == TARGET) & (rows["split"] == "Test"), "iou"].mean())


class PlainLoop(Contestant):
    """Evaluation as in typical user code."""

    def __init__(self, setting: Setting) -> None:
        torch.set_num_threads(setting.plan.threads or torch.get_num_threads())
        super().__init__(setting, Compute(DEVICE, "fp32"))
        self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    @torch.no_grad()
    def work(self) -> float:
        size, ious = (self.setting.plan.image_size,) * 2, []
        for start in range(0, len(self.setting.files), self.setting.batch):
            files = self.setting.files[start : start + self.setting.batch]
            x = torch.stack([read_image(image, size) for image, _ in files]).to(DEVICE)
            probabilities = torch.sigmoid(self.network(x)).cpu()
            for probability, (_, mask_file) in zip(probabilities, files, strict=True):
                truth = np.array(Image.open(mask_file).convert("L")) > 0
                own = functional.interpolate(
                    probability[None], size=truth.shape, mode="bilinear", align_corners=False
                )
                ious.append(iou(own[0, 0].numpy() >= 0.5, truth))
        return float(np.mean(ious))


def read_image(file: Path, size: tuple[int, int]) -> Tensor:
    picture = Image.open(file).convert("L").resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture, dtype=np.float32) / 255).unsqueeze(0)


def iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    union = np.logical_or(predicted, truth).sum()
    return float(np.logical_and(predicted, truth).sum() / union) if union else 1.0


MAKERS: dict[str, Callable[[Setting], Contestant]] = {
    "network": Network,
    "network, twice": Network,
    "own size": OwnSize,
    "evaluation": Evaluation,
    "plain, 1": PlainLoop,
    "plain, 16": PlainLoop,
}
EXTRA_SETTINGS = {"network, twice": {"flip": True}, "plain, 16": {"batch": 16}}


def race(setting: Setting, names: list[str], rounds: int, file: Path | None) -> dict[str, list[Round]]:
    """Measure each contestant. Prints a table, and appends its rows to the file of JSON lines."""
    done: dict[str, list[Round]] = {name: [] for name in names}
    with ExitStack() as stack:
        contestants = {
            name: stack.enter_context(Apart(MAKERS[name], setting._replace(**EXTRA_SETTINGS.get(name, {}))))
            for name in names
        }
        for number in range(rounds + 1):
            for name in sorted(contestants, reverse=number % 2 == 1):
                one = contestants[name].call("run")
                print(f"round {number} of {rounds}: {name}: {one.seconds:.1f} s", file=sys.stderr)
                if number:  # the first round is a warm-up
                    done[name].append(one)
        facts = {name: contestant.call("facts") for name, contestant in contestants.items()}
    print(facts[names[0]].line())
    rows = [["", "images/s", "ms/image", "of the peak", "peak memory", "IoU"]]
    for name, of in done.items():
        found = found_of(name, facts[name], of, len(setting.files))
        found["memory"] = facts[name].device_memory or contestants[name].memory
        append_json(file, {"name": name} | found)
        rows.append([name, *words_of(found)])
    show(rows)
    return done


def found_of(name: str, facts: Facts, rounds: list[Round], images: int) -> dict[str, Any]:
    speeds = [images / one.seconds for one in rounds]
    passes = 2 if EXTRA_SETTINGS.get(name, {}).get("flip") else 1
    return {
        "network": facts.network,
        **facts.operations._asdict(),
        "images_per_second": speeds,
        "number_format": facts.number_format,
        "matrix_rate": facts.peak,
        "mfu": facts.share(name, passes * facts.operations.forward, statistics.median(speeds)),
        "iou": rounds[0].iou,
    }


def words_of(found: dict[str, Any]) -> list[str]:
    speeds = found["images_per_second"]
    iou = "" if found["iou"] is None else f"{found['iou']:.4f}"
    each, memory = f"{1000 / statistics.median(speeds):.1f}", f"{found['memory'] / MIB:.0f} MiB"
    return [spread_of(speeds), each, percent(found["mfu"]), memory, iou]


def show_parts(rounds: list[Round], images: int) -> None:
    total = sum(one.seconds for one in rounds)
    parts = {part: sum(one.parts.get(part, 0.0) for one in rounds) for part in rounds[0].parts}
    parts["other scores"] = parts.pop("scores", 0.0) - parts.get("surfaces", 0.0)
    parts["the rest"] = total - sum(parts.values())
    rows = [["", "share", "ms/image"]]
    for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        share = percent(checked_share(part, seconds, total, "the time"))
        rows.append([part, share, f"{1000 * seconds / len(rounds) / images:.2f}"])
    print("\ntime of evaluation by part")
    show(rows)


def make_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3, help="epochs of the training")
    parser.add_argument("--contestants", default=";".join(MAKERS), help="separated by semicolons")
    parser.add_argument("--json", type=Path, help="append the table's rows to this file of JSON lines")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    # As in the real dataset, 1,166 of 5,826 phantoms are in Test.
    data = args.data or f"phantom://{max(9, round(args.images * 5.1))}"
    plan = make_plan(data, args.size, args.epochs, {"width": args.width}, args.sets)
    with nullcontext(args.work) if args.work else tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        take = {"Train": 2 * args.images, "Val": args.images // 4, "Test": args.images}
        images = prepare(data, work, args.size, take, CLASSES)
        files = unpack(images, "Test", work / "png")
        with tempfile.TemporaryDirectory() as trained:
            out = Path(trained) / "benchmark"
            train(plan, images.packed, out)
            print(f"\n{len(files)} Test images", flush=True)
            setting = Setting(plan, images.packed, images.raw, out, files)
            done = race(setting, args.contestants.split(";"), args.rounds, args.json)
    if "evaluation" in done:
        show_parts(done["evaluation"], len(files))


if __name__ == "__main__":
    main()
