"""Turns probabilities into masks, with NumPy alone: `cxr predict` works without torch."""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from models.postprocessing import fill_holes, remove_small
from tasks.settings.prediction import Prediction
from tasks.settings.training import Target

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

#: The probabilities of each target, float32 (H, W); tensors on the CPU are read in place.
Probabilities = Mapping[Target, ArrayLike]


def resized(probability: Floats, shape: tuple[int, int]) -> Floats:
    """Resize probabilities (h, w) bilinearly to `shape`; unchanged if they have it already.

    Downscaling averages over all pixels, upscaling interpolates between pixel centres: the same as
    `torch.nn.functional.interpolate` with `antialias` and without `align_corners`.
    """
    if probability.shape == shape:
        return probability
    picture = Image.fromarray(probability)
    return np.array(picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


class OperatingPoint(NamedTuple):
    """Where a target's probabilities become a mask."""

    threshold: float
    """The least probability of a marked pixel."""
    presence: float
    """The least mean probability of an image in which anything is marked; 0 marks every image."""


OperatingPoints = dict[Target, OperatingPoint]


def operating_points(evaluated: Mapping[str, Any]) -> OperatingPoints:
    """The operating points in the settings.json of the stage evaluate."""
    return {
        target: OperatingPoint(threshold, evaluated["presence"][target])
        for target, threshold in evaluated["thresholds"].items()
    }


def read_points(settings: Path) -> OperatingPoints:
    """The operating points that the stage evaluate chose on Val; `settings` is its settings.json."""
    return operating_points(json.loads(settings.read_text(encoding="utf-8")))


def mean_probability(probability: Floats) -> float:
    """The mean probability of an image: the share that the network expects to be marked."""
    return float(np.mean(probability, dtype=np.float64))


PLAIN = Prediction(
    threshold=0.5, presence=0.0, flip_average=False, within_lungs=False, min_area=0.0, fill_holes=False
)
HALF = OperatingPoint(0.5, 0.0)


class Recipe(NamedTuple):
    """How a mask is made: operating point, restriction to the lungs, small components, holes."""

    target: Target
    point: OperatingPoint
    lungs: "Recipe | None"
    min_area: float
    fill_holes: bool


def recipes(points: Mapping[Target, OperatingPoint], prediction: Prediction) -> dict[Target, Recipe]:
    """The recipe for each target's mask."""
    after = (prediction.min_area, prediction.fill_holes)
    lungs = Recipe("lung", points["lung"], None, *after) if prediction.within_lungs else None
    return {
        target: Recipe(target, point, lungs if target == "infection" else None, *after)
        for target, point in points.items()
    }


def to_masks(
    probabilities: Probabilities,
    points: Mapping[Target, OperatingPoint],
    prediction: Prediction,
    made: dict[Recipe, Mask] | None = None,
) -> dict[Target, Mask]:
    """The predicted mask of each target.

    `made` is a cache of masks from the same probabilities; new masks are added to it.
    """
    made = {} if made is None else made
    of_targets = recipes({target: points[target] for target in probabilities}, prediction)
    return {target: mask_of(probabilities, recipe, made) for target, recipe in of_targets.items()}


def mask_of(probabilities: Probabilities, recipe: Recipe, made: dict[Recipe, Mask]) -> Mask:
    """The mask by a recipe; from the cache `made` if it is there."""
    if recipe not in made:
        made[recipe] = _new_mask(probabilities, recipe, made)
    return made[recipe]


def _new_mask(probabilities: Probabilities, recipe: Recipe, made: dict[Recipe, Mask]) -> Mask:
    probability = np.asarray(probabilities[recipe.target])
    if recipe.point.presence and mean_probability(probability) < recipe.point.presence:
        return np.zeros(probability.shape, bool)
    mask: Mask = probability >= recipe.point.threshold
    if recipe.lungs:
        mask &= mask_of(probabilities, recipe.lungs, made)
    if recipe.min_area:
        mask = remove_small(mask, recipe.min_area * mask.size)
    return fill_holes(mask) if recipe.fill_holes else mask


def infected_share(infection: Mask, lungs: Mask) -> float:
    """The infected share of the lungs; 0 if there are no lungs."""
    area = int(lungs.sum())
    return int((infection & lungs).sum()) / area if area else 0.0


def disagreement(masks: Sequence[Mask]) -> float:
    """1 minus the mean Dice between every two of an ensemble's masks: 0 if all are equal, 1 if none overlap.

    A measure of uncertainty about an image (Roy et al. 2019, doi 10.1016/j.neuroimage.2019.03.042).
    """
    return 1 - fmean(_dice(*pair) for pair in combinations(masks, 2))


def _dice(first: Mask, second: Mask) -> float:
    area = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / area if area else 1.0


class Step(NamedTuple):
    """Settings that turn probabilities into masks."""

    averaged: bool
    """Whether probabilities are averaged over the image and its mirror image."""
    points: OperatingPoints
    prediction: Prediction


def steps(prediction: Prediction, points: OperatingPoints) -> dict[str, Step]:
    """Settings for no step, each enabled step alone, and all enabled steps; empty if none is enabled."""
    plain = dict.fromkeys(points, HALF)
    threshold = {target: OperatingPoint(point.threshold, 0.0) for target, point in points.items()}
    presence = {target: OperatingPoint(0.5, point.presence) for target, point in points.items()}
    alone = {
        "flip": Step(True, plain, PLAIN) if prediction.flip_average else None,
        "threshold": Step(False, threshold, PLAIN) if threshold != plain else None,
        "presence": Step(False, presence, PLAIN) if presence != plain else None,
        "lungs": _alone(plain, prediction, "within_lungs"),
        "small": _alone(plain, prediction, "min_area"),
        "holes": _alone(plain, prediction, "fill_holes"),
    }
    on = {name: step for name, step in alone.items() if step}
    chosen = Step(prediction.flip_average, points, prediction)
    return {"plain": Step(False, plain, PLAIN), **on, "chosen": chosen} if on else {}


def _alone(plain: OperatingPoints, prediction: Prediction, field: str) -> Step | None:
    value = getattr(prediction, field)
    return Step(False, plain, PLAIN.model_copy(update={field: value})) if value else None
