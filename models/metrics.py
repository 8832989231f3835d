"""Segmentation metrics: confusion counts first, then small pure functions of them. Calibration last.

The functions of counts take tensors, arrays or plain numbers, and return the like.

Rules for empty masks, per image: truth and prediction both empty score 1, for what was asked was done;
an empty truth with any predicted pixel scores 0, and so does a missed mask.
Definitions: Metrics Reloaded, Maier-Hein et al. 2024, doi 10.1038/s41592-023-02151-z.
Distances between outlines are in `models.surfaces`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:  # torch takes seconds to load, and who scores masks needs none
    from torch import Tensor

#: A float64 tensor, an array or a number: what is computed of counts needs their operators alone.
Numbers = Any


class Confusion(NamedTuple):
    """Pixel counts, of one type and shape."""

    tp: Numbers
    fp: Numbers
    fn: Numbers
    tn: Numbers

    def pooled(self) -> Confusion:
        """The counts of all images taken as one."""
        return Confusion(*(count.sum(0) for count in self))


def confusion(predicted: Tensor, truth: Tensor) -> Confusion:
    """Counts over the last two dimensions of two boolean masks (..., H, W), as float64."""
    tp = (predicted & truth).sum(dim=(-2, -1)).double()
    predicted_area, true_area = predicted.sum(dim=(-2, -1)), truth.sum(dim=(-2, -1))
    pixels = predicted.shape[-2] * predicted.shape[-1]
    return Confusion(tp, predicted_area - tp, true_area - tp, pixels - predicted_area - true_area + tp)


def confusion_of_masks(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Confusion:
    """Counts of two boolean masks, of any one shape."""
    tp = int(np.count_nonzero(predicted & truth))
    predicted_area, true_area = (int(np.count_nonzero(mask)) for mask in (predicted, truth))
    return Confusion(tp, predicted_area - tp, true_area - tp, truth.size - predicted_area - true_area + tp)


def iou(counts: Confusion) -> Numbers:
    """Intersection over union (Jaccard index), TP / (TP + FP + FN), in [0, 1]; 1 where both are empty."""
    return _ratio(counts.tp, counts.tp + counts.fp + counts.fn)


def dice(counts: Confusion) -> Numbers:
    """Dice coefficient (F1), 2 TP / (2 TP + FP + FN), in [0, 1]; 1 where both are empty."""
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)


def precision(counts: Confusion) -> Numbers:
    """TP / (TP + FP), in [0, 1]; where nothing is predicted 1 if the truth is empty, else 0."""
    return _ratio(counts.tp, counts.tp + counts.fp, empty=counts.fn == 0)


def sensitivity(counts: Confusion) -> Numbers:
    """Recall, TP / (TP + FN), in [0, 1]; where the truth is empty 1 if nothing is predicted, else 0."""
    return _ratio(counts.tp, counts.tp + counts.fn, empty=counts.fp == 0)


def specificity(counts: Confusion) -> Numbers:
    """TN / (TN + FP), in [0, 1]; 1 where the truth fills the image."""
    return _ratio(counts.tn, counts.tn + counts.fp)


def marked(counts: Confusion) -> Numbers:
    """Share of the pixels that are predicted, (TP + FP) / all, in [0, 1]."""
    return _ratio(counts.tp + counts.fp, counts.tp + counts.fp + counts.fn + counts.tn)


def mean_absolute_error(probability: Tensor, truth: Tensor) -> Tensor:
    """Mean over the pixels of |probability - truth|, in [0, 1]; (..., H, W) -> (...).

    Times 255 it is the error on the grey scale of 8 bit masks.
    """
    import torch

    # NumPy's steps stay in this thread; for each of torch's its other threads wake up, and spin for a while.
    errors = np.abs(np.asarray(probability, np.float64) - np.asarray(truth))
    return torch.from_numpy(errors).mean(dim=(-2, -1))


def calibration_bins(probability: ArrayLike, truth: ArrayLike, bins: int = 15) -> NDArray[np.float64]:
    """Pixels counted by their probability, in `bins` bins of equal width over [0, 1]; float64 (bins, 3).

    Columns: number of pixels, sum of their probabilities, number of true ones. Both inputs have one shape,
    any; the truth is boolean. A bin holds its lower bound, the last one 1 as well. Add the bins of several
    images for all their pixels.
    """
    p, true = np.ravel(probability).astype(np.float64, copy=False), np.ravel(truth)
    index = (p * bins).astype(np.intp)
    np.minimum(index, bins - 1, out=index)
    columns = [
        np.bincount(index, minlength=bins),
        np.bincount(index, weights=p, minlength=bins),
        np.bincount(index[true], minlength=bins),
    ]
    return np.stack(columns, axis=1)


def expected_calibration_error(bins: NDArray[np.float64]) -> float:
    """Mean over pixels of |mean probability - share of true pixels| of the pixel's bin, in [0, 1].

    Of the foreground's probability: Naeini et al. 2015, doi 10.1609/aaai.v29i1.9602. Background far from
    any mask, sure and right, makes up most pixels and keeps it small.
    """
    pixels, probability, truth = bins.T
    return float(np.abs(probability - truth).sum() / pixels.sum())


def _ratio(part: Numbers, whole: Numbers, empty: Numbers = 1.0) -> Numbers:
    """part / whole, and `empty` where the whole is 0."""
    none = whole == 0
    return part / (whole + none) + none * empty
