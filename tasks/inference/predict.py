"""Predicts probabilities at the masks' original size with a trained network, and turns them into masks."""

from collections.abc import Iterator, Mapping, Sequence
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
from tasks.networks.device import Compute, is_memory_short
from tasks.packed.reader import PackedSplit, scaled
from tasks.settings.schema import Plan, Prediction, Target
from tasks.support.cli import InputError
from tasks.support.progress import progress

Mask = NDArray[np.bool_]

#: Images per forward pass, if memory is sufficient.
BATCH = 32

#: The candidates for `threshold: val`.
THRESHOLDS = torch.arange(1, 20) / 20


class Case(NamedTuple):
    """One image with its prediction; all arrays are (H, W) at the size of its reference masks."""

    image_id: str
    image_class: str
    probabilities: dict[Target, Tensor]
    references: dict[Target, Tensor]
    region: Tensor | None
    """Boolean: the pixels that the network could see; None if it saw the whole image."""


def read_mask(raw: RawDataset, image_id: str, kind: Target) -> Tensor:
    """Boolean (H, W) at the mask's original size."""
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
    """Yield each image of the split with its probabilities, which are 0 outside the visible region."""
    batches = predict_batches(network, split, compute, flip_average, what)
    regions = split.regions()

    def read_references(image_id: str) -> dict[Target, Tensor]:
        return {target: read_mask(raw, image_id, target) for target in plan.targets}

    ids, classes = split.table["id"], split.table["class"]
    # Reference masks come first, so that those of the next batch are read while this batch is predicted.
    images = zip(in_threads(read_references, ids, BATCH), batches, ids, classes, strict=True)
    for index, (references, probabilities, image_id, image_class) in enumerate(images):
        shape = references[plan.targets[0]].shape
        region = None if regions is None else resized(regions[index].float(), shape) >= 0.5
        own = {target: resized(p, shape) for target, p in zip(plan.targets, probabilities, strict=True)}
        if region is not None:
            own = {target: p * region for target, p in own.items()}
        yield Case(image_id, image_class, own, references, region)


@torch.no_grad()
def predict_batches(
    network: nn.Module, split: PackedSplit, compute: Compute, flip_average: bool, what: str
) -> Iterator[Tensor]:
    """Yield the network's probabilities (C, S, S) for each image of the split.

    With `flip_average`, they are averaged over the image and its mirror image. While memory is insufficient,
    the number of images per forward pass is halved.

    Raises:
        InputError: memory is insufficient even for a single image.
    """
    starts, at_once = range(0, len(split), BATCH), BATCH
    for start in progress(starts, len(starts), what):
        images = scaled(split.images(slice(start, start + BATCH)))
        while (batches := _predicted(network, torch.split(images, at_once), compute, flip_average)) is None:
            at_once = _half(at_once, what)
            torch.cuda.empty_cache()
        for batch in batches:
            yield from batch


def _predicted(
    network: nn.Module, batches: Sequence[Tensor], compute: Compute, flip_average: bool
) -> list[Tensor] | None:
    """The probabilities of each batch, on the CPU; None if memory is insufficient."""
    try:
        return [_forward(network, compute.place(batch), compute, flip_average).cpu() for batch in batches]
    except (RuntimeError, MemoryError) as error:
        if not is_memory_short(error):
            raise
    return None


def _forward(network: nn.Module, x: Tensor, compute: Compute, flip_average: bool) -> Tensor:
    with compute.autocast():
        probabilities = torch.sigmoid(network(x).float())
        if flip_average:
            mirrored = torch.sigmoid(network(x.flip(-1)).float()).flip(-1)
            probabilities = (probabilities + mirrored) / 2
    return probabilities


def _half(images: int, what: str) -> int:
    if images == 1:
        raise InputError(f"{what}: not enough memory for a single image; lower image_size, width or depth")
    print(f"{what}: not enough memory for {images} images at a time; using {images // 2}", flush=True)
    return images // 2


def resized(probability: Tensor, shape: torch.Size) -> Tensor:
    """Resize probabilities (h, w) bilinearly to `shape`; unchanged if they have it already.

    Downscaling averages over all pixels. Without `antialias`, it would read only two rows and columns around
    each position and skip the others.
    """
    if probability.shape == shape:
        return probability
    smaller = any(new < old for new, old in zip(shape, probability.shape, strict=True))
    resized = functional.interpolate(
        probability[None, None], size=shape, mode="bilinear", align_corners=False, antialias=smaller
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
    """The threshold of each target: the configured one, or the one with the best mean Dice per image.

    `images` are the images of the Val split that the training used. An image with an empty reference mask
    scores 1 if nothing is predicted, else 0. Among equally good thresholds, the closest to 0.5 is chosen.
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
    return {
        target: _dice_at_each(case.probabilities[target], reference)
        for target, reference in case.references.items()
    }


def _dice_at_each(probability: Tensor, reference: Tensor) -> Tensor:
    """Dice at each of `THRESHOLDS`, with a single sort of the pixels."""
    pixels, true = probability.numpy(), reference.numpy()
    tp, predicted = _reaching(pixels[true]), _reaching(pixels)
    area = np.count_nonzero(true)
    counts = Confusion(tp, predicted - tp, area - tp, true.size - predicted - area + tp)
    return torch.from_numpy(dice(counts))


def _reaching(probability: NDArray[np.float32]) -> NDArray[np.intp]:
    """Number of pixels with at least each of `THRESHOLDS`."""
    ordered = np.sort(probability, axis=None)
    return ordered.size - np.searchsorted(ordered, THRESHOLDS.numpy())


def _best_threshold(scores: Tensor) -> float:
    best = THRESHOLDS[scores == scores.max()]
    return round(float(best[(best - 0.5).abs().argmin()]), 2)


# --- masks --------------------------------------------------------------------------------------------------

PLAIN = Prediction(threshold=0.5, flip_average=False, within_lungs=False, min_area=0.0, fill_holes=False)


class Recipe(NamedTuple):
    """How a mask is made: threshold, restriction to the lungs, removal of small components, hole filling."""

    target: Target
    threshold: float
    lungs: "Recipe | None"
    min_area: float
    fill_holes: bool


def recipes(thresholds: Mapping[Target, float], prediction: Prediction) -> dict[Target, Recipe]:
    """The recipe for each target's mask."""
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

    `made` is a cache of masks from the same probabilities; new masks are added to it.
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
    """Settings for no step, each enabled step alone, and all enabled steps; empty if none is enabled."""
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
