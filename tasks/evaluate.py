"""Stage `evaluate`: scores a trained network on the Test split, at the masks' original size.

Probabilities are resized to each mask's original size before scoring, so networks trained at different
image sizes are comparable.
"""

import argparse
import json
import os
import zipfile
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # torch reads the variable when it is imported
    # Otherwise torch's waiting threads would spin and take cores away from the scoring threads.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.metrics import calibration_bins, confusion_of_masks, mean_absolute_error
from tasks.common.cores import in_threads
from tasks.common.files import replacing, write_table
from tasks.common.raw import RawDataset, encode_mask, write_member
from tasks.inference.predict import (
    BATCH,
    Case,
    Mask,
    Recipe,
    choose_thresholds,
    predict_cases,
    read_mask,
    steps,
    to_masks,
)
from tasks.networks.device import set_up
from tasks.networks.network import load_network
from tasks.packed.reader import PackedSplit, add_dropped_argument, dropped_ids
from tasks.scoring.images import (
    Calibration,
    overlaps,
    score_masks,
    score_masks_within,
    summarise,
)
from tasks.settings.schema import Plan, Prediction, Target
from tasks.support.cli import stage_main

Row = dict[str, Any]
Errors = dict[str, float]

STEP_COLUMNS = ["seed", "step", "target", "id", "class", "iou", "dice"]


