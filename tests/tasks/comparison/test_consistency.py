import numpy as np
import pytest
import torch

from models.metrics import confusion, dice, iou
from tasks.comparison.consistency import check_pair, greatest_dice, possible_pairs


@pytest.mark.parametrize(
    ("iou", "dice", "decimals"),
    [
        (0.0, 0.0, 4),
        (1.0, 1.0, 4),
        (0.5, 0.5, 4),
        (0.5, 0.6667, 4),  # one image: 2 * 0.5 / 1.5
        (0.5001, 0.5, 4),  # 0.50005, once rounded up and once down
        (0.3421, 0.5099, 4),  # 0.34215 allows 0.50985; 0.3421 itself only 0.5098
        (0.5, 0.7, 1),
        (0.9, 1.0, 1),
    ],
)
def test_possible_pair(iou: float, dice: float, decimals: int) -> None:
    assert check_pair(iou, dice, decimals) is None


@pytest.mark.parametrize(
    ("iou", "dice", "decimals", "kind", "highest"),
    [
        (0.5, 0.4, 4, "below", 0.66671),  # of 0.50005
        (0.5, 0.75, 2, "above", 0.67110),
        (0.5002, 0.5, 4, "below", 0.66689),
        (0.3421, 0.51, 4, "above", 0.50986),
        (0.0, 0.1, 3, "above", 0.001),
        (1.0, 0.9, 3, "below", 1.0),
    ],
)
def test_impossible_pair(iou: float, dice: float, decimals: int, kind: str, highest: float) -> None:
    fault = check_pair(iou, dice, decimals)
    assert fault and fault.kind == kind
    assert fault.highest_dice == pytest.approx(highest, abs=1e-5)


@pytest.mark.parametrize("lung_dice", [0.5767, 0.5737])
def test_no_pairing_of_report_2s_final_scores_is_possible(lung_dice: float) -> None:
    assert possible_pairs([lung_dice, 0.9344, 0.8692, 0.3421], decimals=4) == []


def test_possible_pairs_finds_swapped_names() -> None:
    assert possible_pairs([0.66, 0.5, 0.1], decimals=2) == [(0.5, 0.66)]


@pytest.mark.parametrize("decimals", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("images", [1, 2, 20])
def test_computed_scores_are_never_flagged(decimals: int, images: int) -> None:
    random = torch.Generator().manual_seed(images)
    for _ in range(100):
        shares = torch.rand(2, images, 1, 1, generator=random) ** 2
        predicted, reference = torch.rand(2, images, 8, 8, generator=random) < shares
        counts = confusion(predicted, reference)
        for c in (counts, counts.pooled()):
            mean_iou, mean_dice = iou(c).mean().item(), dice(c).mean().item()
            assert check_pair(round(mean_iou, decimals), round(mean_dice, decimals), decimals) is None


def test_bounds_hold_for_means_and_are_attained() -> None:
    ious = np.random.default_rng(0).random((500, 30))
    mean_iou, mean_dice = ious.mean(axis=1), (2 * ious / (1 + ious)).mean(axis=1)
    assert (mean_iou <= mean_dice).all()
    assert (mean_dice <= 2 * mean_iou / (1 + mean_iou)).all()
    assert check_pair(0.5, 0.5, 12) is None  # half the images exact, half missed
    assert check_pair(0.25, greatest_dice(0.25), 12) is None  # all images equal
