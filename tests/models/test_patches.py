from functools import partial

import pytest
import torch
from torch import Tensor, nn

from models.networks import NETWORKS
from models.patches import Patchwise


class Same(nn.Module):
    """Returns its input, or several copies of it."""

    def __init__(self, in_channels: int, out_channels: int, copies: int = 0) -> None:
        super().__init__()
        assert in_channels == out_channels
        self.copies = copies

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return tuple(x + number for number in range(self.copies)) if self.copies else x


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_folding_is_lossless(patch: int) -> None:
    images = torch.rand(2, 3, 8, 12)
    assert torch.equal(Patchwise(Same, 3, 3, patch)(images), images)
    first, second = Patchwise(partial(Same, copies=2), 3, 3, patch)(images)
    assert torch.equal(first, images) and torch.equal(second, images + 1)


def test_patch_becomes_the_channels_of_one_pixel() -> None:
    seen: list[Tensor] = []
    network = Patchwise(Same, 1, 1, 2)
    network.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.arange(16.0).reshape(1, 1, 4, 4))
    assert seen[0].shape == (1, 4, 2, 2)
    assert seen[0][0, :, 0, 1].tolist() == [2, 3, 6, 7]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_every_network_works_on_patches(name: str, patch: int) -> None:
    torch.manual_seed(0)
    network = Patchwise(partial(NETWORKS[name], width=4, depth=2), 1, 2, patch)
    images = torch.rand(2, 1, 8 * patch, 12 * patch, requires_grad=True)
    logits = network(images)
    assert logits.shape == (2, 2, 8 * patch, 12 * patch)
    logits.square().mean().backward()
    assert images.grad is not None and images.grad.any()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_all_supervised_outputs_are_unfolded() -> None:
    network = Patchwise(partial(NETWORKS["unet_plus_plus"], width=4, depth=2, deep_supervision=True), 1, 2, 2)
    images = torch.rand(2, 1, 16, 24)
    assert [logits.shape for logits in network(images)] == [(2, 2, 16, 24)] * 2
    assert network.eval()(images).shape == (2, 2, 16, 24)


@pytest.mark.parametrize(("height", "width"), [(9, 8), (8, 9)])
def test_side_that_is_not_a_multiple_of_the_patch_is_an_error(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"images of {height}x{width}: both sides must be multiples of 2"):
        Patchwise(Same, 1, 1, 2)(torch.rand(1, 1, height, width))


def test_side_that_the_network_would_round_is_an_error() -> None:
    network = Patchwise(partial(NETWORKS["unet"], width=4, depth=2), 1, 1, 2)
    with pytest.raises(ValueError, match="both sides must be multiples of 4"):  # in folded pixels
        network(torch.rand(1, 1, 12, 16))
