"""From a trained network to probabilities at the masks' own size, and from those to masks."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.metrics import Confusion, dice
from models.postprocessing import fill_holes, remove_small
from tasks.common.cores import in_threads
from tasks.common.raw import RawDataset
from tasks.networks.device import Compute
from tasks.packed.reader import PackedSplit, scaled
from tasks.settings.schema import Plan, Prediction, Target
from tasks.support.progress import progress

Mask = NDArray[np.bool_]

#: Images that a network predicts at a time.
BATCH = 32

#: The thresholds that `val` chooses from.
THRESHOLDS = torch.arange(1, 20) / 20


class Case(NamedTuple):
    """One image as a network sees it; everything (H, W) at the size of its true masks."""

    image_id: str
    image_class: str
    probabilities: dict[Target, Tensor]
    truths: dict[Target, Tensor]
    region: Tensor | None
    """Boolean: the pixels that the network was shown; None where it was shown all."""


def read_mask(raw: RawDataset, image_id: str, kind: Target) -> Tensor:
    """Boolean (H, W) at the mask's own size."""
    return torch.from_numpy(raw.read(image_id, kind) > 0)


def predict_cases(
    network: nn.Module,
    plan: Plan,
    split: PackedSplit,
    raw: RawDataset,
    compute: Compute,
    flip_average: bool,
    what: str,
) -> Iterator[Case]:
    """Each image of the split with the network's probabilities; 0 outside what the network was shown."""
    batches = predict_batches(network, split, compute, flip_average, what)
    regions = split.regions()

    def read_truths(image_id: str) -> dict[Target, Tensor]:
        return {target: read_mask(raw, image_id, target) for target in plan.targets}

    ids, classes = split.table["id"], split.table["class"]
    # The true masks come first, so that those of the next batch are read while this one is predicted.
    images = zip(in_threads(read_truths, ids, BATCH), batches, ids, classes, strict=True)
    for index, (truths, probabilities, image_id, image_class) in enumerate(images):
        shape = truths[plan.targets[0]].shape
        region = None if regions is None else resized(regions[index].float(), shape) >= 0.5
        own = {target: resized(p, shape) for target, p in zip(plan.targets, probabilities, strict=True)}
        if region is not None:
            own = {target: p * region for target, p in own.items()}
        yield Case(image_id, image_class, own, truths, region)


@torch.no_grad()
def predict_batches(
    network: nn.Module, split: PackedSplit, compute: Compute, flip_average: bool, what: str
) -> Iterator[Tensor]:
    """The network's probabilities (C, S, S) for each image of the split, one after the other.

    `flip_average` takes the mean of those of the image and of its mirror image.
    """
    starts = range(0, len(split), BATCH)
    for start in progress(starts, len(starts), what):
        x = compute.place(scaled(split.images(slice(start, start + BATCH))))
        with compute.autocast():
            probabilities = torch.sigmoid(network(x).float())
            if flip_average:
                mirrored = torch.sigmoid(network(x.flip(-1)).float()).flip(-1)
                probabilities = (probabilities + mirrored) / 2
        yield from probabilities.cpu()


def resized(probability: Tensor, shape: torch.Size) -> Tensor:
    """Probabilities (h, w) bilinearly resized to `shape`; as they are where they have it already."""
    if probability.shape == shape:
        return probability
    resized = functional.interpolate(
        probability[None, None], size=shape, mode="bilinear", align_corners=False
    )
    return resized[0, 0]


# --- thresholds ---------------------------------------------------------------------------------------------

Thresholds = dict[Target, float]


def choose_thresholds(
    network: nn.Module,
    plan: Plan,
    prediction: Prediction,
    images: PackedSplit,
    raw: RawDataset,
    compute: Compute,
) -> Thresholds:
    """The threshold of each target: as params say, or with the best mean Dice an image over `images`.

    `images` are those of the Val split that the training saw too; an image without truth counts 1 where
    nothing is predicted, else 0. Of equally good ones it is the one nearest to 0.5.
    """
    if prediction.threshold != "val":
        return dict.fromkeys(plan.targets, prediction.threshold)
    what = f"{plan.name} Val batches"
    sums = {target: torch.zeros(len(THRESHOLDS), dtype=torch.float64) for target in plan.targets}
    cases = predict_cases(network, plan, images, raw, compute, prediction.flip_average, what)
    for found in in_threads(_dice_of_targets, cases, BATCH):
        for target, of_each in found.items():
            sums[target] += of_each
    return {target: _best_threshold(of_target) for target, of_target in sums.items()}


