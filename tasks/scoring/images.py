"""Computes one row of scores per image from predicted and reference masks, and counts for calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from models.metrics import (
    Confusion,
    average_precision,
    calibration_bins,
    confusion_of_masks,
    dice,
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


def score(predicted: Tensor, probability: Tensor, reference: Tensor) -> dict[str, float]:
    """Counts and scores of one mask.

    Args:
        predicted: boolean (H, W), the final mask after thresholding and post-processing.
        probability: float (H, W) in [0, 1].
        reference: boolean (H, W), the reference mask.
    """
    error = float(mean_absolute_error(probability, reference))
    return score_masks(predicted.numpy(), probability.numpy(), reference.numpy(), error)


def score_masks(
    predicted: Mask, probability: NDArray[np.float32], reference: Mask, mae: float
) -> dict[str, float]:
    """Like `score`, for arrays, with the mean absolute error of the probability already known."""
    return {
        **_overlap_scores(confusion_of_masks(predicted, reference)),
        **_boundary_scores(predicted, reference),
        "mae": mae,
        "average_precision": average_precision(probability, reference),
        "mean_probability": float(np.mean(probability, dtype=np.float64)),
    }


def _overlap_scores(counts: Confusion) -> dict[str, float]:
    return {
        **counts._asdict(),
        **overlaps(counts),
        "precision": float(precision(counts)),
        "sensitivity": float(sensitivity(counts)),
        "specificity": float(specificity(counts)),
    }


def _boundary_scores(predicted: Mask, reference: Mask) -> dict[str, float]:
    distances = surface_distances(predicted, reference)
    return {"hd95": hausdorff95(distances), "nsd": surface_dice(distances, TOLERANCE)}


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
