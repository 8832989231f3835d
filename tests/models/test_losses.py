import math

import pytest
import torch
from torch import Tensor

from models.losses import LOSSES, SMOOTHING, bce, bce_iou, make_loss, soft_iou_loss

ALPHAS = {"bce": None, "bce_iou": 0.3}


def logits_of(*probabilities: float) -> Tensor:
    return torch.logit(torch.tensor(probabilities)).view(1, 1, 1, -1)


def mask(*values: float) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


def test_every_loss_is_tested() -> None:
    assert ALPHAS.keys() == LOSSES.keys()


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


def test_soft_iou_is_taken_per_image_and_then_averaged() -> None:
    logits, truth = torch.randn(3, 2, 8, 8), torch.randint(0, 2, (3, 2, 8, 8))
    each = [
        soft_iou_loss(logits[n : n + 1, c : c + 1], truth[n : n + 1, c : c + 1])
        for n in range(3)
        for c in range(2)
    ]
    assert soft_iou_loss(logits, truth).item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_bce_iou_weighs_bce_with_alpha(alpha: float) -> None:
    logits, truth = logits_of(0.8, 0.3), mask(1, 0)
    expected = alpha * bce(logits, truth) + (1 - alpha) * soft_iou_loss(logits, truth)
    assert bce_iou(logits, truth, alpha).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
class TestEveryLoss:
    def test_gradient_is_that_of_finite_differences(self, name: str) -> None:
        # The losses compute in float32, so this differentiates by hand with steps that fit it.
        torch.manual_seed(0)
        loss = make_loss(name, ALPHAS[name])
        logits = torch.randn(1, 1, 3, 3, requires_grad=True)
        truth = torch.randint(0, 2, (1, 1, 3, 3))
        (gradient,) = torch.autograd.grad(loss(logits, truth), logits)
        for index in range(9):
            step = torch.zeros(9)
            step[index] = 0.05
            step = step.view(1, 1, 3, 3)
            slope = (loss(logits + step, truth) - loss(logits - step, truth)) / 0.1
            assert gradient.flatten()[index].item() == pytest.approx(slope.item(), abs=2e-4)

    @pytest.mark.parametrize("value", [-1e4, -30.0, 0.0, 30.0, 1e4])
    @pytest.mark.parametrize("truth", [0, 1])
    def test_is_finite_on_extreme_logits_and_one_sided_masks(
        self, name: str, value: float, truth: int
    ) -> None:
        logits = torch.full((2, 1, 16, 16), value, dtype=torch.bfloat16, requires_grad=True)
        loss = make_loss(name, ALPHAS[name])(logits, torch.full((2, 1, 16, 16), truth, dtype=torch.uint8))
        loss.backward()
        assert loss.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()

    @pytest.mark.parametrize("truth", [0, 1])
    def test_an_exact_prediction_costs_nothing(self, name: str, truth: int) -> None:
        logits = torch.full((1, 1, 16, 16), 40.0 if truth else -40.0)
        assert make_loss(name, ALPHAS[name])(logits, torch.full((1, 1, 16, 16), truth)) < 1e-6

    def test_bf16_logits_sum_as_well_as_float32(self, name: str) -> None:
        torch.manual_seed(0)
        logits = torch.randn(2, 1, 256, 256).bfloat16()
        truth = torch.randint(0, 2, (2, 1, 256, 256))
        loss = make_loss(name, ALPHAS[name])
        assert loss(logits, truth).item() == pytest.approx(loss(logits.float(), truth).item(), rel=1e-6)
