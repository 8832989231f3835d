"""Segmentation metrics: confusion counts, pure functions of the counts, and calibration.

Functions of counts accept tensors, arrays or plain numbers, and return the same kind.

Rules for empty masks, per image: IoU and Dice are 1 if reference and prediction are both empty, and 0 if only
one is. Precision, sensitivity and average precision do not exist for an empty reference: they are NaN.
Definitions: Metrics Reloaded, Maier-Hein et al. 2024, doi 10.1038/s41592-023-02151-z.
Distances between outlines are in `models.surfaces`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:  # torch takes seconds to import, and scoring masks does not need it
    from torch import Tensor

#: A float64 tensor, an array or a number; functions of counts use only their operators.
Numbers = Any

#: Names of the scores by which epochs, thresholds and experiments are chosen; see `DiceSums.score`.
Selection = Literal["lesions", "all", "balanced"]


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
    """TP / (TP + FP), in [0, 1]. NaN for an empty reference; otherwise 0 if nothing is predicted."""
    return _nan_where(counts.tp + counts.fn == 0, _ratio(counts.tp, counts.tp + counts.fp, empty=0.0))


def sensitivity(counts: Confusion) -> Numbers:
    """Recall, TP / (TP + FN), in [0, 1]. NaN for an empty reference."""
    return _nan_where(counts.tp + counts.fn == 0, _ratio(counts.tp, counts.tp + counts.fn))


def specificity(counts: Confusion) -> Numbers:
    """TN / (TN + FP), in [0, 1]; 1 if the reference fills the image."""
    return _ratio(counts.tn, counts.tn + counts.fp)


def marked(counts: Confusion) -> Numbers:
    """Share of predicted pixels, (TP + FP) / all, in [0, 1]."""
    return _ratio(counts.tp + counts.fp, counts.tp + counts.fp + counts.fn + counts.tn)


class DiceSums(NamedTuple):
    """Sums of Dice over images with a non-empty reference mask and over the others, with their numbers.

    With an empty reference, Dice is 1 if nothing is predicted and else 0, so `empty / empty_images` is the
    share of these images that are left unmarked.
    """

    nonempty: Numbers
    empty: Numbers
    nonempty_images: int
    empty_images: int

    def score(self, selection: Selection) -> Numbers:
        """The score by which epochs, thresholds and experiments are chosen, in [0, 1]; higher is better.

        lesions:  mean Dice over images with a non-empty reference mask
        all:      mean Dice over all images
        balanced: mean of `lesions` and of the share of the other images that are left unmarked

        Without images of one kind, all three are the mean over the other kind.
        """
        images = self.nonempty_images + self.empty_images
        if selection == "all" or not self.nonempty_images or not self.empty_images:
            return (self.nonempty + self.empty) / images
        lesions = self.nonempty / self.nonempty_images
        return lesions if selection == "lesions" else (lesions + self.empty / self.empty_images) / 2


def selection_weights(nonempty: NDArray[np.bool_], selection: Selection) -> NDArray[np.float64]:
    """Weights of images, (N,), with which the mean of weight * Dice is `DiceSums.score`.

    `nonempty` says which images have a non-empty reference mask.
    """
    images, found = len(nonempty), int(np.count_nonzero(nonempty))
    if selection == "all" or found in (0, images):
        return np.ones(images)
    if selection == "lesions":
        return np.where(nonempty, images / found, 0.0)
    return np.where(nonempty, images / (2 * found), images / (2 * (images - found)))


def mean_absolute_error(probability: Tensor, reference: Tensor) -> Tensor:
    """Mean over pixels of |probability - reference|, in [0, 1]; (..., H, W) -> (...).

    Multiplied by 255, it is the error on the grey scale of 8-bit masks.
    """
    import torch

    # NumPy runs in this thread. Each torch operation would wake torch's threads, which then spin for a while.
    errors = np.abs(np.asarray(probability, np.float64) - np.asarray(reference))
    return torch.from_numpy(errors).mean(dim=(-2, -1))


def average_precision(probability: ArrayLike, reference: ArrayLike) -> float:
    """Area under the precision-recall curve of the pixels, in [0, 1]; NaN for an empty reference.

    The mean, over the reference pixels, of the precision at the threshold that just includes the pixel. No
    threshold is chosen, so networks with different operating points compare. Chance level is the reference's
    share of the pixels. Davis and Goadrich 2006, doi 10.1145/1143844.1143874.
    """
    pixels, true = np.ravel(probability), np.ravel(reference)
    ordered, ordered_true = np.sort(pixels), np.sort(pixels[true])
    if not ordered_true.size:
        return math.nan
    predicted = ordered.size - np.searchsorted(ordered, ordered_true)
    hits = ordered_true.size - np.searchsorted(ordered_true, ordered_true)
    return float((hits / predicted).mean())


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


def _nan_where(undefined: Numbers, value: Numbers) -> Numbers:
    if hasattr(value, "masked_fill"):
        return value.masked_fill(undefined, math.nan)
    return np.where(undefined, math.nan, value)[()]
