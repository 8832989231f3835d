import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from models.postprocessing import fill_holes, remove_small


def mask(*rows: str) -> NDArray[np.bool_]:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


#: Components of five pixels (connected at a corner), two pixels and one pixel.
THREE = mask(
    "##....#",
    "#......",
    ".##...#",
    "......#",
)


@pytest.mark.parametrize(
    ("min_pixels", "left"),
    [
        (0, THREE),
        (1, THREE),
        (2, mask("##.....", "#......", ".##...#", "......#")),
        (2.5, mask("##.....", "#......", ".##....", ".......")),
        (5, mask("##.....", "#......", ".##....", ".......")),
        (6, np.zeros((4, 7), bool)),
    ],
)
def test_small_components_are_removed(min_pixels: float, left: NDArray[np.bool_]) -> None:
    np.testing.assert_array_equal(remove_small(THREE, min_pixels), left)


def flooded(
    mask: NDArray[np.bool_], start: tuple[int, int], steps: list[tuple[int, int]]
) -> set[tuple[int, int]]:
    """The pixels of the mask that are connected to `start`, by flood fill."""
    found, waiting = set(), [start]
    while waiting:
        y, x = waiting.pop()
        if (y, x) in found or not (0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x]):
            continue
        found.add((y, x))
        waiting += [(y + down, x + right) for down, right in steps]
    return found


FOUR = [(0, 1), (0, -1), (1, 0), (-1, 0)]
EIGHT = [*FOUR, (1, 1), (1, -1), (-1, 1), (-1, -1)]


@pytest.mark.parametrize("min_pixels", [1, 4, 30, 10_000])
def test_small_components_against_flood_fill(min_pixels: int) -> None:
    noise = np.random.default_rng(1).random((30, 25)) < 0.3
    expected = [
        [noise[y, x] and len(flooded(noise, (y, x), EIGHT)) >= min_pixels for x in range(25)]
        for y in range(30)
    ]
    np.testing.assert_array_equal(remove_small(noise, min_pixels), expected)


def test_holes_against_flood_fill() -> None:
    noise = np.random.default_rng(2).random((30, 25)) < 0.55
    outside = np.pad(~noise, 1, constant_values=True)
    reached = flooded(outside, (0, 0), FOUR)
    expected = [[(y + 1, x + 1) not in reached for x in range(25)] for y in range(30)]
    np.testing.assert_array_equal(fill_holes(noise), expected)
    assert fill_holes(noise).sum() > noise.sum()


def test_holes_are_filled_and_bays_are_not() -> None:
    ring = mask(
        ".####..",
        "#...#..",
        "#.#..#.",  # closed only at corners
        ".####..",
        "..#..#.",
        "..#..#.",
    )
    filled = mask(
        ".####..",
        "#####..",
        "######.",
        ".####..",
        "..#..#.",
        "..#..#.",
    )
    np.testing.assert_array_equal(fill_holes(ring), filled)


@pytest.mark.parametrize("value", [False, True])
def test_uniform_masks_are_unchanged_and_inputs_are_not_modified(value: bool) -> None:
    plain = np.full((8, 5), value)
    for processed in (remove_small(plain, 3), fill_holes(plain)):
        assert processed.dtype == bool
        np.testing.assert_array_equal(processed, np.full((8, 5), value))
        processed[:] = ~processed
    np.testing.assert_array_equal(plain, np.full((8, 5), value))


def masks(height: int, width: int) -> list[NDArray[np.bool_]]:
    """Empty, full, single pixels in the middle and in corners, a frame, and noise that touches the border."""
    plain = [np.zeros((height, width), bool) for _ in range(5)]
    plain[1][:] = True
    plain[2][height // 2, width // 2] = plain[3][0, 0] = plain[4][-1, -1] = True
    frame = np.ones((height, width), bool)
    frame[1:-1, 1:-1] = False
    random = np.random.default_rng(4)
    return [*plain, frame, *(random.random((height, width)) < share for share in (0.1, 0.4, 0.6, 0.9))]


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (5, 1), (3, 3), (24, 31)])
def test_bounding_box_does_not_change_the_result(shape: tuple[int, int]) -> None:
    for one in masks(*shape):
        np.testing.assert_array_equal(fill_holes(one), ndimage.binary_fill_holes(one), strict=True)
        components, _ = ndimage.label(one, structure=np.ones((3, 3)))
        for least in (1, 2, 9):
            large = np.bincount(components.ravel()) >= least
            large[0] = False
            np.testing.assert_array_equal(remove_small(one, least), large[components], strict=True)
