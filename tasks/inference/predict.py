"""Predicts probabilities at the masks' original size with trained networks.

Several networks are an ensemble: their probabilities are averaged (Lakshminarayanan et al. 2017,
arXiv:1612.01474).
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tasks.common.cores import in_threads
from tasks.common.raw import RawDataset
from tasks.inference.masks import (
    resized,
)
from tasks.networks.device import Compute, is_memory_short
from tasks.networks.network import DESCRIPTION, load_network
from tasks.packed.reader import PackedSplit, scaled
from tasks.settings.experiments import Plan
from tasks.settings.training import Target
from tasks.support.cli import InputError
from tasks.support.progress import progress

#: Images per forward pass, if memory is sufficient.
BATCH = 32
#: Pixels of the images that a thread handles at a time: as many as BATCH images of 512x512 have.
PIXELS = BATCH * 512**2

Networks = Sequence[nn.Module]


def load_networks(folder: Path, compute: Compute) -> Networks:
    """Load the network in a folder, or those in its subfolders, by increasing seed."""
    if (folder / DESCRIPTION).exists():
        return (load_network(folder, compute),)
    return tuple(load_network(each, compute) for each in sorted(folder.iterdir(), key=_seed))


def _seed(folder: Path) -> int:
    return int(json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["plan"]["seed"])


class Case(NamedTuple):
    """One image with its prediction; all arrays are (H, W) at the size of its reference masks."""

    image_id: str
    image_class: str
    probabilities: dict[Target, Tensor]
    plain: dict[Target, Tensor]
    """Without the average over the mirror image; the same object if there is no average."""
    references: dict[Target, Tensor]
    region: Tensor | None
    """Boolean: the pixels that the network could see; None if it saw the whole image."""
    members: Sequence[dict[Target, Tensor]] = ()
    """The probabilities of each network, if those are asked for and there are several."""


def read_mask(raw: RawDataset, image_id: str, kind: Target) -> Tensor:
    """Boolean (H, W) at the mask's original size."""
    return torch.from_numpy(raw.read(image_id, kind) > 0)


def at_a_time(split: PackedSplit) -> int:
    """How many images a thread handles at a time: up to `BATCH`, fewer if they are large."""
    largest = int((split.table["height"] * split.table["width"]).max())
    return max(1, min(BATCH, PIXELS // largest))


def predict_cases(
    networks: Networks,
    plan: Plan,
    split: PackedSplit,
    raw: RawDataset,
    compute: Compute,
    flip_average: bool,
    what: str,
    targets: Sequence[Target] | None = None,
    with_members: bool = False,
) -> Iterator[Case]:
    """Yield each image of the split with its probabilities, which are 0 outside the visible region.

    `targets` are those that have reference masks, at least one; by default, all of the plan.
    """
    known = plan.targets if targets is None else targets
    images = predict_images(networks, split, compute, flip_average, what)
    regions = split.regions()

    def read_references(image_id: str) -> dict[Target, Tensor]:
        return {target: read_mask(raw, image_id, target) for target in known}

    ids, classes = split.table["id"], split.table["class"]
    # Reference masks come first, so that those of the next batch are read while this batch is predicted.
    cases = zip(in_threads(read_references, ids, at_a_time(split)), images, ids, classes, strict=True)
    for index, (references, predicted, image_id, image_class) in enumerate(cases):
        shape = references[known[0]].shape
        region = None if regions is None else _own(regions[index].float(), shape) >= 0.5
        own = _own_size(plan, predicted.averaged, shape, region)
        plain = (
            own if predicted.plain is predicted.averaged else _own_size(plan, predicted.plain, shape, region)
        )
        members = predicted.members if with_members else ()
        of_members = [_own_size(plan, member, shape, region) for member in members]
        yield Case(image_id, image_class, own, plain, references, region, of_members)


def _own_size(
    plan: Plan, probabilities: Tensor, shape: torch.Size, region: Tensor | None
) -> dict[Target, Tensor]:
    own = {target: _own(p, shape) for target, p in zip(plan.targets, probabilities, strict=True)}
    return own if region is None else {target: p * region for target, p in own.items()}


def _own(values: Tensor, shape: torch.Size) -> Tensor:
    height, width = shape
    return torch.from_numpy(resized(values.numpy(), (height, width)))


class Predicted(NamedTuple):
    """Probabilities, (C, S, S) for an image; the same tensor twice if there is no mirror average."""

    plain: Tensor
    averaged: Tensor
    """The average over the image and its mirror image."""
    members: Sequence[Tensor] = ()
    """`averaged` of each network, if there are several."""


@torch.no_grad()
def predict_images(
    networks: Networks, split: PackedSplit, compute: Compute, flip_average: bool, what: str
) -> Iterator[Predicted]:
    """Yield the networks' probabilities for each image of the split.

    While memory is insufficient, the number of images per forward pass is halved.

    Raises:
        InputError: memory is insufficient even for a single image.
    """
    starts, at_once = range(0, len(split), BATCH), BATCH
    for start in progress(starts, len(starts), what):
        images = scaled(split.images(slice(start, start + BATCH)))
        while (batches := _predicted(networks, torch.split(images, at_once), compute, flip_average)) is None:
            at_once = _half(at_once, what)
            torch.cuda.empty_cache()
        for batch in batches:
            for index, (one, average) in enumerate(zip(batch.plain, batch.averaged, strict=True)):
                members = [member[index] for member in batch.members]
                yield Predicted(one, average if flip_average else one, members)


def _predicted(
    networks: Networks, batches: Sequence[Tensor], compute: Compute, flip_average: bool
) -> list[Predicted] | None:
    """The probabilities of each batch, on the CPU; None if memory is insufficient."""
    try:
        return [_average(networks, compute.place(batch), compute, flip_average) for batch in batches]
    except (RuntimeError, MemoryError) as error:
        if not is_memory_short(error):
            raise
    return None


def _average(networks: Networks, x: Tensor, compute: Compute, flip_average: bool) -> Predicted:
    found = [_forward(network, x, compute, flip_average) for network in networks]
    if len(found) == 1:
        return found[0]
    members = [each.averaged for each in found]
    plain, averaged = torch.stack([each.plain for each in found]), torch.stack(members)
    return Predicted(plain.mean(dim=0), averaged.mean(dim=0), members)


def _forward(network: nn.Module, x: Tensor, compute: Compute, flip_average: bool) -> Predicted:
    with compute.autocast():
        plain = averaged = torch.sigmoid(network(x).float())
        if flip_average:
            averaged = (plain + torch.sigmoid(network(x.flip(-1)).float()).flip(-1)) / 2
    return Predicted(plain.cpu(), averaged.cpu())


def _half(images: int, what: str) -> int:
    if images == 1:
        raise InputError(f"{what}: not enough memory for a single image; lower image_size, width or depth")
    print(f"{what}: not enough memory for {images} images at a time; using {images // 2}", flush=True)
    return images // 2