def _dice_of_targets(case: Case) -> dict[Target, Tensor]:
    return {target: _dice_at_each(case.probabilities[target], truth) for target, truth in case.truths.items()}


def _dice_at_each(probability: Tensor, truth: Tensor) -> Tensor:
    """Dice at each of `THRESHOLDS`, from one sorting of the pixels."""
    pixels, true = probability.numpy(), truth.numpy()
    tp, predicted = _reaching(pixels[true]), _reaching(pixels)
    area = np.count_nonzero(true)
    counts = Confusion(tp, predicted - tp, area - tp, true.size - predicted - area + tp)
    return torch.from_numpy(dice(counts))


def _reaching(probability: NDArray[np.float32]) -> NDArray[np.intp]:
    """How many pixels reach each of `THRESHOLDS`."""
    ordered = np.sort(probability, axis=None)
    return ordered.size - np.searchsorted(ordered, THRESHOLDS.numpy())


def _best_threshold(scores: Tensor) -> float:
    best = THRESHOLDS[scores == scores.max()]
    return round(float(best[(best - 0.5).abs().argmin()]), 2)


# --- masks --------------------------------------------------------------------------------------------------

PLAIN = Prediction(threshold=0.5, flip_average=False, within_lungs=False, min_area=0.0, fill_holes=False)


class Recipe(NamedTuple):
    """What makes a mask: a threshold, then within the lungs, small parts off, holes filled."""

    target: Target
    threshold: float
    lungs: "Recipe | None"
    min_area: float
    fill_holes: bool


def recipes(thresholds: Mapping[Target, float], prediction: Prediction) -> dict[Target, Recipe]:
    """How the mask of each target is made."""
    after = (prediction.min_area, prediction.fill_holes)
    lungs = Recipe("lung", thresholds["lung"], None, *after) if prediction.within_lungs else None
    return {
        target: Recipe(target, threshold, lungs if target == "infection" else None, *after)
        for target, threshold in thresholds.items()
    }


def to_masks(
    probabilities: Mapping[Target, Tensor],
    thresholds: Mapping[Target, float],
    prediction: Prediction,
    made: dict[Recipe, Mask] | None = None,
) -> dict[Target, Mask]:
    """The predicted mask of each target.

    `made` are masks of the same probabilities; what is in it is not made again, and what is made joins it.
    """
    made = {} if made is None else made
    of_targets = recipes({target: thresholds[target] for target in probabilities}, prediction)
    return {target: _mask(probabilities, recipe, made) for target, recipe in of_targets.items()}


def _mask(probabilities: Mapping[Target, Tensor], recipe: Recipe, made: dict[Recipe, Mask]) -> Mask:
    if recipe not in made:
        mask = probabilities[recipe.target].numpy() >= recipe.threshold
        if recipe.lungs:
            mask &= _mask(probabilities, recipe.lungs, made)
        if recipe.min_area:
            mask = remove_small(mask, recipe.min_area * mask.size)
        made[recipe] = fill_holes(mask) if recipe.fill_holes else mask
    return made[recipe]


def steps(prediction: Prediction, thresholds: Thresholds) -> dict[str, tuple[Thresholds, Prediction]]:
    """What each step that is on does alone, beside none and all of them; nothing where none is on."""
    half = dict.fromkeys(thresholds, 0.5)
    alone = {
        "threshold": (thresholds, PLAIN) if thresholds != half else None,
        "lungs": _alone(half, prediction, "within_lungs"),
        "small": _alone(half, prediction, "min_area"),
        "holes": _alone(half, prediction, "fill_holes"),
    }
    on = {name: step for name, step in alone.items() if step}
    return {"plain": (half, PLAIN), **on, "chosen": (thresholds, prediction)} if on else {}


def _alone(half: Thresholds, prediction: Prediction, field: str) -> tuple[Thresholds, Prediction] | None:
    value = getattr(prediction, field)
    return (half, PLAIN.model_copy(update={field: value})) if value else None
