"""Stage `lungs`: the packed images with all but the lungs blanked, as a trained network predicts them.

What stands outside the predicted lungs is 0 in the images and in the infection masks; `region.npy` holds the
lungs themselves. No true lung mask is looked at, in any split. The network has seen the Train images, so on
these it may find the lungs better than on new ones.
"""

import argparse
from collections.abc import Set
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from tasks.common.files import replacing, write_table
from tasks.common.raw import SPLITS, RawDataset
from tasks.inference.predict import Thresholds, choose_thresholds, predict_batches, to_masks
from tasks.networks.device import Compute, set_up
from tasks.networks.network import load_network
from tasks.packed.reader import PackedSplit, add_dropped_argument, dropped_ids
from tasks.packed.writer import ArrayWriter
from tasks.settings.schema import Plan, Prediction
from tasks.support.cli import InputError, stage_main

#: The arrays that are blanked outside the lungs.
BLANKED = ("image", "infection")


def restrict(
    plan: Plan,
    prediction: Prediction,
    trained: Path,
    packed: Path,
    raw: Path,
    out: Path,
    left_out: Set[str] = frozenset(),
) -> None:
    """Write the plan's half of `packed` once more under `out`, restricted to the lungs.

    `trained` is the folder of the network. The lungs are made of its probabilities as `prediction` says, at
    the network's size. No threshold is chosen on the ids that are `left_out`.

    Raises:
        InputError: the half holds no infection masks.
    """
    if plan.half != "infection":
        raise InputError(
            f"{plan.name}: the {plan.half} half holds no infection masks to look for within lungs"
        )
    compute = set_up(plan.seed, plan.precision, plan.threads)
    network = load_network(trained, compute)
    val = PackedSplit(packed, plan.half, "Val", plan.targets, plan.train_classes, left_out)
    thresholds = choose_thresholds(network, plan, prediction, val, RawDataset(raw), compute)
    table = pd.read_csv(packed / "images.csv")
    with replacing(out) as partial:
        for split in SPLITS:
            if ((table["half"] == plan.half) & (table["split"] == split)).any():
                images = PackedSplit(packed, plan.half, split, ("infection",))
                folder = partial / plan.half / split
                folder.mkdir(parents=True)
                _restrict_split(network, plan, prediction, thresholds, images, compute, folder)
        write_table(table[table["half"] == plan.half], partial / "images.csv")


def _restrict_split(
    network: nn.Module,
    plan: Plan,
    prediction: Prediction,
    thresholds: Thresholds,
    images: PackedSplit,
    compute: Compute,
    folder: Path,
) -> None:
    what = f"{plan.name} {folder.name} batches"
    batches = predict_batches(network, images, compute, prediction.flip_average, what)
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(ArrayWriter(folder / f"{name}.npy", (plan.image_size,) * 2))
            for name in (*BLANKED, "region")
        }
        for index, probabilities in enumerate(batches):
            of_lung = probabilities[plan.targets.index("lung")]
            lungs = to_masks({"lung": of_lung}, thresholds, prediction)["lung"]
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
    parser.add_argument("out", type=Path, help="the folder to make")
    add_dropped_argument(parser)
    args = parser.parse_args()
    plan = Plan.from_json(args.plan.read_text(encoding="utf-8"))
    prediction = Prediction.from_json(args.prediction.read_text(encoding="utf-8"))
    left_out = dropped_ids(args.dropped)
    restrict(plan, prediction, args.trained, args.packed, args.raw, args.out, left_out)


if __name__ == "__main__":
    stage_main(main)
