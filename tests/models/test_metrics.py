import math
from math import nan
from typing import NamedTuple, get_args

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, precision_score, recall_score
from torch import Tensor
from torchmetrics.classification import (
    BinaryCalibrationError,
    BinaryF1Score,
    BinaryJaccardIndex,
    BinaryPrecision,
    BinaryRecall,
    BinarySpecificity,
)

from models.metrics import (
    Confusion,
    DiceSums,
    Selection,
    average_precision,
    calibration_bins,
    confusion,
    confusion_of_masks,
    dice,
    expected_calibration_error,
    iou,
    marked,
    mean_absolute_error,
    precision,
    selection_weights,
    sensitivity,
    specificity,
)
from models.surfaces import hausdorff95, surface_dice, surface_distances

EMPTY = torch.zeros(4, 4, dtype=torch.bool)
FULL = torch.ones(4, 4, dtype=torch.bool)
HALF = torch.cat([torch.ones(2, 4), torch.zeros(2, 4)]).bool()
QUARTER = torch.cat([torch.ones(1, 4), torch.zeros(3, 4)]).bool()


class Scores(NamedTuple):
    iou: float
    dice: float
    precision: float
    sensitivity: float
    specificity: float
    mae: float
    hd95: float
    nsd: float  # at a tolerance of one pixel
    ece: float


def scores(predicted: Tensor, reference: Tensor) -> Scores:
    """All metrics of one image."""
    counts = confusion(predicted, reference)
    distances = surface_distances(predicted.numpy(), reference.numpy())
    return Scores(
        iou(counts).item(),
        dice(counts).item(),
        precision(counts).item(),
        sensitivity(counts).item(),
        specificity(counts).item(),
        mean_absolute_error(predicted, reference).item(),
        hausdorff95(distances),
        surface_dice(distances, tolerance=1),
        expected_calibration_error(calibration_bins(predicted, reference)),
    )


# fmt: off
TABLE = [
    #                                                 IoU Dice prec sens spec  MAE      HD95  NSD  ECE
    ("empty: all background, exact", EMPTY, EMPTY,   (1,   1, nan, nan,   1,   0,      nan, nan,   0)),
    ("empty: all foreground",        FULL,  EMPTY,   (0,   0, nan, nan,   0,   1,      nan, nan,   1)),
    ("empty: false positives",       QUARTER, EMPTY, (0,   0, nan, nan, .75, .25,      nan, nan, .25)),
    ("half: all background",         EMPTY, HALF,    (0,   0,   0,   0,   1,  .5,      nan,   0,  .5)),
    ("half: all foreground",         FULL,  HALF,    (.5, 2/3, .5,   1,   0,  .5,        2,  .8,  .5)),
    ("half: exact",                  HALF,  HALF,    (1,   1,   1,   1,   1,   0,        0,   1,   0)),
    ("half: half found",             QUARTER, HALF,  (.5, 2/3,  1,  .5,   1, .25,        1,   1, .25)),
    ("half: all wrong",              ~HALF, HALF,    (0,   0,   0,   0,   0,   1,        2,  .5,   1)),
    ("full: all background",         EMPTY, FULL,    (0,   0,   0,   0,   1,   1,      nan,   0,   1)),
    ("full: half found",             HALF,  FULL,    (.5, 2/3,  1,  .5,   1,  .5,        2,  .8,  .5)),
    ("full: all foreground, exact",  FULL,  FULL,    (1,   1,   1,   1,   1,   0,        0,   1,   0)),
]
# fmt: on


