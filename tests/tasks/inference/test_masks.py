import numpy as np
import pytest
import torch
from torch.nn import functional

from tasks.inference.masks import infected_share, resized


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def test_probabilities_of_the_right_size_are_not_resized() -> None:
    probability = noise(8, 8)
    assert resized(probability, (8, 8)) is probability


@pytest.mark.parametrize("shape", [(20, 12), (8, 30), (16, 8), (64, 64), (3, 5), (2, 80)])
def test_probabilities_are_resized_as_torch_does_it(shape: tuple[int, int]) -> None:
    """Upscaled ones are interpolated; downscaled ones are means over all pixels."""
    probability = noise(8, 8)
    tensor = torch.from_numpy(probability)[None, None]
    expected = functional.interpolate(
        tensor, shape, mode="bilinear", align_corners=False, antialias=min(shape) < 8
    )
    np.testing.assert_allclose(resized(probability, shape), expected[0, 0].numpy(), rtol=0, atol=1e-6)


def test_resized_constants_stay_in_range() -> None:
    for shape in ((9, 9), (4, 4), (333, 17)):
        assert resized(np.ones((8, 8), np.float32), shape).max() <= 1
        np.testing.assert_allclose(resized(np.full((8, 8), 0.3, np.float32), shape), 0.3, atol=1e-6)


def test_infected_share_counts_infection_inside_the_lungs() -> None:
    lungs = np.zeros((4, 4), bool)
    lungs[:, :2] = True
    infection = np.zeros((4, 4), bool)
    infection[0] = True
    assert infected_share(infection, lungs) == 2 / 8
    assert infected_share(infection, np.zeros((4, 4), bool)) == 0
