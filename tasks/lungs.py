"""Stage `lungs`: copies the packed images with everything outside the lungs masked out.

The lungs are predicted by a trained network; reference lung masks are not used in any split. Images and
infection masks are 0 outside the predicted lungs, and `region.npy` contains the predicted lungs. The network
was trained on the Train images, so its lungs may be more accurate there than on new images.

With `--settings`, as the stage `lungs_external`, it does so with images that have no Val split.
"""

import argparse
from collections.abc import Set
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd

from tasks.common.files import replacing, write_table
from tasks.common.raw import SPLITS, RawDataset
from tasks.inference.masks import OperatingPoints, read_points, to_masks
from tasks.inference.points import choose_points
from tasks.inference.predict import Networks, load_networks, predict_images
from tasks.networks.device import Compute, set_up
from tasks.packed.reader import PackedSplit, add_dropped_argument, dropped_ids
from tasks.packed.writer import ArrayWriter
from tasks.settings.experiments import Plan
from tasks.settings.prediction import Prediction
from tasks.support.cli import InputError, stage_main

#: The arrays that are masked outside the lungs.
BLANKED = ("image", "infection")


def restrict(
    plan: Plan,
    prediction: Prediction,
    trained: Path,
    packed: Path,
    raw: Path,
    out: Path,
    dropped: Set[str] = frozenset(),
    points: OperatingPoints | None = None,
) -> None:
    """Write the plan's half of `packed` under `out`, restricted to the predicted lungs.

    `trained` is the folder of the network. Its probabilities become lung masks as `prediction` specifies, at
    the network's image size. Images whose ids are in `dropped` are not used to choose a threshold. Nothing is
    chosen if `points` are given.

    Raises:
        InputError: the half has no infection masks.
    """
    if plan.half != "infection":
        raise InputError(
            f"{plan.name}: the {plan.half} half has no infection masks, so it cannot be restricted to lungs"
        )
    compute = set_up(plan.seed, plan.precision, plan.threads)
    networks = load_networks(trained, compute)
    if points is None:
        val = PackedSplit(packed, plan.half, "Val", plan.targets, plan.train_classes, dropped)
        points = choose_points(networks, plan, prediction, val, RawDataset(raw), compute)
    table = pd.read_csv(packed / "images.csv")
    with replacing(out) as partial:
        for split in SPLITS:
            if ((table["half"] == plan.half) & (table["split"] == split)).any():
                images = PackedSplit(packed, plan.half, split, ("infection",))
                folder = partial / plan.half / split
                folder.mkdir(parents=True)
                _restrict_split(networks, plan, prediction, points, images, compute, folder)
        write_table(table[table["half"] == plan.half], partial / "images.csv")


def _restrict_split(
    networks: Networks,
    plan: Plan,
    prediction: Prediction,
    points: OperatingPoints,
    images: PackedSplit,
    compute: Compute,
    folder: Path,
) -> None:
    what = f"{plan.name} {folder.name} batches"
    predictions = predict_images(networks, images, compute, prediction.flip_average, what)
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(ArrayWriter(folder / f"{name}.npy", (plan.image_size,) * 2))
            for name in (*BLANKED, "region")
        }
        for index, predicted in enumerate(predictions):
            of_lung = predicted.averaged[plan.targets.index("lung")]
            lungs = to_masks({"lung": of_lung}, points, prediction)["lung"]
            here = slice(index, index + 1)
            seen = {"image": images.images(here)[0, 0].numpy(), "infection": images.masks(here)[0, 0].numpy()}
            for name in BLANKED:
                writers[name].append(np.where(lungs, seen[name], 0))
            writers["region"].append(lungs)


def main() -> None:
    parser = argparse.ArgumentParser(description="Restrict the packed images to the predicted lungs.")
    parser.add_argument("plan", type=Path, help="artifacts/plans/TRAINING.json")
    parser.add_argument("prediction", type=Path, help="artifacts/plans/EXPERIMENT.prediction.json")
    parser.add_argument("trained", type=Path, help="artifacts/train/TRAINING/network")
    parser.add_argument("packed", type=Path, help="data/packed/SIZE")
    parser.add_argument("raw", type=Path, help="data/raw")
    parser.add_argument("out", type=Path, help="folder to create")
    add_dropped_argument(parser)
    parser.add_argument("--settings", type=Path, help="settings.json of evaluate, with the thresholds to use")
    args = parser.parse_args()
    plan = Plan.from_json(args.plan.read_text(encoding="utf-8"))
    prediction = Prediction.from_json(args.prediction.read_text(encoding="utf-8"))
    dropped = dropped_ids(args.dropped)
    points = read_points(args.settings) if args.settings else None
    restrict(plan, prediction, args.trained, args.packed, args.raw, args.out, dropped, points)


if __name__ == "__main__":
    stage_main(main)
