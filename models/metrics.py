"""Segmentation metrics: confusion counts first, then small pure functions of them. Calibration last.

Rules for empty masks, per image: truth and prediction both empty score 1, for what was asked was done;
an empty truth with any predicted pixel scores 0, and so does a missed mask.
Definitions: Metrics Reloaded, Maier-Hein et al. 2024, doi 10.1038/s41592-023-02151-z.
Distances between outlines are in `models.surfaces`.
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


def precision(counts: Confusion) -> Tensor:
    """TP / (TP + FP), in [0, 1]; where nothing is predicted 1 if the truth is empty, else 0."""
    return _ratio(counts.tp, counts.tp + counts.fp, empty=(counts.fn == 0).double())


def sensitivity(counts: Confusion) -> Tensor:
    """Recall, TP / (TP + FN), in [0, 1]; where the truth is empty 1 if nothing is predicted, else 0."""
    return _ratio(counts.tp, counts.tp + counts.fn, empty=(counts.fp == 0).double())


def specificity(counts: Confusion) -> Tensor:
    """TN / (TN + FP), in [0, 1]; 1 where the truth fills the image."""
    return _ratio(counts.tn, counts.tn + counts.fp)


def marked(counts: Confusion) -> Tensor:
    """Share of the pixels that are predicted, (TP + FP) / all, in [0, 1]."""
    return _ratio(counts.tp + counts.fp, counts.tp + counts.fp + counts.fn + counts.tn)


def mean_absolute_error(probability: Tensor, truth: Tensor) -> Tensor:
    """Mean over the pixels of |probability - truth|, in [0, 1]; (..., H, W) -> (...).

    Times 255 it is the error on the grey scale of 8 bit masks.
    """
    return (probability.double() - truth.double()).abs().mean(dim=(-2, -1))


def calibration_bins(probability: Tensor, truth: Tensor, bins: int = 15) -> Tensor:
    """Pixels counted by their probability, in `bins` bins of equal width over [0, 1]; float64 (bins, 3).

    Columns: number of pixels, sum of their probabilities, sum of their truth. Both inputs have one shape,
    any. A bin holds its lower bound, the last one 1 as well. Add the bins of several images for all their
    pixels.
    """
    probability, truth = probability.flatten().double(), truth.flatten().double()
    index = (probability * bins).long().clamp(max=bins - 1)
    columns = [
        torch.bincount(index, of, minlength=bins) for of in (torch.ones_like(truth), probability, truth)
    ]
    return torch.stack(columns, dim=1)


def expected_calibration_error(bins: Tensor) -> float:
    """Mean over pixels of |mean probability - share of true pixels| of the pixel's bin, in [0, 1].

    Of the foreground's probability: Naeini et al. 2015, doi 10.1609/aaai.v29i1.9602. Background far from
    any mask, sure and right, makes up most pixels and keeps it small.
    """
    pixels, probability, truth = bins.unbind(dim=1)
    return float((probability - truth).abs().sum() / pixels.sum())


def _ratio(part: Tensor, whole: Tensor, empty: Tensor | float = 1.0) -> Tensor:
    """part / whole, and `empty` where the whole is 0."""
    part, whole = part.double(), whole.double()
    return torch.where(whole == 0, empty, part / whole.clamp(min=1))
