"""Stage `evaluate`: score a trained network on the Test split, at the masks' original size.

Probabilities are resized back to each mask's own size before they are compared, so that networks
trained at different image sizes stand in one table.
"""

import argparse
import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.cli import stage_main
from tasks.compute import Compute, set_up
from tasks.files import replacing, write_table
from tasks.network import load_network
from tasks.packed import PackedSplit, scaled
from tasks.params import Plan, load_params
from tasks.progress import progress
from tasks.raw import RawDataset, encode_mask, write_member
from tasks.scoring import Prediction, read_mask, score, summarise

EVALUATION_BATCH = 32


def evaluate(plan: Plan, trained: Path, packed: Path, raw: Path, out: Path, threshold: float) -> None:
    """Score the network in `trained` on every Test image of its half.

    Writes under `out`: `images.csv`, a row per target and image; `metrics.json`, target -> image set ->
    metric; `predictions.zip`, the predicted masks as 1 bit PNGs named TARGET/ID.png.
    """
    compute = set_up(plan.seed, plan.precision, plan.threads)
    split = PackedSplit(packed, plan.half, "Test")
    predictions = predict(load_network(trained, compute), plan, split, RawDataset(raw), compute)
    with replacing(out) as partial:
        partial.mkdir()
        with zipfile.ZipFile(partial / "predictions.zip", "w") as masks:
            images = pd.DataFrame(_score_and_store(predictions, threshold, masks))
        metrics = summarise(images)
        write_table(images, partial / "images.csv")
        (partial / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    for target, sets in metrics.items():
        for image_set, scores in sets.items():
            shown = f"IoU {scores['iou']:.4f}, Dice {scores['dice']:.4f}"
            print(f"{plan.name}: {target}, Test images {image_set}: {shown}", flush=True)


@torch.no_grad()
def predict(
    network: nn.Module, plan: Plan, split: PackedSplit, raw: RawDataset, compute: Compute
) -> Iterator[Prediction]:
    """The network's probabilities for each image of the split and each target, image by image."""
    starts = range(0, len(split), EVALUATION_BATCH)
    for start in progress(starts, len(starts), f"{plan.name} Test batches"):
        rows = slice(start, start + EVALUATION_BATCH)
        with compute.autocast():
            logits = network(compute.place(scaled(split.images(rows))))
        probabilities = torch.sigmoid(logits.float()).cpu()
        for image, (_, row) in zip(probabilities, split.table[rows].iterrows(), strict=True):
            for channel, target in zip(image, plan.targets, strict=True):
                truth = read_mask(raw, row["id"], target)
                yield Prediction(target, row["id"], row["class"], resized(channel, truth.shape), truth)


def resized(probability: Tensor, shape: torch.Size) -> Tensor:
    """Probabilities (h, w) bilinearly resized to `shape`; as they are where they have it already."""
    if probability.shape == shape:
        return probability
    resized = functional.interpolate(
        probability[None, None], size=shape, mode="bilinear", align_corners=False
    )
    return resized[0, 0]


def _score_and_store(
    predictions: Iterable[Prediction], threshold: float, masks: zipfile.ZipFile
) -> Iterator[dict[str, object]]:
    for prediction in predictions:
        mask = (prediction.probability >= threshold).numpy()
        write_member(masks, f"{prediction.target}/{prediction.image_id}.png", encode_mask(mask))
        yield score(prediction, threshold)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("params", type=Path)
    parser.add_argument("plan", type=Path, help="artifacts/plans/NAME.json")
    parser.add_argument("trained", type=Path, help="artifacts/train/NAME")
    parser.add_argument("packed", type=Path, help="data/packed")
    parser.add_argument("raw", type=Path, help="data/raw")
    parser.add_argument("out", type=Path, help="the folder to make")
    args = parser.parse_args()
    plan = Plan.from_json(args.plan.read_text(encoding="utf-8"))
    threshold = load_params(args.params).evaluate.threshold
    evaluate(plan, args.trained, args.packed, args.raw, args.out, threshold)


if __name__ == "__main__":
    stage_main(main)
