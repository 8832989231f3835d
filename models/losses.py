"""Loss functions, by their names in params.yaml: (logits, target, **options) -> scalar.

Logits and target are (N, C, H, W). Targets are the marked share of each pixel, in [0, 1]. Logits are
converted to float32 or wider, because bf16 cannot represent sums over 65,536 pixels. BCE and focal loss are
means over all pixels; the others are computed per image and channel, then averaged.

The losses named `batch_...` take the overlap over all images of a batch at once, per channel, as nnU-Net does
in 2D (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z). Per image, one wrong pixel on an empty mask costs
as much as a missed lesion. A batch that is computed in parts, or by several processes, is taken part by part.

Options: `alpha` in [0, 1] is the weight of BCE in a combined loss, 1 - alpha that of the other part.
`balance` in [0, 1] is the weight of foreground that is missed, 1 - balance that of false positives.
`gamma` is the focusing parameter; each focal loss defines it.
"""

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]

#: Added to numerator and denominator, so that an empty mask predicted empty has loss 0 instead of 0 / 0.
SMOOTHING = 1.0


def widened(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors in one dtype: that of the logits, or float32 if that is wider."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype), target.to(dtype)


def overlap(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """sum(p y) and sum(p + y), each (N, C): the terms of IoU and Dice."""
    logits, target = widened(logits, target)
    probability = torch.sigmoid(logits)
    return (probability * target).sum(dim=(2, 3)), (probability + target).sum(dim=(2, 3))


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, mean over all pixels, in nats; >= 0."""
    return functional.binary_cross_entropy_with_logits(*widened(logits, target))


def soft_iou_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft IoU (Jaccard); in [0, 1).

    Soft IoU: sum(p y) / sum(p + y - p y) (Rahman and Wang 2016, doi 10.1007/978-3-319-50835-1_22),
    `SMOOTHING` is added to numerator and denominator.
    """
    both, total = overlap(logits, target)
    return (1 - (both + SMOOTHING) / (total - both + SMOOTHING)).mean()


def bce_iou(logits: Tensor, target: Tensor, alpha: float) -> Tensor:
    """alpha * BCE + (1 - alpha) * (1 - soft IoU)."""
    return alpha * bce(logits, target) + (1 - alpha) * soft_iou_loss(logits, target)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice; in [0, 1).

    Soft Dice: 2 sum(p y) / sum(p + y), with `SMOOTHING` added to numerator and denominator. Milletari et
    al. 2016 (doi 10.1109/3DV.2016.79) use p^2 and y^2 in the denominator; the plain sums keep
    Dice = 2 IoU / (1 + IoU).
    """
    both, total = overlap(logits, target)
    return (1 - (2 * both + SMOOTHING) / (total + SMOOTHING)).mean()


def dice_bce(logits: Tensor, target: Tensor, alpha: float) -> Tensor:
    """alpha * BCE + (1 - alpha) * (1 - soft Dice)."""
    return alpha * bce(logits, target) + (1 - alpha) * dice(logits, target)


def _as_one_image(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The images of a batch (N, C, H, W) below each other: (1, C, N H, W)."""
    logits, target = (each.transpose(0, 1).flatten(1, 2).unsqueeze(0) for each in (logits, target))
    return logits, target


def batch_bce_iou(logits: Tensor, target: Tensor, alpha: float) -> Tensor:
    """alpha * BCE + (1 - alpha) * (1 - soft IoU of the batch)."""
    return bce_iou(*_as_one_image(logits, target), alpha)


def batch_dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice of the batch; in [0, 1)."""
    return dice(*_as_one_image(logits, target))


def batch_dice_bce(logits: Tensor, target: Tensor, alpha: float) -> Tensor:
    """alpha * BCE + (1 - alpha) * (1 - soft Dice of the batch)."""
    return dice_bce(*_as_one_image(logits, target), alpha)


def focal(logits: Tensor, target: Tensor, gamma: float, balance: float) -> Tensor:
    """-w (1 - q)^gamma log(q), mean over all pixels, in nats; >= 0.

    Lin et al. 2017, doi 10.1109/ICCV.2017.324. q is the probability of the correct class; w is `balance` on
    foreground and 1 - balance on background; gamma >= 0, and gamma 0 gives weighted BCE. A partly marked
    pixel counts as foreground and background in proportion to its share. Lin et al. divide by the number of
    foreground pixels, which is 0 for an empty mask.
    """
    logits, target = widened(logits, target)
    # Powers of log-sigmoids: 1 - q and its gradient are neither rounded to 0 nor divided by 0.
    found, spared = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    foreground = balance * target * torch.exp(gamma * spared) * found
    background = (1 - balance) * (1 - target) * torch.exp(gamma * found) * spared
    return -(foreground + background).mean()


def focal_tversky(logits: Tensor, target: Tensor, gamma: float, balance: float) -> Tensor:
    """(1 - TI)^(1 / gamma); in [0, 1) (Abraham and Khan 2019, doi 10.1109/ISBI.2019.8759329).

    TI is the Tversky index TP / (TP + balance * FN + (1 - balance) * FP) of soft counts, with `SMOOTHING`
    added to numerator and denominator. gamma > 0; above 1 it increases the loss of small errors.
    """
    logits, target = widened(logits, target)
    probability = torch.sigmoid(logits)
    hit = (probability * target).sum(dim=(2, 3))
    missed = ((1 - probability) * target).sum(dim=(2, 3))
    wrongly_found = (probability * (1 - target)).sum(dim=(2, 3))
    error = balance * missed + (1 - balance) * wrongly_found
    lost = error / (hit + error + SMOOTHING)  # 1 - TI, never below 0
    # The root's slope is infinite at 0. Below the smallest normal number, the clamp makes the gradient 0.
    return (lost.clamp(min=torch.finfo(lost.dtype).tiny) ** (1 / gamma)).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "batch_bce_iou": batch_bce_iou,
    "batch_dice": batch_dice,
    "batch_dice_bce": batch_dice_bce,
    "bce": bce,
    "bce_iou": bce_iou,
    "dice": dice,
    "dice_bce": dice_bce,
    "focal": focal,
    "focal_tversky": focal_tversky,
}

#: Names of the options of each loss, in addition to logits and target.
LOSS_OPTIONS: dict[str, tuple[str, ...]] = {
    name: tuple(inspect.signature(loss).parameters)[2:] for name, loss in LOSSES.items()
}


def make_loss(name: str, **options: float) -> Loss:
    """The loss with this name, with all its `LOSS_OPTIONS` bound."""
    return partial(LOSSES[name], **options)
