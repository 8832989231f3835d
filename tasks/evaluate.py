"""Stage `evaluate`: scores a trained network on the Val and Test splits, at the masks' original size.

The Val scores choose between experiments; the Test scores are reported. With a folder of several networks,
as the stage `ensemble`, it scores the average of their probabilities.

In a cross-validation, Val are the images of the network's fold, which it was not trained on. The average of
all networks has no such images: it is scored on Test alone, with the thresholds that suit the images of all
folds, each as predicted by the network that did not see it.

Probabilities are resized to each mask's original size before scoring, so networks trained at different
image sizes are comparable.
"""

import argparse
import json
import os
import zipfile
from collections.abc import Iterator, Sequence, Set
from functools import partial
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
from tasks.common.environment import versions
from tasks.common.files import replacing, write_table
from tasks.common.raw import RawDataset, Split, encode_grey, encode_mask, write_member
from tasks.inference.masks import (
    Mask,
    OperatingPoints,
    Recipe,
    disagreement,
    infected_share,
    steps,
    to_masks,
)
from tasks.inference.points import choose_points
from tasks.inference.predict import (
    Case,
    Networks,
    at_a_time,
    load_networks,
    predict_cases,
    read_mask,
)
from tasks.networks.device import Compute, set_up
from tasks.packed.reader import (
    Fold,
    PackedSplit,
    add_dropped_argument,
    add_folds_argument,
    dropped_ids,
    read_folds,
)
from tasks.scoring.images import Calibration, overlaps, score_masks
from tasks.settings.experiments import Plan
from tasks.settings.prediction import Prediction
from tasks.settings.training import Target
from tasks.support.cli import stage_main

Row = dict[str, Any]
Errors = dict[str, float]

#: For how many Test images of each target the spread of an ensemble is kept as a picture.
PICTURES = 6

STEP_COLUMNS = ["seed", "split", "step", "target", "id", "class", "iou", "dice"]


def evaluate(
    plan: Plan,
    prediction: Prediction,
    trained: Path,
    images: Path,
    raw: Path,
    out: Path,
    dropped: Set[str] = frozenset(),
    folds: Sequence[Fold] = (),
) -> None:
    """Score the network in the folder `trained` on every Val and Test image of its half, whatever its class.

    Networks in subfolders of `trained` are scored as an ensemble; `plan` is that of the first. `images` is
    the folder that the training read. Val images whose ids are in `dropped` are left out. With `folds`, Val
    are the images of the plan's fold, and an ensemble is not scored on Val. Writes under `out`:

        images.csv        one row per split, target and image; of an ensemble with the disagreement of its
                          networks, see `tasks.inference.masks.disagreement`
        steps.csv         one row per post-processing step, split, target and image, if any step is enabled
        calibration.csv   one row per target, image set and probability bin, for the Test split
        settings.json     the thresholds, the other settings that turn probabilities into masks, and versions
        predictions.zip   the masks of the Test split as 1-bit PNGs named TARGET/ID.png
        spread.zip        of an ensemble: the standard deviation of its networks' probabilities as 8-bit PNGs
                          named TARGET/ID.png, in which white is 0.5; only of the Test images with the largest
                          disagreement
    """
    dataset, compute = RawDataset(raw), set_up(plan.seed, plan.precision, plan.threads)
    networks = load_networks(trained, compute)
    fold = folds[plan.fold] if folds else None
    is_cross_validated = fold is not None and len(networks) > 1

    def val_of(held_out: Fold | None) -> PackedSplit:
        return PackedSplit(images, plan.half, "Val", plan.targets, plan.train_classes, dropped, held_out)

    val = [val_of(each) for each in folds] if is_cross_validated else val_of(fold)
    points = choose_points(networks, plan, prediction, val, dataset, compute)
    evaluation = Evaluation(plan, prediction, networks, compute, points, dataset)
    with replacing(out) as folder:
        folder.mkdir()
        if not is_cross_validated:
            evaluation.run(PackedSplit(images, plan.half, "Val", dropped=dropped, fold=fold), "Val")
        with zipfile.ZipFile(folder / "predictions.zip", "w") as archive:
            evaluation.run(PackedSplit(images, plan.half, "Test", dropped=dropped), "Test", archive)
        if len(networks) > 1:
            evaluation.write_spread(folder / "spread.zip")
        evaluation.write_tables(folder)
        _write_settings(folder / "settings.json", prediction, points, compute)
    _print_means(plan.name, evaluation.rows)


