import math
import time
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

import models.surfaces
from models.surfaces import hausdorff95, surface_dice, surface_distances

Mask = NDArray[np.bool_]

#: MONAI 1.6.1 passes a deprecated argument to its own functions.
pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")


def blobs(random: np.random.Generator, size: tuple[int, int], scale: float, share: float) -> Mask:
    """A mask of smooth regions that cover the given share of the image."""
    field = gaussian_filter(random.standard_normal(size), scale)
    return field > np.quantile(field, 1 - share)


def pairs() -> list[tuple[Mask, Mask]]:
    """Smooth and ragged masks, sparse and dense, touching the edge or not; none empty."""
    random = np.random.default_rng(7)
    shapes = [(3.0, 0.2), (1.5, 0.4), (0.5, 0.05), (0.3, 0.6), (2.0, 0.9)]
    return [
        (blobs(random, (31, 24), scale, share), blobs(random, (31, 24), other_scale, other_share))
        for scale, share in shapes
        for other_scale, other_share in shapes
    ]


def brute_force_boundary(mask: Mask) -> list[tuple[int, int]]:
    height, width = mask.shape

    def foreground(y: int, x: int) -> bool:
        return 0 <= y < height and 0 <= x < width and bool(mask[y, x])

    return [
        (y, x)
        for y in range(height)
        for x in range(width)
        if mask[y, x] and not all(foreground(*p) for p in [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)])
    ]


def brute_force(predicted: Mask, reference: Mask) -> tuple[list[float], list[float]]:
    ours, theirs = brute_force_boundary(predicted), brute_force_boundary(reference)
    return [min(math.dist(p, q) for q in theirs) for p in ours], [
        min(math.dist(p, q) for q in ours) for p in theirs
    ]


def tensor(mask: Mask) -> torch.Tensor:
    return torch.from_numpy(mask)[None, None].float()


def test_distances_against_brute_force() -> None:
    for predicted, reference in pairs()[::4]:
        for actual, expected in zip(
            surface_distances(predicted, reference), brute_force(predicted, reference), strict=True
        ):
            np.testing.assert_allclose(actual, expected)


def test_scores_against_monai(monai: ModuleType) -> None:
    their_surface_dice = monai.metrics.compute_surface_dice
    for predicted, reference in pairs():
        distances = surface_distances(predicted, reference)
        both = tensor(predicted), tensor(reference)
        hd95 = monai.metrics.compute_hausdorff_distance(*both, include_background=True, percentile=95)
        assert hausdorff95(distances) == pytest.approx(hd95.item(), rel=1e-5)  # MONAI's is float32
        for tolerance in (0, 1, 2, 3.5):
            nsd = their_surface_dice(*both, [tolerance], include_background=True, use_subvoxels=False)
            assert surface_dice(distances, tolerance) == pytest.approx(nsd.item(), rel=1e-6)


def test_no_distance_exists_if_a_mask_is_empty() -> None:
    empty, lesion = np.zeros((6, 8), bool), np.zeros((6, 8), bool)
    lesion[2:4, 3:6] = True
    for predicted, reference in ((empty, lesion), (lesion, empty), (empty, empty)):
        assert math.isnan(hausdorff95(surface_distances(predicted, reference)))


def test_missed_lesion_has_surface_dice_0_and_an_empty_reference_has_none() -> None:
    empty, lesion = np.zeros((6, 8), bool), np.zeros((6, 8), bool)
    lesion[2:4, 3:6] = True
    assert surface_dice(surface_distances(empty, lesion), tolerance=100) == 0.0
    assert math.isnan(surface_dice(surface_distances(lesion, empty), tolerance=100))
    assert math.isnan(surface_dice(surface_distances(empty, empty), tolerance=100))


def test_shift_by_hand() -> None:
    reference, predicted = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    reference[5, 2:10], predicted[8, 2:10] = True, True  # a line, shifted down by three rows
    distances = surface_distances(predicted, reference)
    assert hausdorff95(distances) == 3.0
    assert surface_dice(distances, tolerance=3) == 1.0
    assert surface_dice(distances, tolerance=2.9) == 0.0