def evaluate(
    plan: Plan,
    prediction: Prediction,
    trained: Path,
    images: Path,
    raw: Path,
    out: Path,
    dropped: Set[str] = frozenset(),
) -> None:
    """Score the network in the folder `trained` on every Test image of its half.

    `images` is the folder that the training read. Images whose ids are in `dropped` are not used to choose
    a threshold. Writes under `out`:

        images.csv        one row per target and image
        metrics.json      target -> image set -> metric
        steps.csv         one row per post-processing step, target and image, if any step is enabled
        calibration.csv   one row per target, image set and probability bin
        settings.json     the thresholds, and the other settings that turn probabilities into masks
        predictions.zip   the masks as 1-bit PNGs named TARGET/ID.png
    """
    evaluation = _Evaluation(plan, prediction, trained, images, RawDataset(raw), dropped)
    with replacing(out) as partial:
        partial.mkdir()
        with zipfile.ZipFile(partial / "predictions.zip", "w") as archive:
            evaluation.run(archive)
        rows, calibration = pd.DataFrame(evaluation.rows), evaluation.calibration
        metrics = summarise(rows, calibration)
        settings = {"thresholds": evaluation.thresholds, "prediction": json.loads(prediction.to_json())}
        write_table(rows, partial / "images.csv")
        write_table(pd.DataFrame(evaluation.stepped, columns=STEP_COLUMNS), partial / "steps.csv")
        write_table(calibration.table().assign(seed=plan.seed), partial / "calibration.csv")
        for name, content in (("settings", settings), ("metrics", metrics)):
            (partial / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for target, sets in metrics.items():
        for image_set, scores in sets.items():
            shown = f"IoU {scores['iou']:.4f}, Dice {scores['dice']:.4f}"
            print(f"{plan.name}: {target}, Test images {image_set}: {shown}", flush=True)


class _Evaluation:
    """The scores of one trained network."""

    def __init__(
        self,
        plan: Plan,
        prediction: Prediction,
        trained: Path,
        images: Path,
        raw: RawDataset,
        dropped: Set[str],
    ) -> None:
        self._plan, self._prediction = plan, prediction
        self._images, self._raw = images, raw
        self._compute = set_up(plan.seed, plan.precision, plan.threads)
        self._network = load_network(trained, self._compute)
        val = PackedSplit(images, plan.half, "Val", plan.targets, plan.train_classes, dropped)
        self.thresholds = choose_thresholds(self._network, plan, prediction, val, raw, self._compute)
        self._steps = steps(prediction, self.thresholds)
        self.calibration = Calibration()
        self.rows: list[Row] = []
        self.stepped: list[Row] = []

    def run(self, archive: zipfile.ZipFile) -> None:
        """Score each Test image and store its masks in the archive."""
        for scored in in_threads(self._score, self._cases(), BATCH):
            self.rows += scored.rows
            self.stepped += scored.stepped
            for target, bins in scored.bins.items():
                self.calibration.count(target, scored.image_class, bins)
            for name, png in scored.pngs.items():
                write_member(archive, name, png)

    def _cases(self) -> Iterator[tuple[Case, Errors]]:
        split = PackedSplit(self._images, self._plan.half, "Test")
        what, flip = f"{self._plan.name} Test batches", self._prediction.flip_average
        for case in predict_cases(self._network, self._plan, split, self._raw, self._compute, flip, what):
            yield case, _errors(case)

    def _score(self, case_and_errors: tuple[Case, Errors]) -> "_Scored":
        """Score one image. Uses no torch: in each of several threads, torch would start its own threads."""
        case, errors = case_and_errors
        made: dict[Recipe, Mask] = {}
        masks = to_masks(case.probabilities, self.thresholds, self._prediction, made)
        return _Scored(
            case.image_class,
            list(self._rows(case, masks, errors)),
            list(self._step_by_step(case, made)),
            _bins(case),
            {f"{target}/{case.image_id}.png": encode_mask(mask) for target, mask in masks.items()},
        )

    def _rows(self, case: Case, masks: dict[Target, Mask], errors: Errors) -> Iterator[Row]:
        for target, mask in case.references.items():
            predicted, reference = masks[target], mask.numpy()
            row = {"seed": self._plan.seed, "target": target, "id": case.image_id, "class": case.image_class}
            shares = self._shares(case, masks) if target == "infection" else {}
            yield row | score_masks(predicted, reference, errors[target]) | shares
            if case.region is not None:
                inside, region = row | {"target": _in_lungs(target)}, case.region.numpy()
                yield inside | score_masks_within(region, predicted, reference, errors[_in_lungs(target)])

    def _shares(self, case: Case, masks: dict[Target, Mask]) -> Row:
        """The infected share of the lung, reference and predicted; empty if no predicted lungs are known."""
        lungs = case.region.numpy() if case.region is not None else masks.get("lung")
        if lungs is None:
            return {}
        reference_lungs = case.references.get("lung")
        if reference_lungs is None:
            reference_lungs = read_mask(self._raw, case.image_id, "lung")
        return {
            "true_share": _share(case.references["infection"].numpy(), reference_lungs.numpy()),
            "predicted_share": _share(masks["infection"], lungs),
        }

    def _step_by_step(self, case: Case, made: dict[Recipe, Mask]) -> Iterator[Row]:
        for step, (thresholds, prediction) in self._steps.items():
            masks = to_masks(case.probabilities, thresholds, prediction, made)
            for target, reference in case.references.items():
                counts = confusion_of_masks(masks[target], reference.numpy())
                yield {
                    "seed": self._plan.seed,
                    "step": step,
                    "target": target,
                    "id": case.image_id,
                    "class": case.image_class,
                    **overlaps(counts),
                }


class _Scored(NamedTuple):
    """The contribution of one image to the tables, to each target's calibration, and to the archive."""

    image_class: str
    rows: list[Row]
    stepped: list[Row]
    bins: dict[str, NDArray[np.float64]]
    pngs: dict[str, bytes]


def _errors(case: Case) -> Errors:
    """Mean absolute error per target, and within the lungs if the network saw only these."""
    errors: Errors = {}
    for target, reference in case.references.items():
        probability = case.probabilities[target]
        errors[target] = float(mean_absolute_error(probability, reference))
        if case.region is not None:
            inside = mean_absolute_error(probability * case.region, reference & case.region)
            errors[_in_lungs(target)] = float(inside)
    return errors


def _bins(case: Case) -> dict[str, NDArray[np.float64]]:
    """Calibration bins per target, those within the lungs first."""
    pairs = {
        target: (case.probabilities[target].numpy(), reference.numpy())
        for target, reference in case.references.items()
    }
    bins: dict[str, NDArray[np.float64]] = {}
    if case.region is not None:
        region = case.region.numpy()
        bins |= {
            _in_lungs(t): calibration_bins(p[region], reference[region])
            for t, (p, reference) in pairs.items()
        }
    return bins | {target: calibration_bins(*pair) for target, pair in pairs.items()}


def _in_lungs(target: Target) -> str:
    return f"{target}_in_lungs"


def _share(infection: Mask, lungs: Mask) -> float:
    """The infected share of the lungs; 0 if there are no lungs."""
    area = int(lungs.sum())
    return int((infection & lungs).sum()) / area if area else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path, help="artifacts/plans/TRAINING.json")
    parser.add_argument("prediction", type=Path, help="artifacts/plans/EXPERIMENT.prediction.json")
    parser.add_argument("trained", type=Path, help="artifacts/train/TRAINING/network")
    parser.add_argument("images", type=Path, help="data/packed/SIZE or data/lungs/EXPERIMENT, as in training")
    parser.add_argument("raw", type=Path, help="data/raw")
    parser.add_argument("out", type=Path, help="folder to create")
    add_dropped_argument(parser)
    args = parser.parse_args()
    plan = Plan.from_json(args.plan.read_text(encoding="utf-8"))
    prediction = Prediction.from_json(args.prediction.read_text(encoding="utf-8"))
    dropped = dropped_ids(args.dropped)
    evaluate(plan, prediction, args.trained, args.images, args.raw, args.out, dropped)


if __name__ == "__main__":
    stage_main(main)