@pytest.mark.parametrize(
    ("predicted", "reference", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_every_metric_by_hand(predicted: Tensor, reference: Tensor, expected: tuple[float, ...]) -> None:
    assert sum(int(count) for count in confusion(predicted, reference)) == 16
    assert scores(predicted, reference)._asdict() == pytest.approx(Scores(*expected)._asdict(), nan_ok=True)


@pytest.fixture
def masks() -> tuple[Tensor, Tensor]:
    """Five pairs (5, 24, 24) of random masks with different areas, none empty."""
    random = torch.Generator().manual_seed(3)
    share = torch.tensor([0.02, 0.1, 0.3, 0.6, 0.95]).view(5, 1, 1)
    predicted, reference = (torch.rand(5, 24, 24, generator=random) < share for _ in range(2))
    return predicted, reference


def test_per_image_against_scikit_learn_and_torchmetrics(masks: tuple[Tensor, Tensor]) -> None:
    counts = confusion(*masks)
    for n, (predicted, reference) in enumerate(zip(*masks, strict=True)):
        flat = reference.flatten().numpy(), predicted.flatten().numpy()
        assert iou(counts)[n].item() == pytest.approx(jaccard_score(*flat))
        assert dice(counts)[n].item() == pytest.approx(f1_score(*flat))
        assert iou(counts)[n].item() == pytest.approx(BinaryJaccardIndex()(predicted, reference).item())
        assert dice(counts)[n].item() == pytest.approx(BinaryF1Score()(predicted, reference).item())
        assert precision(counts)[n].item() == pytest.approx(precision_score(*flat))
        assert precision(counts)[n].item() == pytest.approx(BinaryPrecision()(predicted, reference).item())
        assert sensitivity(counts)[n].item() == pytest.approx(recall_score(*flat))
        assert sensitivity(counts)[n].item() == pytest.approx(BinaryRecall()(predicted, reference).item())
        assert specificity(counts)[n].item() == pytest.approx(recall_score(*flat, pos_label=False))
        assert specificity(counts)[n].item() == pytest.approx(
            BinarySpecificity()(predicted, reference).item()
        )


def test_pooled_against_scikit_learn(masks: tuple[Tensor, Tensor]) -> None:
    pooled = confusion(*masks).pooled()
    flat = masks[1].flatten().numpy(), masks[0].flatten().numpy()
    assert iou(pooled).item() == pytest.approx(jaccard_score(*flat))
    assert dice(pooled).item() == pytest.approx(f1_score(*flat))
    assert precision(pooled).item() == pytest.approx(precision_score(*flat))
    assert sensitivity(pooled).item() == pytest.approx(recall_score(*flat))
    assert specificity(pooled).item() == pytest.approx(recall_score(*flat, pos_label=False))


def test_mean_absolute_error_of_probabilities_against_numpy() -> None:
    probability, reference = (
        np.random.default_rng(0).random((2, 6, 6)),
        np.tri(6, dtype=bool)[None].repeat(2, 0),
    )
    expected = np.abs(probability - reference).mean(axis=(1, 2))
    actual = mean_absolute_error(torch.from_numpy(probability), torch.from_numpy(reference))
    np.testing.assert_allclose(actual, expected)


def test_iou_and_dice_of_the_same_counts_satisfy_their_bounds(masks: tuple[Tensor, Tensor]) -> None:
    counts = confusion(*masks)
    torch.testing.assert_close(dice(counts), 2 * iou(counts) / (1 + iou(counts)))


def test_marked_is_the_share_of_predicted_pixels(masks: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(marked(confusion(*masks)), masks[0].double().mean(dim=(-2, -1)))


def test_calibration_bins_by_hand() -> None:
    probability = torch.tensor([[0.0, 0.25], [0.5, 1.0]])
    reference = torch.tensor([[False, True], [False, True]])
    bins = calibration_bins(probability, reference, bins=2)
    assert bins.tolist() == [[2, 0.25, 1], [2, 1.5, 1]]
    assert expected_calibration_error(bins) == pytest.approx((0.75 + 0.5) / 4)


@pytest.fixture
def probabilities() -> tuple[Tensor, Tensor]:
    """Over-confident probabilities (3, 64, 64), none on a bin's bound, and reference masks."""
    random = torch.Generator().manual_seed(5)
    probability = torch.rand(3, 64, 64, generator=random, dtype=torch.float64)
    return probability, torch.rand(3, 64, 64, generator=random) < 0.2 + 0.5 * probability


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_against_torchmetrics(probabilities: tuple[Tensor, Tensor], bins: int) -> None:
    probability, reference = probabilities
    expected = BinaryCalibrationError(n_bins=bins, norm="l1")(
        probability.flatten(), reference.flatten().int()
    )
    actual = expected_calibration_error(calibration_bins(probability, reference, bins))
    assert actual == pytest.approx(expected.item(), abs=1e-6)
    assert bins == 1 or actual > 0.05


def test_calibration_bins_add_up_over_images(probabilities: tuple[Tensor, Tensor]) -> None:
    each = [calibration_bins(*image) for image in zip(*probabilities, strict=True)]
    torch.testing.assert_close(sum(each), calibration_bins(*probabilities))
    assert calibration_bins(*probabilities)[:, 0].sum() == 3 * 64 * 64


def test_numbers_arrays_and_tensors_give_equal_scores(masks: tuple[Tensor, Tensor]) -> None:
    predicted, reference = (torch.cat([mask, torch.zeros(1, 24, 24).bool()]) for mask in masks)
    reference[3] = False
    counts = confusion(predicted, reference)
    arrays = Confusion(*(count.numpy() for count in counts))
    for metric in (iou, dice, precision, sensitivity, specificity, marked):
        of_tensors = metric(counts)
        assert of_tensors.dtype == torch.float64
        np.testing.assert_array_equal(metric(arrays), of_tensors)
        for n, one in enumerate(zip(predicted.numpy(), reference.numpy(), strict=True)):
            numbers = confusion_of_masks(*one)
            assert all(isinstance(count, int) for count in numbers)
            assert metric(numbers) == pytest.approx(of_tensors[n].item(), rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_calibration_bins_equal_those_of_torch_bit_for_bit(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(1)
    probability = torch.rand(50, 40, generator=random, dtype=dtype) ** 4
    probability[0, :3] = torch.tensor([0.0, 1.0, 1 / 15])
    for reference in (torch.rand(50, 40, generator=random) < 0.3, torch.zeros(50, 40).bool()):
        p, t = probability.flatten().double(), reference.flatten().double()
        index = (p * 15).long().clamp(max=14)
        columns = [torch.bincount(index, of, minlength=15) for of in (torch.ones_like(t), p, t)]
        np.testing.assert_array_equal(calibration_bins(probability, reference), torch.stack(columns, dim=1))


def test_mean_absolute_error_equals_that_of_torch_bit_for_bit() -> None:
    random = torch.Generator().manual_seed(6)
    probability, reference = torch.rand(2, 3, 250, 240, generator=random)
    for p, t in (
        (probability, reference < 0.2),
        (probability[0], reference[0] < 0),
        (reference[0] < 0.5, reference[0] < 0.4),
    ):
        expected = (p.double() - t.double()).abs().mean(dim=(-2, -1))
        assert mean_absolute_error(p, t).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("selection", "expected"), [("lesions", 0.6), ("all", (0.6 * 4 + 3) / 10), ("balanced", (0.6 + 0.5) / 2)]
)
def test_selection_scores_by_hand(selection: Selection, expected: float) -> None:
    sums = DiceSums(nonempty=2.4, empty=3, nonempty_images=4, empty_images=6)
    assert sums.score(selection) == pytest.approx(expected)
    at_thresholds = DiceSums(np.array([2.4, 0.0]), np.array([3.0, 6.0]), 4, 6)
    assert at_thresholds.score(selection)[0] == pytest.approx(expected)


@pytest.mark.parametrize("selection", get_args(Selection))
def test_selection_scores_use_the_images_that_exist(selection: Selection) -> None:
    assert DiceSums(2.4, 0, 4, 0).score(selection) == pytest.approx(0.6)
    assert DiceSums(0, 3, 0, 6).score(selection) == pytest.approx(0.5)


@pytest.mark.parametrize("levels", [3, 1000])
def test_average_precision_against_scikit_learn(levels: int) -> None:
    """With few levels, most pixels are tied."""
    random = np.random.default_rng(0)
    probability = (random.integers(0, levels, (20, 20)) / levels).astype(np.float32)
    reference = random.random((20, 20)) < 0.3
    expected = average_precision_score(reference.ravel(), probability.ravel())
    assert average_precision(probability, reference) == pytest.approx(expected, rel=1e-9)
    assert math.isnan(average_precision(probability, np.zeros((20, 20), bool)))


def test_average_precision_of_a_constant_is_the_share_of_the_reference() -> None:
    assert average_precision(np.full((4, 4), 0.2), HALF.numpy()) == 0.5


@pytest.mark.parametrize("selection", get_args(Selection))
@pytest.mark.parametrize("nonempty", [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
def test_weighted_mean_is_the_selection_score(selection: Selection, nonempty: list[int]) -> None:
    has, of_images = np.array(nonempty, bool), np.array([0.9, 0.4, 0.0, 1.0, 0.0])
    sums = DiceSums(of_images[has].sum(), of_images[~has].sum(), int(has.sum()), int((~has).sum()))
    weighted = of_images * selection_weights(has, selection)
    assert weighted.mean() == pytest.approx(sums.score(selection))