def test_no_distance_exceeds_the_diagonal() -> None:
    corner, opposite = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    corner[0, 0], opposite[-1, -1] = True, True
    assert hausdorff95(surface_distances(corner, opposite)) < math.hypot(9, 9)


def test_pair_of_256_by_256_takes_milliseconds() -> None:
    random = np.random.default_rng(0)
    predicted, reference = (blobs(random, (256, 256), 15, 0.15) for _ in range(2))
    seconds = []
    for _ in range(5):
        start = time.process_time()
        surface_distances(predicted, reference)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05  # measured: 0.003


def degenerate(height: int, width: int) -> list[Mask]:
    """Empty, full, one pixel in the middle or a corner, lines along borders, isolated pixels, inverses."""
    masks = [np.zeros((height, width), bool) for _ in range(10)]
    masks[1][:] = True
    masks[2][height // 2, width // 2] = True
    for place, (y, x) in enumerate([(0, 0), (0, -1), (-1, 0), (-1, -1)], start=3):
        masks[place][y, x] = True
    masks[7][0], masks[8][:, -1] = True, True
    masks[9][::2, ::2] = True
    return [*masks, ~masks[2], ~masks[9]]


def plain_boundary(mask: Mask) -> NDArray[np.intp]:
    padded = np.pad(mask, 1)
    vertical, horizontal = padded[:-2, 1:-1] & padded[2:, 1:-1], padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.argwhere(mask & ~(vertical & horizontal))


def plain_distances(predicted: Mask, reference: Mask) -> list[NDArray[np.float64]]:
    ours, theirs = plain_boundary(predicted), plain_boundary(reference)
    if not len(ours) or not len(theirs):
        return [np.full(len(points), np.inf) for points in (ours, theirs)]
    return [cKDTree(theirs).query(ours)[0], cKDTree(ours).query(theirs)[0]]


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (5, 1), (2, 2), (9, 7), (40, 33)])
@pytest.mark.parametrize(("few", "cached"), [(10**9, 2**16), (10**9, 50), (0, 1)])
def test_scores_equal_the_plain_formulas_bit_for_bit(
    shape: tuple[int, int], few: int, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.surfaces, "FEW_PAIRS", few)
    monkeypatch.setattr(models.surfaces, "PAIRS_IN_CACHE", cached)
    random = np.random.default_rng(3)
    masks = [*degenerate(*shape), *(random.random((4, *shape)) < [[[0.05]], [[0.3]], [[0.7]], [[0.95]]])]
    for predicted in masks:
        for reference in masks:
            distances, plain = surface_distances(predicted, reference), plain_distances(predicted, reference)
            for actual, expected in zip(distances, plain, strict=True):
                assert actual.dtype == np.float64
                np.testing.assert_array_equal(actual, expected, strict=True)
            if all(d.size for d in plain):
                assert hausdorff95(distances) == max(np.percentile(d, 95) for d in plain)
            if plain[1].size:
                assert surface_dice(distances, 2.0) == np.mean(np.concatenate(plain) <= 2.0)


def test_distances_are_exact_up_to_the_largest_float32_size() -> None:
    side = models.surfaces.EXACT_UP_TO
    corner, apart = np.zeros((side, side), bool), np.zeros((side, side), bool)
    corner[0, 0], apart[-1, -1], apart[-1, -2] = True, True, True
    found = surface_distances(corner, apart)
    assert found.from_predicted.tolist() == [math.sqrt((side - 1) ** 2 + (side - 2) ** 2)]
    assert found.from_reference.tolist() == [*found.from_predicted, math.sqrt(2 * (side - 1) ** 2)]


@pytest.mark.parametrize("size", [1, 2, 3, 20, 21, 41, 500])
def test_percentile_equals_that_of_numpy_bit_for_bit(size: int) -> None:
    distances = np.sqrt(np.random.default_rng(size).integers(0, 5000, size).astype(float))
    found = hausdorff95(models.surfaces.SurfaceDistances(distances, np.zeros(1)))
    assert found == np.percentile(distances, 95)
