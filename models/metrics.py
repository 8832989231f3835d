"""Segmentation metrics: confusion counts, pure functions of the counts, and calibration.

Functions of counts accept tensors, arrays or plain numbers, and return the same kind.

Rules for empty masks, per image: reference and prediction both empty score 1; an empty reference with any
predicted pixel scores 0, and so does a missed mask.
Definitions: Metrics Reloaded, Maier-Hein et al. 2024, doi 10.1038/s41592-023-02151-z.
Distances between outlines are in `models.surfaces`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:  # torch takes seconds to import, and scoring masks does not need it
    from torch import Tensor

#: A float64 tensor, an array or a number; functions of counts use only their operators.
Numbers = Any


class Confusion(NamedTuple):
    """Pixel counts, all of the same type and shape."""

    tp: Numbers
    fp: Numbers
    fn: Numbers
    tn: Numbers

    def pooled(self) -> Confusion:
        """The counts summed over all images."""
        return Confusion(*(count.sum(0) for count in self))


def confusion(predicted: Tensor, reference: Tensor) -> Confusion:
    """Counts over the last two dimensions of two boolean masks (..., H, W), as float64."""
    tp = (predicted & reference).sum(dim=(-2, -1)).double()
    predicted_area, true_area = predicted.sum(dim=(-2, -1)), reference.sum(dim=(-2, -1))
    pixels = predicted.shape[-2] * predicted.shape[-1]
    return Confusion(tp, predicted_area - tp, true_area - tp, pixels - predicted_area - true_area + tp)


def confusion_of_masks(predicted: NDArray[np.bool_], reference: NDArray[np.bool_]) -> Confusion:
    """Counts of two boolean masks of the same shape."""
    tp = int(np.count_nonzero(predicted & reference))
    predicted_area, true_area = (int(np.count_nonzero(mask)) for mask in (predicted, reference))
    return Confusion(
        tp, predicted_area - tp, true_area - tp, reference.size - predicted_area - true_area + tp
    )


def iou(counts: Confusion) -> Numbers:
    """Intersection over union (Jaccard index), TP / (TP + FP + FN), in [0, 1]; 1 where both are empty."""
    return _ratio(counts.tp, counts.tp + counts.fp + counts.fn)


def dice(counts: Confusion) -> Numbers:
    """Dice coefficient (F1), 2 TP / (2 TP + FP + FN), in [0, 1]; 1 where both are empty."""
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)


def precision(counts: Confusion) -> Numbers:
    """TP / (TP + FP), in [0, 1]. If nothing is predicted: 1 for an empty reference, else 0."""
    return _ratio(counts.tp, counts.tp + counts.fp, empty=counts.fn == 0)


def sensitivity(counts: Confusion) -> Numbers:
    """Recall, TP / (TP + FN), in [0, 1]. If the reference is empty: 1 if nothing is predicted, else 0."""
    return _ratio(counts.tp, counts.tp + counts.fn, empty=counts.fp == 0)


def specificity(counts: Confusion) -> Numbers:
    """TN / (TN + FP), in [0, 1]; 1 if the reference fills the image."""
    return _ratio(counts.tn, counts.tn + counts.fp)


def marked(counts: Confusion) -> Numbers:
    """Share of predicted pixels, (TP + FP) / all, in [0, 1]."""
    return _ratio(counts.tp + counts.fp, counts.tp + counts.fp + counts.fn + counts.tn)


def mean_absolute_error(probability: Tensor, reference: Tensor) -> Tensor:
    """Mean over pixels of |probability - reference|, in [0, 1]; (..., H, W) -> (...).

    Multiplied by 255, it is the error on the grey scale of 8-bit masks.
    """
    import torch

    # NumPy runs in this thread. Each torch operation would wake torch's threads, which then spin for a while.
    errors = np.abs(np.asarray(probability, np.float64) - np.asarray(reference))
    return torch.from_numpy(errors).mean(dim=(-2, -1))


def calibration_bins(probability: ArrayLike, reference: ArrayLike, bins: int = 15) -> NDArray[np.float64]:
    """Pixels binned by their probability, in `bins` equal-width bins over [0, 1]; float64 (bins, 3).

    Columns: number of pixels, sum of their probabilities, number of reference pixels. Both inputs have the
    same shape, and the reference is boolean. A bin includes its lower bound; the last one also includes 1.
    Bins of several images can be added.
    """
    p, true = np.ravel(probability).astype(np.float64, copy=False), np.ravel(reference)
    index = (p * bins).astype(np.intp)
    np.minimum(index, bins - 1, out=index)
    columns = [
        np.bincount(index, minlength=bins),
        np.bincount(index, weights=p, minlength=bins),
        np.bincount(index[true], minlength=bins),
    ]
    return np.stack(columns, axis=1)


def expected_calibration_error(bins: NDArray[np.float64]) -> float:
    """Mean over pixels of |mean probability - share of reference pixels| of the pixel's bin, in [0, 1].

    Computed for the foreground probability: Naeini et al. 2015, doi 10.1609/aaai.v29i1.9602. Most pixels are
    background far from any mask with a confident, correct prediction, which keeps the value small.
    """
    pixels, probability, reference = bins.T
    return float(np.abs(probability - reference).sum() / pixels.sum())


def _ratio(part: Numbers, whole: Numbers, empty: Numbers = 1.0) -> Numbers:
    """part / whole, or `empty` if the whole is 0."""
    none = whole == 0
    return part / (whole + none) + none * empty
