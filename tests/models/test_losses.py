import math

import pytest
import torch
from monai.losses import DiceLoss, FocalLoss, TverskyLoss
from sklearn.metrics import log_loss
from torch import Tensor

from models.losses import (
    LOSS_OPTIONS,
    LOSSES,
    SMOOTHING,
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
    "bce": {},
    "bce_iou": {"alpha": 0.3},
    "dice": {},
    "dice_bce": {"alpha": 0.3},
    "focal": {"gamma": 2.0, "balance": 0.25},
    "focal_tversky": {"gamma": 4 / 3, "balance": 0.7},
}


#: Of MONAI's losses.
SMOOTH = {"sigmoid": True, "smooth_nr": SMOOTHING, "smooth_dr": SMOOTHING}


def batch() -> tuple[Tensor, Tensor]:
    """Logits and masks (3, 2, 8, 8), one of the masks empty and one full."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 2, 8, 8, generator=generator)
    truth = torch.randint(0, 2, (3, 2, 8, 8), generator=generator)
    truth[0, 0], truth[1, 1] = 0, 1
    return logits, truth


def logits_of(*probabilities: float) -> Tensor:
    return torch.logit(torch.tensor(probabilities)).view(1, 1, 1, -1)


def mask(*values: float) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


def test_every_loss_is_tested_with_the_options_it_reads() -> None:
    assert {name: tuple(options) for name, options in OPTIONS.items()} == LOSS_OPTIONS
    assert LOSS_OPTIONS.keys() == LOSSES.keys()


def test_bce_by_hand() -> None:
    expected = -(math.log(0.8) + math.log(1 - 0.3)) / 2
    assert bce(logits_of(0.8, 0.3), mask(1, 0)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("probabilities", "truth", "intersection", "union"),
    [
        ((0.8, 0.3), (1, 0), 0.8, 0.8 + 0.3 + 1 - 0.8),
        ((0.5, 0.5, 0.5, 0.5), (1, 1, 0, 0), 1.0, 2 + 2 - 1.0),
        ((0.9, 0.1), (0, 0), 0.0, 1.0),
    ],
)
def test_soft_iou_by_hand(
    probabilities: tuple[float, ...], truth: tuple[float, ...], intersection: float, union: float
) -> None:
    expected = 1 - (intersection + SMOOTHING) / (union + SMOOTHING)
    assert soft_iou_loss(logits_of(*probabilities), mask(*truth)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("probabilities", "truth", "intersection", "sizes"),
    [
        ((0.8, 0.3), (1, 0), 0.8, 0.8 + 0.3 + 1),
        ((0.5, 0.5, 0.5, 0.5), (1, 1, 0, 0), 1.0, 2 + 2),
        ((0.9, 0.1), (0, 0), 0.0, 1.0),
    ],
)
def test_dice_by_hand(
    probabilities: tuple[float, ...], truth: tuple[float, ...], intersection: float, sizes: float
) -> None:
    expected = 1 - (2 * intersection + SMOOTHING) / (sizes + SMOOTHING)
    assert dice(logits_of(*probabilities), mask(*truth)).item() == pytest.approx(expected, rel=1e-6)


def test_focal_by_hand() -> None:
    foreground = -0.25 * 0.2**2 * math.log(0.8)
    background = -0.75 * 0.3**2 * math.log(0.7)
    loss = focal(logits_of(0.8, 0.3), mask(1, 0), gamma=2, balance=0.25)
    assert loss.item() == pytest.approx((foreground + background) / 2, rel=1e-6)


def test_focal_of_a_pixel_marked_in_part_is_the_share_of_each() -> None:
    losses = [focal(logits_of(0.8), mask(truth), gamma=2, balance=0.25).item() for truth in (0, 0.75, 1)]
    assert losses[1] == pytest.approx(0.25 * losses[0] + 0.75 * losses[2])


def test_focal_without_focus_is_half_of_bce() -> None:
    logits, truth = batch()
    loss = focal(logits, truth, gamma=0, balance=0.5)
    assert loss.item() == pytest.approx(bce(logits, truth).item() / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("probabilities", "truth", "hit", "missed", "wrongly_found"),
    [
        ((0.8, 0.3), (1, 0), 0.8, 0.2, 0.3),
        ((0.5, 0.5, 0.5, 0.5), (1, 1, 0, 0), 1.0, 1.0, 1.0),
        ((0.9, 0.1), (0, 0), 0.0, 0.0, 1.0),
        ((0.9, 0.1), (1, 1), 1.0, 1.0, 0.0),
    ],
)
def test_focal_tversky_by_hand(
    probabilities: tuple[float, ...],
    truth: tuple[float, ...],
    hit: float,
    missed: float,
    wrongly_found: float,
) -> None:
    index = (hit + SMOOTHING) / (hit + 0.7 * missed + 0.3 * wrongly_found + SMOOTHING)
    loss = focal_tversky(logits_of(*probabilities), mask(*truth), gamma=4 / 3, balance=0.7)
    assert loss.item() == pytest.approx((1 - index) ** (3 / 4), rel=1e-6)


def test_focal_tversky_of_equal_weights_is_dice_with_twice_the_smoothing() -> None:
    logits, truth = batch()
    probability = torch.sigmoid(logits)
    both, sizes = (probability * truth).sum(dim=(2, 3)), (probability + truth).sum(dim=(2, 3))
    expected = (1 - (2 * both + 2 * SMOOTHING) / (sizes + 2 * SMOOTHING)).mean()
    assert focal_tversky(logits, truth, gamma=1, balance=0.5).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_bce_is_that_of_scikit_learn() -> None:
    logits, truth = batch()
    expected = log_loss(truth.flatten(), torch.sigmoid(logits.double()).flatten())
    assert bce(logits, truth).item() == pytest.approx(expected, rel=1e-6)


def test_soft_iou_is_that_of_monai() -> None:
    logits, truth = batch()
    # MONAI's quotient is 2 I / 2 U, hence twice the smoothing.
    expected = DiceLoss(jaccard=True, sigmoid=True, smooth_nr=2 * SMOOTHING, smooth_dr=2 * SMOOTHING)
    assert soft_iou_loss(logits, truth).item() == pytest.approx(expected(logits, truth).item(), rel=1e-5)


def test_dice_is_that_of_monai() -> None:
    logits, truth = batch()
    assert dice(logits, truth).item() == pytest.approx(DiceLoss(**SMOOTH)(logits, truth).item(), rel=1e-5)


@pytest.mark.parametrize(("gamma", "balance"), [(2.0, 0.25), (0.5, 0.8), (0.0, 0.5)])
def test_focal_is_that_of_monai(gamma: float, balance: float) -> None:
    logits, truth = batch()
    expected = FocalLoss(gamma=gamma, alpha=balance)(logits, truth.float())
    assert focal(logits, truth, gamma, balance).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("gamma", "balance"), [(4 / 3, 0.7), (2.0, 0.5), (0.75, 0.2)])
def test_focal_tversky_is_a_power_of_monai_tversky(gamma: float, balance: float) -> None:
    logits, truth = batch()
    each = TverskyLoss(alpha=1 - balance, beta=balance, reduction="none", **SMOOTH)(logits, truth)
    expected = (each ** (1 / gamma)).mean()
    assert focal_tversky(logits, truth, gamma, balance).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_bce_iou_weighs_bce_with_alpha(alpha: float) -> None:
    logits, truth = logits_of(0.8, 0.3), mask(1, 0)
    expected = alpha * bce(logits, truth) + (1 - alpha) * soft_iou_loss(logits, truth)
    assert bce_iou(logits, truth, alpha).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_dice_bce_weighs_bce_with_alpha(alpha: float) -> None:
    logits, truth = logits_of(0.8, 0.3), mask(1, 0)
    expected = alpha * bce(logits, truth) + (1 - alpha) * dice(logits, truth)
    assert dice_bce(logits, truth, alpha).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 4 / 3, 3.0])
@pytest.mark.parametrize("truth", [0.0, 1.0])
@pytest.mark.parametrize("value", [20.0, 50.0, 90.0, 1e4])
def test_gradient_of_focal_tversky_is_finite_where_its_index_is_one(
    gamma: float, truth: float, value: float
) -> None:
    target = torch.full((1, 1, 16, 16), truth)
    logits = (value * (2 * target - 1)).requires_grad_()
    focal_tversky(logits, target, gamma, balance=0.7).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
class TestEveryLoss:
    def test_gradient_is_that_of_finite_differences_in_float64(self, name: str) -> None:
        logits, truth = batch()
        logits = logits.double().requires_grad_()
        loss = make_loss(name, **OPTIONS[name])
        assert loss(logits, truth).dtype == torch.float64
        assert torch.autograd.gradcheck(lambda x: loss(x, truth), logits)

    def test_is_taken_per_image_and_channel_and_then_averaged(self, name: str) -> None:
        logits, truth = batch()
        loss = make_loss(name, **OPTIONS[name])
        each = [
            loss(logits[n : n + 1, c : c + 1], truth[n : n + 1, c : c + 1])
            for n in range(3)
            for c in range(2)
        ]
        assert loss(logits, truth).item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-6)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("value", [-1e4, -30.0, 0.0, 30.0, 1e4])
    @pytest.mark.parametrize("truth", [0, 1])
    def test_is_finite_on_extreme_logits_and_one_sided_masks(
        self, name: str, dtype: torch.dtype, value: float, truth: int
    ) -> None:
        logits = torch.full((2, 1, 16, 16), value, dtype=dtype, requires_grad=True)
        loss = make_loss(name, **OPTIONS[name])(logits, torch.full((2, 1, 16, 16), truth, dtype=torch.uint8))
        loss.backward()
        assert loss.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()

    @pytest.mark.parametrize("truth", [0, 1])
    def test_an_exact_prediction_costs_nothing(self, name: str, truth: int) -> None:
        logits = torch.full((1, 1, 16, 16), 40.0 if truth else -40.0)
        assert make_loss(name, **OPTIONS[name])(logits, torch.full((1, 1, 16, 16), truth)) < 1e-6

    def test_bf16_logits_sum_as_well_as_float32(self, name: str) -> None:
        torch.manual_seed(0)
        logits = torch.randn(2, 1, 256, 256).bfloat16()
        truth = torch.randint(0, 2, (2, 1, 256, 256))
        loss = make_loss(name, **OPTIONS[name])
        assert loss(logits, truth).item() == pytest.approx(loss(logits.float(), truth).item(), rel=1e-6)
