"""Stage `evaluate_external`: scores a trained network on images of another hospital.

The thresholds are those that the stage evaluate chose on the Val split of the training data. Nothing is
chosen on these images.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # torch reads the variable when it is imported
    # Otherwise torch's waiting threads would spin and take cores away from the scoring threads.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pandas as pd

from tasks.common.files import replacing, write_table
from tasks.common.raw import RawDataset
from tasks.evaluate import Evaluation
from tasks.inference.masks import OperatingPoints, read_points
from tasks.inference.predict import load_networks
from tasks.networks.device import set_up
from tasks.packed.reader import PackedSplit
from tasks.settings.experiments import Plan
from tasks.settings.prediction import Prediction
from tasks.settings.training import Target
from tasks.support.cli import InputError, stage_main


def evaluate_external(
    plan: Plan,
    prediction: Prediction,
    trained: Path,
    points: OperatingPoints,
    images: Path,
    raw: Path,
    out: Path,
) -> None:
    """Score the network in the folder `trained` on all images of an external dataset.

    `images` holds the packed images, or those restricted to predicted lungs, and `raw` the dataset. Writes
    `images.csv` under `out`, with one row per image and target that has reference masks: the columns of the
    same file of the stage evaluate.

    Raises:
        InputError: the dataset has no mask of a target that the network predicts.
    """
    dataset = RawDataset(raw)
    half = dataset.manifest["half"].iloc[0]  # all images of an external dataset are in one
    targets = _targets(plan, dataset, half)
    if not targets:
        raise InputError(f"{raw}: these images have no {' or '.join(plan.targets)} masks")
    compute = set_up(plan.seed, plan.precision, plan.threads)
    networks = load_networks(trained, compute)
    evaluation = Evaluation(plan, prediction, networks, compute, points, dataset, step_by_step=False)
    with replacing(out) as folder:
        folder.mkdir()
        evaluation.run(PackedSplit(images, half, "Test"), "Test", targets=targets)
        rows = pd.DataFrame(evaluation.rows)
        write_table(rows, folder / "images.csv")
    for target, of_one in rows.groupby("target", sort=False):
        shown = f"IoU {of_one['iou'].mean():.4f}, Dice {of_one['dice'].mean():.4f}"
        print(f"{plan.name}: {target}, {len(of_one)} images: {shown}", flush=True)


def _targets(plan: Plan, dataset: RawDataset, half: str) -> Sequence[Target]:
    """The targets of the network that have reference masks."""
    kinds = dataset.kinds(half)
    return [target for target in plan.targets if target in kinds]


def main() -> None:
    parser = argparse.ArgumentParser(description="Score a trained network on an external dataset.")
    parser.add_argument("plan", type=Path, help="artifacts/plans/TRAINING.json")
    parser.add_argument("prediction", type=Path, help="artifacts/plans/EXPERIMENT.prediction.json")
    parser.add_argument("trained", type=Path, help="artifacts/train/TRAINING/network")
    parser.add_argument("settings", type=Path, help="artifacts/evaluation/TRAINING/settings.json")
    parser.add_argument("images", type=Path, help="data/external/DATASET/packed/SIZE or .../lungs/EXPERIMENT")
    parser.add_argument("raw", type=Path, help="data/external/DATASET/raw")
    parser.add_argument("out", type=Path, help="folder to create")
    args = parser.parse_args()
    plan = Plan.from_json(args.plan.read_text(encoding="utf-8"))
    prediction = Prediction.from_json(args.prediction.read_text(encoding="utf-8"))
    points = read_points(args.settings)
    evaluate_external(plan, prediction, args.trained, points, args.images, args.raw, args.out)


if __name__ == "__main__":
    stage_main(main)
