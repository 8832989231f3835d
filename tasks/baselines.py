"""Stage `baselines`: scores trivial predictors, which a network must beat to have learned anything."""

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from models.surfaces import Mask
from tasks.common.files import replacing, write_table
from tasks.common.raw import HALF_KINDS, Kind, RawDataset
from tasks.scoring.images import Calibration, score_masks
from tasks.support.cli import InputError, stage_main
from tasks.support.progress import progress

#: The predictor that needs a reference lung mask.
WHOLE_LUNG = "whole_lung"

#: Each returns a mask (H, W), used as probabilities 0 and 1, from the reference masks of an image.
PREDICTORS: dict[str, Callable[[dict[Kind, Mask]], Mask]] = {
    "all_background": lambda masks: np.zeros_like(next(iter(masks.values()))),
    "all_foreground": lambda masks: np.ones_like(next(iter(masks.values()))),
    WHOLE_LUNG: lambda masks: masks["lung"],
}


def baselines(table: Path, raw: Path, out: Path, half: str) -> None:
    """Score the trivial predictors on the usable Val and Test images of `half`, at the masks' original size.

    `table` is the `images.csv` that lists the images. Writes under `out`: `images.csv`, one row per
    predictor, split, target and image, and `calibration.csv`, for the Test split. The predictor `whole_lung`
    uses the reference lung mask as the infection mask; without lung masks, there is no such predictor.

    Raises:
        InputError: the half has no Test image.
    """
    dataset = RawDataset(raw)
    images = pd.read_csv(table)
    images = images[(images["half"] == half) & images["split"].isin(["Val", "Test"])]
    if not (images["split"] == "Test").any():
        raise InputError(f"{table}: the {half} half has no Test image to score")
    targets = [kind for kind in dataset.kinds(half) if kind != "image"]
    names = [name for name in PREDICTORS if name != WHOLE_LUNG or "lung" in targets]
    calibrations = {name: Calibration() for name in names}
    rows = pd.DataFrame(_score_all(dataset, images, targets, calibrations))
    tables = [found.table().assign(predictor=name) for name, found in calibrations.items()]
    with replacing(out) as partial:
        partial.mkdir()
        write_table(rows, partial / "images.csv")
        write_table(pd.concat(tables), partial / "calibration.csv")


def _score_all(
    dataset: RawDataset,
    images: pd.DataFrame,
    targets: Sequence[Kind],
    calibrations: Mapping[str, Calibration],
) -> Iterator[dict[str, object]]:
    of_all = zip(images["id"], images["split"], images["class"], strict=True)
    for image_id, split, image_class in progress(of_all, len(images), "baselines Val and Test images"):
        masks = {target: dataset.read(image_id, target) > 0 for target in targets}
        for name, target in itertools.product(calibrations, targets):
            if (name, target) == (WHOLE_LUNG, "lung"):  # would be compared with itself
                continue
            predicted, reference = PREDICTORS[name](masks), masks[target]
            if split == "Test":
                calibrations[name].add(target, image_class, predicted, reference)
            place = {"predictor": name, "split": split, "target": target, "id": image_id}
            error = float(np.mean(predicted != reference))
            scores = score_masks(predicted, predicted.astype(np.float32), reference, error)
            yield place | {"class": image_class} | scores


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
