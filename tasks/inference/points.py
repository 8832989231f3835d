"""Chooses the threshold and the presence of each target on the Val split."""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.metrics import Confusion, DiceSums, Selection, confusion_of_masks, dice
from tasks.common.cores import in_threads
from tasks.common.raw import RawDataset
from tasks.inference.masks import (
    Mask,
    OperatingPoint,
    OperatingPoints,
    Recipe,
    mask_of,
    mean_probability,
    recipes,
)
from tasks.inference.predict import Case, Networks, at_a_time, predict_cases
from tasks.networks.device import Compute
from tasks.packed.reader import PackedSplit
from tasks.settings.experiments import Plan
from tasks.settings.prediction import Prediction
from tasks.settings.training import Target

#: The candidates for `threshold: val`, and the number of those for `presence: val`.
THRESHOLDS = (np.arange(1, 20) / 20).astype(np.float32)
PRESENCES = 100

#: Scores this close are equally good; sums of the same numbers differ in their last digits.
ROUNDING = 1e-12


def choose_points(
    networks: Networks,
    plan: Plan,
    prediction: Prediction,
    images: PackedSplit | Sequence[PackedSplit],
    raw: RawDataset,
    compute: Compute,
) -> OperatingPoints:
    """The operating point of each target: as configured, or with the best `plan.selection` where it says val.

    `images` are the images of the Val split that the training used. For the networks of a cross-validation
    they are one split per network, which it has not seen: the points then suit all of these images, each as
    predicted by its own network. Masks are made with all the experiment's own steps. Among equally good
    points, the threshold closest to 0.5 and then the lowest presence is chosen.
    """
    if prediction.threshold != "val" and prediction.presence != "val":
        return dict.fromkeys(plan.targets, OperatingPoint(prediction.threshold, prediction.presence))
    # Infection within the predicted lungs depends on the operating point of the lungs.
    rounds: list[tuple[Target, ...]] = [plan.targets]
    if prediction.within_lungs:
        rounds = [("lung",), ("infection",)]
    if isinstance(images, PackedSplit):
        parts = [(networks, images)]
    else:
        parts = [((network,), unseen) for network, unseen in zip(networks, images, strict=True)]
    chosen: OperatingPoints = {}
    for targets in rounds:
        what = f"{plan.name} Val batches, threshold of {' and '.join(targets)}"
        cases = chain.from_iterable(
            predict_cases(each, plan, split, raw, compute, prediction.flip_average, what)
            for each, split in parts
        )
        at_once = min(at_a_time(split) for _, split in parts)
        found = list(in_threads(partial(_candidates, targets, chosen, prediction), cases, at_once))
        for target in targets:
            of_target = [of_one[target] for of_one in found]
            chosen[target] = _best_point(plan.selection, prediction, of_target)
    return {target: chosen[target] for target in plan.targets}


class _Candidates(NamedTuple):
    """What an image contributes to the choice for one target."""

    dice: NDArray[np.float64]
    """At each candidate threshold, after the other steps."""
    mean: float
    """The mean probability of the image."""
    empty: bool
    """Whether the reference mask is empty."""


def _candidates(
    targets: Sequence[Target], chosen: OperatingPoints, prediction: Prediction, case: Case
) -> dict[Target, _Candidates]:
    return {
        target: _Candidates(
            _dice_at_each(target, chosen, prediction, case),
            mean_probability(case.probabilities[target].numpy()),
            not bool(case.references[target].any()),
        )
        for target in targets
    }


def _thresholds(prediction: Prediction) -> NDArray[np.float32]:
    """The candidate thresholds."""
    return THRESHOLDS if prediction.threshold == "val" else np.array([prediction.threshold], np.float32)


def _best_point(selection: Selection, prediction: Prediction, found: Sequence[_Candidates]) -> OperatingPoint:
    dice_at_each = np.array([of_one.dice for of_one in found])
    means, empty = np.array([of_one.mean for of_one in found]), np.array([of_one.empty for of_one in found])
    presences = _presences(means) if prediction.presence == "val" else [prediction.presence]
    scores = np.array(
        [_score(selection, dice_at_each, empty, marked=means >= presence) for presence in presences]
    )
    thresholds = [round(float(threshold), 6) for threshold in _thresholds(prediction)]
    best = np.argwhere(scores >= scores.max() - ROUNDING)  # (presence, threshold)
    presence, threshold = min(best.tolist(), key=lambda at: (abs(thresholds[at[1]] - 0.5), at[0]))
    return OperatingPoint(thresholds[threshold], presences[presence])


def _presences(means: NDArray[np.float64]) -> list[float]:
    """Candidates: 0, and quantiles of the images' mean probabilities."""
    quantiles = np.quantile(means, np.linspace(0, 1, PRESENCES + 1))
    return sorted({0.0, *(round(float(quantile), 6) for quantile in quantiles)})


def _score(
    selection: Selection, dice_at_each: NDArray[np.float64], empty: Mask, marked: Mask
) -> NDArray[np.float64]:
    """The score at each threshold if only some of the images are marked at all."""
    found = np.where(marked[:, None], dice_at_each, empty[:, None])
    sums = DiceSums(
        found[~empty].sum(axis=0), found[empty].sum(axis=0), int((~empty).sum()), int(empty.sum())
    )
    scores: NDArray[np.float64] = sums.score(selection)
    return scores


def _dice_at_each(
    target: Target, chosen: OperatingPoints, prediction: Prediction, case: Case
) -> NDArray[np.float64]:
    """Dice at each candidate threshold after the steps of `prediction`, whatever the mean probability."""
    reference, thresholds = case.references[target].numpy(), _thresholds(prediction)
    if not (prediction.min_area or prediction.fill_holes or (prediction.within_lungs and target != "lung")):
        return dice_at_thresholds(case.probabilities[target].numpy(), reference, thresholds)
    made: dict[Recipe, Mask] = {}  # the lungs are the same at each threshold of infection
    scores = []
    for threshold in thresholds:
        points = {**chosen, target: OperatingPoint(float(threshold), 0.0)}
        mask = mask_of(case.probabilities, recipes(points, prediction)[target], made)
        scores.append(dice(confusion_of_masks(mask, reference)))
    return np.array(scores)


def dice_at_thresholds(
    probability: NDArray[np.float32], reference: Mask, thresholds: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Dice at each threshold, with a single sort of the pixels."""
    tp, predicted = (_reaching(pixels, thresholds) for pixels in (probability[reference], probability))
    area = np.count_nonzero(reference)
    scores: NDArray[np.float64] = dice(
        Confusion(tp, predicted - tp, area - tp, reference.size - predicted - area + tp)
    )
    return scores


def _reaching(probability: NDArray[np.float32], thresholds: NDArray[np.float32]) -> NDArray[np.intp]:
    """Number of pixels with at least each threshold."""
    ordered = np.sort(probability, axis=None)
    return ordered.size - np.searchsorted(ordered, thresholds)
