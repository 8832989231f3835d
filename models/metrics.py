"""Segmentation metrics: confusion counts first, then small pure functions of them.

Rules for empty masks, per image: truth and prediction both empty score 1, for what was asked was done;
an empty truth with any predicted pixel scores 0, and so does a missed mask.
Definitions: Metrics Reloaded, Maier-Hein et al. 2024, doi 10.1038/s41592-023-02151-z.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Confusion(NamedTuple):
    """Pixel counts, each an int64 or float64 tensor of one shape."""

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor

    def pooled(self) -> "Confusion":
        """The counts of all images taken as one."""
        return Confusion(*(count.sum(dim=0) for count in self))


def confusion(predicted: Tensor, truth: Tensor) -> Confusion:
    """Counts over the last two dimensions of two boolean masks (..., H, W)."""
    tp = (predicted & truth).sum(dim=(-2, -1))
    predicted_area, true_area = predicted.sum(dim=(-2, -1)), truth.sum(dim=(-2, -1))
    pixels = predicted.shape[-2] * predicted.shape[-1]
    return Confusion(tp, predicted_area - tp, true_area - tp, pixels - predicted_area - true_area + tp)


def iou(counts: Confusion) -> Tensor:
    """Intersection over union (Jaccard index), TP / (TP + FP + FN), in [0, 1]; 1 where both are empty."""
    return _ratio(counts.tp, counts.tp + counts.fp + counts.fn)


def dice(counts: Confusion) -> Tensor:
    """Dice coefficient (F1), 2 TP / (2 TP + FP + FN), in [0, 1]; 1 where both are empty."""
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)


def mean_absolute_error(probability: Tensor, truth: Tensor) -> Tensor:
    """Mean over the pixels of |probability - truth|, in [0, 1]; (..., H, W) -> (...).

    Times 255 it is the error on the grey scale of 8 bit masks.
    """
    return (probability.double() - truth.double()).abs().mean(dim=(-2, -1))


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    part, whole = part.double(), whole.double()
    return torch.where(whole == 0, 1.0, part / whole.clamp(min=1))
