"""Losses, by the words of params.yaml: (logits, target, alpha) -> scalar, both tensors (N, C, H, W).

Targets hold 0 and 1. Logits are taken to float32 first: sums over 65,536 pixels do not fit bf16.
`alpha` weighs the parts of a combined loss; a loss without parts is given none.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]

#: Added to both sides of a quotient so that an empty mask predicted empty costs 0, not 0 / 0.
SMOOTHING = 1.0


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, mean over all pixels; in nats, >= 0."""
    return functional.binary_cross_entropy_with_logits(logits.float(), target.float())


def soft_iou_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft IoU (Jaccard), per image and channel, then averaged; in [0, 1).

    Soft IoU: sum(p y) / sum(p + y - p y) (Rahman and Wang 2016, doi 10.1007/978-3-319-50835-1_22),
    both sides plus `SMOOTHING`.
    """
    probability, truth = torch.sigmoid(logits.float()), target.float()
    both = (probability * truth).sum(dim=(2, 3))
    either = (probability + truth).sum(dim=(2, 3)) - both
    return (1 - (both + SMOOTHING) / (either + SMOOTHING)).mean()


def bce_iou(logits: Tensor, target: Tensor, alpha: float) -> Tensor:
    """alpha * BCE + (1 - alpha) * (1 - soft IoU); alpha in [0, 1]."""
    return alpha * bce(logits, target) + (1 - alpha) * soft_iou_loss(logits, target)


LOSSES: dict[str, Callable[..., Tensor]] = {"bce": bce, "bce_iou": bce_iou}


def make_loss(name: str, alpha: float | None) -> Loss:
    """The loss of that name; `alpha` is bound where given."""
    loss = LOSSES[name]
    return loss if alpha is None else lambda logits, target: loss(logits, target, alpha=alpha)
