"""Scores a network on the Val images after each epoch."""

from collections.abc import Callable, Sequence
from statistics import fmean

import torch
from torch import Tensor, nn

from models.losses import Loss
from models.metrics import DiceSums, Selection, confusion, dice, iou, marked
from tasks.networks.device import Compute
from tasks.settings.experiments import Plan
from tasks.training.batches import Batches
from tasks.training.output import MEANS
from tasks.training.processes import ALONE, Group

#: Images per forward pass, in which no gradients take memory.
VALIDATION_BATCH = 32

#: Number of sums over the Val images for each target.
SUMS = 5


@torch.no_grad()
def validate(
    network: nn.Module,
    batches: Batches,
    plan: Plan,
    loss: Loss,
    compute: Compute,
    group: Group = ALONE,
    at_once: int = VALIDATION_BATCH,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Scores on the Val images at the network's image size and probability 0.5.

    `val_score` is `plan.selection`; `val_dice`, `val_iou` and `val_marked` are means over the images. With
    several targets, these are means over the targets, and each target's own values are added. `val_lesions`
    and `val_unmarked` are the parts of `balanced`, as far as there are such images.
    """
    network.eval()
    sums = torch.zeros(1 + SUMS * len(plan.targets), dtype=torch.float64, device=compute.device)
    places = torch.arange(len(batches))[group.rank :: group.size]
    for images, masks in batches(torch.split(places, at_once) if len(places) else ()):
        x, y = compute.place(images), compute.place(masks)
        with compute.autocast():
            logits = network(x)
        mean_loss = loss(logits, y).double().reshape(1) * len(x)
        sums += torch.cat([mean_loss, _sums(logits > 0, y >= 0.5).flatten()])
        after_batch()
    total_loss, *others = group.total(sums).tolist()
    of_targets = [
        _scores(plan.selection, others[place :: len(plan.targets)], len(batches))
        for place in range(len(plan.targets))
    ]
    return {"val_loss": total_loss / len(batches)} | _of_targets(plan.targets, of_targets)


def _sums(predicted: Tensor, reference: Tensor) -> Tensor:
    """Sums over the images of boolean masks (N, C, H, W) for `_scores`; (SUMS, C)."""
    counts = confusion(predicted, reference)
    of_dice, nonempty = dice(counts), counts.tp + counts.fn > 0
    each = (of_dice * nonempty, of_dice * ~nonempty, nonempty.double(), iou(counts), marked(counts))
    return torch.stack(each).sum(dim=1)


def _scores(selection: Selection, sums: Sequence[float], images: int) -> dict[str, float]:
    """The scores of one target from its `_sums` over all Val images."""
    nonempty, empty, nonempty_images, of_iou, of_marked = sums
    found = DiceSums(nonempty, empty, round(nonempty_images), images - round(nonempty_images))
    means = {"val_dice": nonempty + empty, "val_iou": of_iou, "val_marked": of_marked}
    scores = {"val_score": float(found.score(selection))} | {k: v / images for k, v in means.items()}
    if found.nonempty_images:
        scores["val_lesions"] = nonempty / found.nonempty_images
    if found.empty_images:
        scores["val_unmarked"] = empty / found.empty_images
    return scores


def _of_targets(targets: Sequence[str], scores: Sequence[dict[str, float]]) -> dict[str, float]:
    if len(targets) == 1:
        return scores[0]
    means = {name: fmean(of_one[name] for of_one in scores) for name in MEANS}
    return means | {
        f"{name}_{target}": value
        for target, of_one in zip(targets, scores, strict=True)
        for name, value in of_one.items()
    }
