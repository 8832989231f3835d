import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor

from models.losses import (
    LOSS_OPTIONS,
    LOSSES,
    SMOOTHING,
    batch_bce_iou,
    batch_dice,
    batch_dice_bce,
    bce,
    bce_iou,
    dice,
    dice_bce,
    focal,
    focal_tversky,
    make_loss,
    soft_iou_loss,
)

OPTIONS = {
    "batch_bce_iou": {"alpha": 0.3},
    "batch_dice": {},
    "batch_dice_bce": {"alpha": 0.3},
    "bce": {},
    "bce_iou": {"alpha": 0.3},
    "dice": {},
    "dice_bce": {"alpha": 0.3},
    "focal": {"gamma": 2.0, "balance": 0.25},
    "focal_tversky": {"gamma": 4 / 3, "balance": 0.7},
}


#: Options of MONAI's losses.
SMOOTH = {"sigmoid": True, "smooth_nr": SMOOTHING, "smooth_dr": SMOOTHING}


def batch() -> tuple[Tensor, Tensor]:
    """Logits and masks (3, 2, 8, 8); one mask is empty and one full."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 2, 8, 8, generator=generator)
    target = torch.randint(0, 2, (3, 2, 8, 8), generator=generator)
    target[0, 0], target[1, 1] = 0, 1
    return logits, target


def logits_of(*probabilities: float) -> Tensor:
    return torch.logit(torch.tensor(probabilities)).view(1, 1, 1, -1)


def mask(*values: float) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


def test_every_loss_is_tested_with_all_its_options() -> None:
    assert {name: tuple(options) for name, options in OPTIONS.items()} == LOSS_OPTIONS
    assert LOSS_OPTIONS.keys() == LOSSES.keys()


def test_bce_by_hand() -> None:
    expected = -(math.log(0.8) + math.log(1 - 0.3)) / 2
    assert bce(logits_of(0.8, 0.3), mask(1, 0)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("probabilities", "target", "intersection", "union"),
    [
        ((0.8, 0.3), (1, 0), 0.8, 0.8 + 0.3 + 1 - 0.8),
        ((0.5, 0.5, 0.5, 0.5), (1, 1, 0, 0), 1.0, 2 + 2 - 1.0),
        ((0.9, 0.1), (0, 0), 0.0, 1.0),
    ],
)
def test_soft_iou_by_hand(
    probabilities: tuple[float, ...], target: tuple[float, ...], intersection: float, union: float
) -> None:
    expected = 1 - (intersection + SMOOTHING) / (union + SMOOTHING)
    assert soft_iou_loss(logits_of(*probabilities), mask(*target)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("probabilities", "target", "intersection", "sizes"),
    [
        ((0.8, 0.3), (1, 0), 0.8, 0.8 + 0.3 + 1),
        ((0.5, 0.5, 0.5, 0.5), (1, 1, 0, 0), 1.0, 2 + 2),
        ((0.9, 0.1), (0, 0), 0.0, 1.0),
    ],
)
def test_dice_by_hand(
    probabilities: tuple[float, ...], target: tuple[float, ...], intersection: float, sizes: float
) -> None:
    expected = 1 - (2 * intersection + SMOOTHING) / (sizes + SMOOTHING)
    assert dice(logits_of(*probabilities), mask(*target)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("of_batch", "of_image", "options"),
    [
        (batch_dice, dice, {}),
        (batch_dice_bce, dice_bce, {"alpha": 0.3}),
        (batch_bce_iou, bce_iou, {"alpha": 0.3}),
    ],
)
def test_losses_of_the_batch_sum_over_its_images(
    of_batch: Callable[..., Tensor], of_image: Callable[..., Tensor], options: dict[str, float]
) -> None:
    """As one image that is made of all images; channels stay apart."""
    logits, target = batch()
    each = [
        of_image(torch.cat([*logits[:, c]])[None, None], torch.cat([*target[:, c]])[None, None], **options)
        for c in range(2)
    ]
    assert of_batch(logits, target, **options).item() == pytest.approx(
        torch.stack(each).mean().item(), rel=1e-6
    )


def test_batch_dice_by_hand() -> None:
    """A wrong pixel on an empty mask weighs little beside a lesion that is found."""
    logits = torch.cat([logits_of(0.9, 0.1), logits_of(0.5, 0.01)])
    target = torch.cat([mask(1, 0), mask(0, 0)])
    expected = 1 - (2 * 0.9 + SMOOTHING) / (0.9 + 0.1 + 0.5 + 0.01 + 1 + SMOOTHING)
    assert batch_dice(logits, target).item() == pytest.approx(expected, rel=1e-6)


def test_batch_dice_against_monai(monai: ModuleType) -> None:
    logits, target = batch()
    theirs = monai.losses.DiceLoss(batch=True, **SMOOTH)(logits, target)
    assert batch_dice(logits, target).item() == pytest.approx(theirs.item(), rel=1e-6)


def test_focal_by_hand() -> None:
    foreground = -0.25 * 0.2**2 * math.log(0.8)
    background = -0.75 * 0.3**2 * math.log(0.7)
    loss = focal(logits_of(0.8, 0.3), mask(1, 0), gamma=2, balance=0.25)
    assert loss.item() == pytest.approx((foreground + background) / 2, rel=1e-6)


def test_focal_of_a_partly_marked_pixel_is_a_weighted_mean() -> None:
    losses = [focal(logits_of(0.8), mask(target), gamma=2, balance=0.25).item() for target in (0, 0.75, 1)]
    assert losses[1] == pytest.approx(0.25 * losses[0] + 0.75 * losses[2])


@pytest.mark.parametrize("balance", [0.25, 0.5, 0.75])
def test_focal_is_neutral_at_a_posterior_of_1_minus_balance(balance: float) -> None:
    """Of pixels of which this share is foreground, the best prediction is one half."""
    logits = torch.linspace(-6, 6, 12_001)
    each = torch.stack([focal(x.view(1, 1, 1, 1), mask(1 - balance), 2.0, balance) for x in logits])
    assert logits[each.argmin()].item() == pytest.approx(0.0, abs=2e-3)


def test_focal_with_gamma_0_is_half_of_bce() -> None:
    logits, target = batch()
    loss = focal(logits, target, gamma=0, balance=0.5)
    assert loss.item() == pytest.approx(bce(logits, target).item() / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("probabilities", "target", "hit", "missed", "wrongly_found"),
    [
        ((0.8, 0.3), (1, 0), 0.8, 0.2, 0.3),
        ((0.5, 0.5, 0.5, 0.5), (1, 1, 0, 0), 1.0, 1.0, 1.0),
        ((0.9, 0.1), (0, 0), 0.0, 0.0, 1.0),
        ((0.9, 0.1), (1, 1), 1.0, 1.0, 0.0),
    ],
)
def test_focal_tversky_by_hand(
    probabilities: tuple[float, ...],
    target: tuple[float, ...],
    hit: float,
    missed: float,
    wrongly_found: float,
) -> None:
    index = (hit + SMOOTHING) / (hit + 0.7 * missed + 0.3 * wrongly_found + SMOOTHING)
    loss = focal_tversky(logits_of(*probabilities), mask(*target), gamma=4 / 3, balance=0.7)
    assert loss.item() == pytest.approx((1 - index) ** (3 / 4), rel=1e-6)


def test_focal_tversky_with_equal_weights_is_dice_with_twice_the_smoothing() -> None:
    logits, target = batch()
    probability = torch.sigmoid(logits)
    both, sizes = (probability * target).sum(dim=(2, 3)), (probability + target).sum(dim=(2, 3))
    expected = (1 - (2 * both + 2 * SMOOTHING) / (sizes + 2 * SMOOTHING)).mean()
    assert focal_tversky(logits, target, gamma=1, balance=0.5).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_bce_against_scikit_learn() -> None:
    logits, target = batch()
    expected = log_loss(target.flatten(), torch.sigmoid(logits.double()).flatten())
    assert bce(logits, target).item() == pytest.approx(expected, rel=1e-6)


def test_soft_iou_against_monai(monai: ModuleType) -> None:
    logits, target = batch()
    # MONAI computes 2 I / 2 U, hence twice the smoothing.
    expected = monai.losses.DiceLoss(
        jaccard=True, sigmoid=True, smooth_nr=2 * SMOOTHING, smooth_dr=2 * SMOOTHING
    )
    assert soft_iou_loss(logits, target).item() == pytest.approx(expected(logits, target).item(), rel=1e-5)


def test_dice_against_monai(monai: ModuleType) -> None:
    logits, target = batch()
    expected = monai.losses.DiceLoss(**SMOOTH)(logits, target)
    assert dice(logits, target).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("gamma", "balance"), [(2.0, 0.25), (0.5, 0.8), (0.0, 0.5)])
def test_focal_against_monai(monai: ModuleType, gamma: float, balance: float) -> None:
    logits, target = batch()
    expected = monai.losses.FocalLoss(gamma=gamma, alpha=balance)(logits, target.float())
    assert focal(logits, target, gamma, balance).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("gamma", "balance"), [(4 / 3, 0.7), (2.0, 0.5), (0.75, 0.2)])
def test_focal_tversky_is_a_power_of_monai_tversky(monai: ModuleType, gamma: float, balance: float) -> None:
    logits, target = batch()
    loss = monai.losses.TverskyLoss(alpha=1 - balance, beta=balance, reduction="none", **SMOOTH)
    expected = (loss(logits, target) ** (1 / gamma)).mean()
    assert focal_tversky(logits, target, gamma, balance).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_is_the_weight_of_bce_in_bce_iou(alpha: float) -> None:
    logits, target = logits_of(0.8, 0.3), mask(1, 0)
    expected = alpha * bce(logits, target) + (1 - alpha) * soft_iou_loss(logits, target)
    assert bce_iou(logits, target, alpha).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_is_the_weight_of_bce_in_dice_bce(alpha: float) -> None:
    logits, target = logits_of(0.8, 0.3), mask(1, 0)
    expected = alpha * bce(logits, target) + (1 - alpha) * dice(logits, target)
    assert dice_bce(logits, target, alpha).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 4 / 3, 3.0])
@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("value", [20.0, 50.0, 90.0, 1e4])
def test_gradient_of_focal_tversky_is_finite_at_index_one(gamma: float, target: float, value: float) -> None:
    target = torch.full((1, 1, 16, 16), target)
    logits = (value * (2 * target - 1)).requires_grad_()
    focal_tversky(logits, target, gamma, balance=0.7).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
class TestEveryLoss:
    def test_gradient_against_finite_differences(self, name: str) -> None:
        logits, target = batch()
        logits = logits.double().requires_grad_()
        loss = make_loss(name, **OPTIONS[name])
        assert loss(logits, target).dtype == torch.float64
        assert torch.autograd.gradcheck(lambda x: loss(x, target), logits)

    def test_is_computed_per_image_and_channel_then_averaged(self, name: str) -> None:
        if name.startswith("batch_"):
            pytest.skip("it is computed over the batch")
        logits, target = batch()
        loss = make_loss(name, **OPTIONS[name])
        each = [
            loss(logits[n : n + 1, c : c + 1], target[n : n + 1, c : c + 1])
            for n in range(3)
            for c in range(2)
        ]
        assert loss(logits, target).item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-6)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("value", [-1e4, -30.0, 0.0, 30.0, 1e4])
    @pytest.mark.parametrize("target", [0, 1])
    def test_is_finite_on_extreme_logits_and_uniform_masks(
        self, name: str, dtype: torch.dtype, value: float, target: int
    ) -> None:
        logits = torch.full((2, 1, 16, 16), value, dtype=dtype, requires_grad=True)
        loss = make_loss(name, **OPTIONS[name])(logits, torch.full((2, 1, 16, 16), target, dtype=torch.uint8))
        loss.backward()
        assert loss.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()

    @pytest.mark.parametrize("target", [0, 1])
    def test_exact_prediction_has_zero_loss(self, name: str, target: int) -> None:
        logits = torch.full((1, 1, 16, 16), 40.0 if target else -40.0)
        assert make_loss(name, **OPTIONS[name])(logits, torch.full((1, 1, 16, 16), target)) < 1e-6

    def test_bf16_logits_are_summed_in_float32(self, name: str) -> None:
        torch.manual_seed(0)
        logits = torch.randn(2, 1, 256, 256).bfloat16()
        target = torch.randint(0, 2, (2, 1, 256, 256))
        loss = make_loss(name, **OPTIONS[name])
        assert loss(logits, target).item() == pytest.approx(loss(logits.float(), target).item(), rel=1e-6)