def _write_settings(path: Path, prediction: Prediction, points: OperatingPoints, compute: Compute) -> None:
    settings = {
        "thresholds": {target: point.threshold for target, point in points.items()},
        "presence": {target: point.presence for target, point in points.items()},
        "prediction": json.loads(prediction.to_json()),
        "precision": compute.precision,
        "device": compute.device.type,
        "versions": versions(),
    }
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _print_means(name: str, rows: list[Row]) -> None:
    groups = pd.DataFrame(rows).groupby(["target", "split", "class"], sort=False)
    for (target, split, image_class), of_one in groups:
        shown = f"IoU {of_one['iou'].mean():.4f}, Dice {of_one['dice'].mean():.4f}"
        print(f"{name}: {target}, {len(of_one)} {split} images of {image_class}: {shown}", flush=True)


class Evaluation:
    """The scores of one trained network, or of an ensemble."""

    def __init__(
        self,
        plan: Plan,
        prediction: Prediction,
        networks: Networks,
        compute: Compute,
        points: OperatingPoints,
        raw: RawDataset,
        step_by_step: bool = True,
    ) -> None:
        """With `step_by_step`, also score each enabled step of post-processing."""
        self._plan, self._prediction = plan, prediction
        self._networks, self._compute = networks, compute
        self._points, self._raw = points, raw
        self._steps = steps(prediction, points) if step_by_step else {}
        self._has_lung_masks = False  # of the images that are being scored
        self._spread: dict[Target, list[tuple[float, str, bytes]]] = {target: [] for target in plan.targets}
        self.calibration = Calibration()
        self.rows: list[Row] = []
        self.stepped: list[Row] = []

    def run(
        self,
        images: PackedSplit,
        split: Split,
        archive: zipfile.ZipFile | None = None,
        targets: Sequence[Target] | None = None,
    ) -> None:
        """Score each image.

        With an archive, store its masks there and count for calibration. `targets` are those that have
        reference masks; by default, all of the plan.
        """
        self._has_lung_masks = "lung" in self._raw.kinds(images.table["half"][0])
        score, cases = partial(self._score, archive is not None), self._cases(images, split, targets)
        for scored in in_threads(score, cases, at_a_time(images)):
            self.rows += [{"seed": self._plan.seed, "split": split, **row} for row in scored.rows]
            self.stepped += [{"seed": self._plan.seed, "split": split, **row} for row in scored.stepped]
            for target, bins in scored.bins.items():
                self.calibration.count(target, scored.image_class, bins)
            for name, png in scored.pngs.items():
                assert archive
                write_member(archive, name, png)
            for target, picture in scored.spread.items():
                most = sorted([*self._spread[target], picture], key=lambda one: (-one[0], one[1]))
                self._spread[target] = most[:PICTURES]

    def write_tables(self, folder: Path) -> None:
        """Write `images.csv`, `steps.csv` and `calibration.csv`."""
        write_table(pd.DataFrame(self.rows), folder / "images.csv")
        write_table(pd.DataFrame(self.stepped, columns=STEP_COLUMNS), folder / "steps.csv")
        write_table(self.calibration.table().assign(seed=self._plan.seed), folder / "calibration.csv")

    def write_spread(self, path: Path) -> None:
        """Write the pictures of the spread of an ensemble into a zip file."""
        pictures = [
            (f"{target}/{image_id}.png", picture)
            for target, of_target in self._spread.items()
            for _, image_id, picture in of_target
        ]
        with zipfile.ZipFile(path, "w") as archive:
            for name, picture in sorted(pictures):
                write_member(archive, name, picture)

    def _cases(
        self, images: PackedSplit, split: Split, targets: Sequence[Target] | None
    ) -> Iterator[tuple[Case, Errors]]:
        what, flip = f"{self._plan.name} {split} batches", self._prediction.flip_average
        cases = predict_cases(
            self._networks,
            self._plan,
            images,
            self._raw,
            self._compute,
            flip,
            what,
            targets,
            with_members=True,
        )
        for case in cases:
            yield case, _errors(case)

    def _score(self, keep: bool, case_and_errors: tuple[Case, Errors]) -> "_Scored":
        """Score one image. Uses no torch: in each of several threads, torch would start its own threads."""
        case, errors = case_and_errors
        made: dict[Recipe, Mask] = {}
        masks = to_masks(case.probabilities, self._points, self._prediction, made)
        kept = masks if keep else {}
        rows = list(self._rows(case, masks, errors))
        apart = {row["target"]: row["disagreement"] for row in rows if "disagreement" in row}
        return _Scored(
            case.image_class,
            rows,
            list(self._step_by_step(case, made)),
            {target: _bins(case, target) for target in kept},
            {f"{target}/{case.image_id}.png": encode_mask(mask) for target, mask in kept.items()},
            {
                target: (value, case.image_id, _spread(case, target))
                for target, value in apart.items()
                if keep and value > 0
            },
        )

    def _rows(self, case: Case, masks: dict[Target, Mask], errors: Errors) -> Iterator[Row]:
        # With the operating points of the ensemble, which the report states.
        members = [to_masks(each, self._points, self._prediction) for each in case.members]
        for target, mask in case.references.items():
            arrays = (masks[target], case.probabilities[target].numpy(), mask.numpy())
            row = {"target": target, "id": case.image_id, "class": case.image_class}
            shares = self._shares(case, masks) if target == "infection" else {}
            apart = {"disagreement": disagreement([each[target] for each in members])} if members else {}
            yield row | score_masks(*arrays, errors[target]) | shares | apart

    def _shares(self, case: Case, masks: dict[Target, Mask]) -> Row:
        """The infected share of the lung, reference and predicted.

        Empty without predicted lungs, and on a dataset without lung masks.
        """
        lungs = case.region.numpy() if case.region is not None else masks.get("lung")
        if lungs is None or not self._has_lung_masks:
            return {}
        reference_lungs = case.references.get("lung")
        if reference_lungs is None:
            reference_lungs = read_mask(self._raw, case.image_id, "lung")
        return {
            "true_share": infected_share(case.references["infection"].numpy(), reference_lungs.numpy()),
            "predicted_share": infected_share(masks["infection"], lungs),
        }

    def _step_by_step(self, case: Case, made: dict[Recipe, Mask]) -> Iterator[Row]:
        made_plain = made if case.plain is case.probabilities else {}
        for name, step in self._steps.items():
            sources = (case.probabilities, made) if step.averaged else (case.plain, made_plain)
            masks = to_masks(sources[0], step.points, step.prediction, sources[1])
            for target, reference in case.references.items():
                counts = confusion_of_masks(masks[target], reference.numpy())
                yield {
                    "step": name,
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
    bins: dict[Target, NDArray[np.float64]]
    pngs: dict[str, bytes]
    spread: dict[Target, tuple[float, str, bytes]]
    """Disagreement, id and picture of the spread; empty for a single network."""


def _bins(case: Case, target: Target) -> NDArray[np.float64]:
    return calibration_bins(case.probabilities[target].numpy(), case.references[target].numpy())


def _spread(case: Case, target: Target) -> bytes:
    deviation = np.std([member[target].numpy() for member in case.members], axis=0)
    return encode_grey(np.rint(255 * np.minimum(2 * deviation, 1)).astype(np.uint8))


def _errors(case: Case) -> Errors:
    """Mean absolute error per target."""
    return {
        target: float(mean_absolute_error(case.probabilities[target], reference))
        for target, reference in case.references.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path, help="artifacts/plans/TRAINING.json")
    parser.add_argument("prediction", type=Path, help="artifacts/plans/EXPERIMENT.prediction.json")
    parser.add_argument(
        "trained", type=Path, help="artifacts/train/TRAINING/network or artifacts/ensembles/TRAINING"
    )
    parser.add_argument("images", type=Path, help="data/packed/SIZE or data/lungs/EXPERIMENT, as in training")
    parser.add_argument("raw", type=Path, help="data/raw")
    parser.add_argument("out", type=Path, help="folder to create")
    add_dropped_argument(parser)
    add_folds_argument(parser)
    args = parser.parse_args()
    plan = Plan.from_json(args.plan.read_text(encoding="utf-8"))
    prediction = Prediction.from_json(args.prediction.read_text(encoding="utf-8"))
    dropped, folds = dropped_ids(args.dropped), read_folds(args.folds)
    evaluate(plan, prediction, args.trained, args.images, args.raw, args.out, dropped, folds)


if __name__ == "__main__":
    stage_main(main)
