import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score
from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex

from models.metrics import confusion, dice, iou, mean_absolute_error

EMPTY = torch.zeros(4, 4, dtype=torch.bool)
FULL = torch.ones(4, 4, dtype=torch.bool)
HALF = torch.cat([torch.ones(2, 4), torch.zeros(2, 4)]).bool()
QUARTER = torch.cat([torch.ones(1, 4), torch.zeros(3, 4)]).bool()


@pytest.mark.parametrize(
    ("predicted", "truth", "expected_iou", "expected_dice", "expected_mae"),
    [
        pytest.param(EMPTY, EMPTY, 1.0, 1.0, 0.0, id="both empty"),
        pytest.param(FULL, EMPTY, 0.0, 0.0, 1.0, id="empty truth, all foreground"),
        pytest.param(QUARTER, EMPTY, 0.0, 0.0, 0.25, id="empty truth, false positives"),
        pytest.param(EMPTY, HALF, 0.0, 0.0, 0.5, id="missed"),
        pytest.param(FULL, HALF, 0.5, 2 / 3, 0.5, id="all foreground"),
        pytest.param(HALF, HALF, 1.0, 1.0, 0.0, id="exact"),
        pytest.param(QUARTER, HALF, 0.5, 2 / 3, 0.25, id="half found"),
        pytest.param(~HALF, HALF, 0.0, 0.0, 1.0, id="all wrong"),
        pytest.param(FULL, FULL, 1.0, 1.0, 0.0, id="full and exact"),
    ],
)
def test_by_hand(
    predicted: torch.Tensor,
    truth: torch.Tensor,
    expected_iou: float,
    expected_dice: float,
    expected_mae: float,
) -> None:
    counts = confusion(predicted, truth)
    assert sum(int(count) for count in counts) == 16
    assert iou(counts).item() == pytest.approx(expected_iou)
    assert dice(counts).item() == pytest.approx(expected_dice)
    assert mean_absolute_error(predicted.float(), truth).item() == pytest.approx(expected_mae)


@pytest.fixture
def masks() -> tuple[torch.Tensor, torch.Tensor]:
    """Five pairs (5, 24, 24) of random masks of unlike sizes, none empty."""
    random = torch.Generator().manual_seed(3)
    share = torch.tensor([0.02, 0.1, 0.3, 0.6, 0.95]).view(5, 1, 1)
    predicted, truth = (torch.rand(5, 24, 24, generator=random) < share for _ in range(2))
    return predicted, truth


def test_per_image_against_scikit_learn_and_torchmetrics(masks: tuple[torch.Tensor, torch.Tensor]) -> None:
    counts = confusion(*masks)
    for n, (predicted, truth) in enumerate(zip(*masks, strict=True)):
        flat = truth.flatten().numpy(), predicted.flatten().numpy()
        assert iou(counts)[n].item() == pytest.approx(jaccard_score(*flat))
        assert dice(counts)[n].item() == pytest.approx(f1_score(*flat))
        assert iou(counts)[n].item() == pytest.approx(BinaryJaccardIndex()(predicted, truth).item())
        assert dice(counts)[n].item() == pytest.approx(BinaryF1Score()(predicted, truth).item())


def test_pooled_against_scikit_learn(masks: tuple[torch.Tensor, torch.Tensor]) -> None:
    pooled = confusion(*masks).pooled()
    flat = masks[1].flatten().numpy(), masks[0].flatten().numpy()
    assert iou(pooled).item() == pytest.approx(jaccard_score(*flat))
    assert dice(pooled).item() == pytest.approx(f1_score(*flat))


def test_mean_absolute_error_of_probabilities_against_numpy() -> None:
    probability, truth = np.random.default_rng(0).random((2, 6, 6)), np.tri(6, dtype=bool)[None].repeat(2, 0)
    expected = np.abs(probability - truth).mean(axis=(1, 2))
    actual = mean_absolute_error(torch.from_numpy(probability), torch.from_numpy(truth))
    np.testing.assert_allclose(actual, expected)


def test_iou_and_dice_of_the_same_counts_keep_their_bounds(masks: tuple[torch.Tensor, torch.Tensor]) -> None:
    counts = confusion(*masks)
    torch.testing.assert_close(dice(counts), 2 * iou(counts) / (1 + iou(counts)))
