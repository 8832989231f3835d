"""Stage `baselines`: the scores that need no training, below which a network has learned nothing."""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from tasks.cli import InputError, stage_main
from tasks.files import replacing, write_table
from tasks.raw import HALF_KINDS, Kind, RawDataset
from tasks.scoring import Prediction, read_mask, score, summarise

#: Each makes probabilities (H, W) of 0 and 1 from the true masks of an image.
PREDICTORS: dict[str, Callable[[dict[Kind, Tensor]], Tensor]] = {
    "all_background": lambda masks: torch.zeros_like(masks["lung"]).float(),
    "all_foreground": lambda masks: torch.ones_like(masks["lung"]).float(),
    "whole_lung": lambda masks: masks["lung"].float(),
}


def baselines(packed: Path, raw: Path, out: Path, half: str) -> None:
    """Score the trivial predictors on the usable Test images of `half`, at the masks' own size.

    Writes under `out`: `metrics.json`, predictor -> target -> image set -> metric, and `images.csv`.
    The whole lung is the true lung mask taken for the infection.
    """
    dataset = RawDataset(raw)
    images = pd.read_csv(packed / "images.csv")
    images = images[(images["half"] == half) & (images["split"] == "Test")]
    if not (images["class"] == "COVID-19").any():
        raise InputError(f"{packed}: the {half} half has no COVID-19 Test image to score on")
    rows = pd.DataFrame(_score_all(dataset, images, half))
    scores = {name: summarise(of_one) for name, of_one in rows.groupby("predictor", sort=False)}
    with replacing(out) as partial:
        partial.mkdir()
        write_table(rows, partial / "images.csv")
        (partial / "metrics.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


def _score_all(dataset: RawDataset, images: pd.DataFrame, half: str) -> Iterator[dict[str, object]]:
    targets: list[Kind] = [kind for kind in HALF_KINDS[half] if kind != "image"]
    for image_id, image_class in zip(images["id"], images["class"], strict=True):
        masks: dict[Kind, Tensor] = {target: read_mask(dataset, image_id, target) for target in targets}
        for name, predictor in PREDICTORS.items():
            for target in targets:
                if (name, target) != ("whole_lung", "lung"):  # the truth itself
                    prediction = Prediction(target, image_id, image_class, predictor(masks), masks[target])
                    yield {"predictor": name} | score(prediction, threshold=0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packed", type=Path, help="data/packed")
    parser.add_argument("raw", type=Path, help="data/raw")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--half", choices=HALF_KINDS, default="infection", help="half of the dataset")
    args = parser.parse_args()
    baselines(args.packed, args.raw, args.out, args.half)


if __name__ == "__main__":
    stage_main(main)
