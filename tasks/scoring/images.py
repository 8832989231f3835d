"""Computes one row of scores per image from predicted and reference masks, and averages over the rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from models.metrics import (
    Confusion,
    calibration_bins,
    confusion_of_masks,
    dice,
    expected_calibration_error,
    iou,
    mean_absolute_error,
    precision,
    sensitivity,
    specificity,
)
from models.surfaces import Mask, hausdorff95, surface_dice, surface_distances
from tasks.common.raw import IMAGE_SETS

if TYPE_CHECKING:  # torch takes seconds to import, and scoring masks does not need it
    from torch import Tensor

#: Tolerance of the normalised surface distance, in pixels.
TOLERANCE = 2.0

#: Per-image scores whose mean over an image set is reported under the same name.
MEANS = ("iou", "dice", "precision", "sensitivity", "specificity", "mae", "hd95", "nsd")

Metrics = dict[str, dict[str, dict[str, float]]]


def score(predicted: Tensor, probability: Tensor, reference: Tensor) -> dict[str, float]:
    """Counts and scores of one mask.

    Args:
        predicted: boolean (H, W), the final mask after thresholding and post-processing.
        probability: float (H, W) in [0, 1].
        reference: boolean (H, W), the reference mask.
    """
    error = float(mean_absolute_error(probability, reference))
    return score_masks(predicted.numpy(), reference.numpy(), error)


def score_masks(predicted: Mask, reference: Mask, mae: float) -> dict[str, float]:
    """Like `score`, for two arrays, with the mean absolute error of the probability already known."""
    counts = confusion_of_masks(predicted, reference)
    distances = surface_distances(predicted, reference)
    return {
        **counts._asdict(),
        **overlaps(counts),
        "precision": precision(counts),
        "sensitivity": sensitivity(counts),
        "specificity": specificity(counts),
        "mae": mae,
        "hd95": hausdorff95(distances),
        "nsd": surface_dice(distances, TOLERANCE),
    }


def score_within(
    region: Tensor, predicted: Tensor, probability: Tensor, reference: Tensor
) -> dict[str, float]:
    """Like `score`, restricted to the pixels of a boolean region (H, W); all others are ignored."""
    error = float(mean_absolute_error(probability * region, reference & region))
    return score_masks_within(region.numpy(), predicted.numpy(), reference.numpy(), error)


def score_masks_within(region: Mask, predicted: Mask, reference: Mask, mae: float) -> dict[str, float]:
    """Like `score_masks`; `mae` is the mean over the whole image of errors that are 0 outside the region."""
    scores = score_masks(predicted & region, reference & region, mae)
    pixels = int(np.count_nonzero(region))
    tp, fp, fn = (scores[name] for name in ("tp", "fp", "fn"))
    inside = Confusion(tp, fp, fn, pixels - tp - fp - fn)
    error = mae * region.size / pixels if pixels else 0.0
    return scores | {"tn": inside.tn, "specificity": specificity(inside), "mae": error}


def overlaps(counts: Confusion) -> dict[str, float]:
    return {"iou": float(iou(counts)), "dice": float(dice(counts))}


class Calibration:
    """Counts of predicted probability against outcome, for each target and image set."""

    def __init__(self) -> None:
        self._bins: dict[tuple[str, str], NDArray[np.float64]] = {}

    def add(self, target: str, image_class: str, probability: ArrayLike, reference: ArrayLike) -> None:
        """Count the pixels of one image."""
        self.count(target, image_class, calibration_bins(probability, reference))

    def count(self, target: str, image_class: str, bins: NDArray[np.float64]) -> None:
        """Like `add`, for pixels that are already binned."""
        for name, classes in IMAGE_SETS.items():
            if image_class in classes:
                key = (target, name)
                self._bins[key] = self._bins.get(key, 0.0) + bins

    def error(self, target: str, image_set: str) -> float:
        return expected_calibration_error(self._bins[target, image_set])

    def table(self) -> pd.DataFrame:
        """One row per target, image set and bin that contains pixels."""
        rows = [
            {
                "target": target,
                "image_set": image_set,
                "bin": number,
                "pixels": int(pixels),
                "mean_probability": probability / pixels,
                "true_share": true / pixels,
            }
            for (target, image_set), bins in self._bins.items()
            for number, (pixels, probability, true) in enumerate(bins.tolist())
            if pixels
        ]
        return pd.DataFrame(rows)


def summarise(images: pd.DataFrame, calibration: Calibration) -> Metrics:
    """target -> image set -> metric, from the rows of images.csv; image sets without images are omitted.

    `MEANS` are means over the images; `iou_pooled` and `dice_pooled` come from pixel counts summed over all
    images. `mae_255` is `mae` on the grey scale of 8-bit masks, `ece` the expected calibration error over
    pixels. `hd95` is in pixels, all other metrics in [0, 1]. `models.metrics` and `models.surfaces` define
    the scores of empty masks.

    `missed` is the share of images with a non-empty reference mask in which nothing is predicted, and
    `false_positive_rate` the share of images with an empty one in which anything is predicted; each is
    omitted if there are no such images. If there are both, `iou_nonempty` and `dice_nonempty` are means over
    the images with a non-empty reference mask. `share_error` is the mean absolute error of the infected share
    of the lung, `share_correlation` its Pearson correlation with the reference share.
    """
    metrics: Metrics = {}
    for target, of_target in images.groupby("target", sort=False):
        for name, classes in IMAGE_SETS.items():
            rows = of_target[of_target["class"].isin(classes)]
            if not rows.empty:
                found = _averages(rows) | {"ece": calibration.error(str(target), name)}
                of_set = {key: round(float(value), 6) for key, value in found.items() if math.isfinite(value)}
                metrics.setdefault(str(target), {})[name] = {"images": len(rows), **of_set}
    return metrics


def _averages(rows: pd.DataFrame) -> dict[str, float]:
    pooled = Confusion(*(rows[c].to_numpy() for c in Confusion._fields)).pooled()
    averages: dict[str, float] = {name: rows[name].mean() for name in MEANS}
    averages |= {f"{name}_pooled": value for name, value in overlaps(pooled).items()}
    averages["mae_255"] = 255 * averages["mae"]
    true, predicted = rows["tp"] + rows["fn"] > 0, rows["tp"] + rows["fp"] > 0
    if true.any():
        averages["missed"] = float((~predicted[true]).mean())
    if not true.all():
        averages["false_positive_rate"] = float(predicted[~true].mean())
        if true.any():
            averages |= {f"{name}_nonempty": rows[name][true].mean() for name in ("iou", "dice")}
    if "predicted_share" in rows and rows["predicted_share"].notna().any():
        averages |= _of_shares(rows["predicted_share"].to_numpy(), rows["true_share"].to_numpy())
    return averages


def _of_shares(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    shares = {"share_error": float(np.abs(predicted - true).mean())}
    if predicted.std() and true.std():  # otherwise the correlation is undefined
        shares["share_correlation"] = float(np.corrcoef(predicted, true)[0, 1])
    return shares
