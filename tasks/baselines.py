"""Stage `baselines`: scores trivial predictors, which a network must beat to have learned anything."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from models.surfaces import Mask
from tasks.common.files import replacing, write_table
from tasks.common.raw import HALF_KINDS, Kind, RawDataset
from tasks.scoring.images import Calibration, score_masks, summarise
from tasks.support.cli import InputError, stage_main
from tasks.support.progress import progress

#: Each returns a mask (H, W), used as probabilities 0 and 1, from the reference masks of an image.
PREDICTORS: dict[str, Callable[[dict[Kind, Mask]], Mask]] = {
    "all_background": lambda masks: np.zeros_like(masks["lung"]),
    "all_foreground": lambda masks: np.ones_like(masks["lung"]),
    "whole_lung": lambda masks: masks["lung"],
}


def baselines(table: Path, raw: Path, out: Path, half: str) -> None:
    """Score the trivial predictors on the usable Test images of `half`, at the masks' original size.

    `table` is the `images.csv` that lists the images. Writes under `out`: `metrics.json` (predictor ->
    target -> image set -> metric) and `images.csv`. The predictor `whole_lung` uses the reference lung mask
    as the infection mask.
    """
    dataset = RawDataset(raw)
    images = pd.read_csv(table)
    images = images[(images["half"] == half) & (images["split"] == "Test")]
    if not (images["class"] == "COVID-19").any():
        raise InputError(f"{table}: the {half} half has no COVID-19 Test image to score")
    calibrations = {name: Calibration() for name in PREDICTORS}
    rows = pd.DataFrame(_score_all(dataset, images, half, calibrations))
    scores = {
        name: summarise(of_one, calibrations[str(name)])
        for name, of_one in rows.groupby("predictor", sort=False)
    }
    with replacing(out) as partial:
        partial.mkdir()
        write_table(rows, partial / "images.csv")
        (partial / "metrics.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


def _score_all(
    dataset: RawDataset, images: pd.DataFrame, half: str, calibrations: Mapping[str, Calibration]
) -> Iterator[dict[str, object]]:
    targets: list[Kind] = [kind for kind in HALF_KINDS[half] if kind != "image"]
    shown = progress(zip(images["id"], images["class"], strict=True), len(images), "baselines Test images")
    for image_id, image_class in shown:
        masks = {target: dataset.read(image_id, target) > 0 for target in targets}
        for name, predictor in PREDICTORS.items():
            predicted = predictor(masks)
            for target in targets:
                if (name, target) != ("whole_lung", "lung"):  # would be compared with itself
                    reference = masks[target]
                    calibrations[name].add(target, image_class, predicted, reference)
                    scores = score_masks(predicted, reference, mae=float(np.mean(predicted != reference)))
                    yield {"predictor": name, "target": target, "id": image_id, "class": image_class} | scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, help="data/packed/SIZE/images.csv")
    parser.add_argument("raw", type=Path, help="data/raw")
    parser.add_argument("out", type=Path, help="folder to create")
    parser.add_argument("--half", choices=HALF_KINDS, default="infection", help="half of the dataset")
    args = parser.parse_args()
    baselines(args.table, args.raw, args.out, args.half)


if __name__ == "__main__":
    stage_main(main)
