"""Losses, by the words of params.yaml: (logits, target, **options) -> scalar, both tensors (N, C, H, W).

Targets are the marked share of each pixel, in [0, 1]. Logits are taken to float32 at least: sums over
65,536 pixels do not fit bf16.
BCE and focal loss are means over all pixels; the others are taken per image and channel, then averaged.

Options: `alpha` in [0, 1] weighs BCE in a combined loss, 1 - alpha the other part;
`balance` in [0, 1] weighs what is missed of the foreground, 1 - balance what is wrongly found;
`gamma` is the focus of a focal loss, which each of them defines.
"""

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]

#: Added to both sides of a quotient so that an empty mask predicted empty costs 0, not 0 / 0.
SMOOTHING = 1.0


def widened(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype: that of the logits, float32 at least."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype), target.to(dtype)


def overlap(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """sum(p y) and sum(p + y), each (N, C): what IoU and Dice are quotients of."""
    logits, truth = widened(logits, target)
    probability = torch.sigmoid(logits)
    return (probability * truth).sum(dim=(2, 3)), (probability + truth).sum(dim=(2, 3))


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, mean over all pixels; in nats, >= 0."""
    return functional.binary_cross_entropy_with_logits(*widened(logits, target))


def soft_iou_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft IoU (Jaccard); in [0, 1).

    Soft IoU: sum(p y) / sum(p + y - p y) (Rahman and Wang 2016, doi 10.1007/978-3-319-50835-1_22),
    both sides plus `SMOOTHING`.
    """
    both, total = overlap(logits, target)
    return (1 - (both + SMOOTHING) / (total - both + SMOOTHING)).mean()


def bce_iou(logits: Tensor, target: Tensor, alpha: float) -> Tensor:
    """alpha * BCE + (1 - alpha) * (1 - soft IoU)."""
    return alpha * bce(logits, target) + (1 - alpha) * soft_iou_loss(logits, target)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice; in [0, 1).

    Soft Dice: 2 sum(p y) / sum(p + y), both sides plus `SMOOTHING`. Milletari et al. 2016
    (doi 10.1109/3DV.2016.79) square p and y below; the plain sums keep Dice = 2 IoU / (1 + IoU).
    """
    both, total = overlap(logits, target)
    return (1 - (2 * both + SMOOTHING) / (total + SMOOTHING)).mean()


def dice_bce(logits: Tensor, target: Tensor, alpha: float) -> Tensor:
    """alpha * BCE + (1 - alpha) * (1 - soft Dice)."""
    return alpha * bce(logits, target) + (1 - alpha) * dice(logits, target)


def focal(logits: Tensor, target: Tensor, gamma: float, balance: float) -> Tensor:
    """-w (1 - q)^gamma log(q), mean over all pixels; in nats, >= 0.

    Lin et al. 2017, doi 10.1109/ICCV.2017.324. q is the probability given to the truth; w is
    `balance` on foreground, 1 - balance on background; gamma >= 0, and 0 leaves weighted BCE. A pixel
    that is marked in part counts as both, by its shares.
    Lin et al. divide by the count of foreground, of which an empty mask has none.
    """
    logits, truth = widened(logits, target)
    # Powers from log-sigmoid: 1 - q and its gradient neither round to 0 nor divide by it.
    found, spared = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    foreground = balance * truth * torch.exp(gamma * spared) * found
    background = (1 - balance) * (1 - truth) * torch.exp(gamma * found) * spared
    return -(foreground + background).mean()


def focal_tversky(logits: Tensor, target: Tensor, gamma: float, balance: float) -> Tensor:
    """(1 - TI)^(1 / gamma); in [0, 1) (Abraham and Khan 2019, doi 10.1109/ISBI.2019.8759329).

    TI, the Tversky index: TP / (TP + balance * FN + (1 - balance) * FP) of soft counts, both sides
    plus `SMOOTHING`; gamma > 0, and above 1 it raises what small errors cost.
    """
    logits, truth = widened(logits, target)
    probability = torch.sigmoid(logits)
    hit = (probability * truth).sum(dim=(2, 3))
    missed = ((1 - probability) * truth).sum(dim=(2, 3))
    wrongly_found = (probability * (1 - truth)).sum(dim=(2, 3))
    error = balance * missed + (1 - balance) * wrongly_found
    lost = error / (hit + error + SMOOTHING)  # 1 - TI, never below 0
    # At 0 the root's slope is infinite; below the smallest normal number the clamp makes it 0.
    return (lost.clamp(min=torch.finfo(lost.dtype).tiny) ** (1 / gamma)).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "bce": bce,
    "bce_iou": bce_iou,
    "dice": dice,
    "dice_bce": dice_bce,
    "focal": focal,
    "focal_tversky": focal_tversky,
}

#: What a loss reads beside logits and target.
LOSS_OPTIONS: dict[str, tuple[str, ...]] = {
    name: tuple(inspect.signature(loss).parameters)[2:] for name, loss in LOSSES.items()
}


def make_loss(name: str, **options: float) -> Loss:
    """The loss of that name, with all its `LOSS_OPTIONS` bound."""
    return partial(LOSSES[name], **options)
