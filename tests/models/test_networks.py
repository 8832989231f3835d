import pytest
import torch

from models.losses import bce
from models.networks import NETWORKS, UNet


def parameter_count(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "expected"), [(1, 1, 31_036_481), (3, 2, 31_037_698)]
)
def test_plain_unet_has_the_known_parameter_count(in_channels: int, out_channels: int, expected: int) -> None:
    assert parameter_count(UNet(in_channels, out_channels, width=64, depth=4)) == expected


def test_residual_encoder_differs_from_the_plain_one_by_its_shortcuts_alone() -> None:
    plain, residual = (
        parameter_count(NETWORKS[n](1, 1, width=8, depth=2)) for n in ("unet", "residual_unet")
    )
    shortcuts = sum(i * o + 2 * o for i, o in [(1, 8), (8, 16), (16, 32)])  # 1x1 weights, batch norm
    assert residual - plain == shortcuts


@pytest.mark.parametrize("name", NETWORKS)
class TestEveryNetwork:
    @pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 32), (8, 72)])
    @pytest.mark.parametrize("targets", [1, 2])
    def test_gives_one_logit_a_pixel_and_target(
        self, name: str, targets: int, height: int, width: int
    ) -> None:
        network = NETWORKS[name](1, targets, width=4, depth=3)
        assert network(torch.rand(2, 1, height, width)).shape == (2, targets, height, width)

    def test_refuses_a_size_off_its_stride(self, name: str) -> None:
        with pytest.raises(ValueError, match="20x16: both sides must be multiples of 8"):
            NETWORKS[name](1, 1, width=4, depth=3)(torch.rand(1, 1, 20, 16))

    def test_gradient_reaches_every_parameter(self, name: str) -> None:
        torch.manual_seed(0)
        network = NETWORKS[name](1, 1, width=4, depth=3)
        bce(network(torch.rand(2, 1, 32, 32)), torch.ones(2, 1, 32, 32)).backward()
        silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert silent == []

    def test_overfits_one_batch(self, name: str) -> None:
        torch.manual_seed(0)
        network = NETWORKS[name](1, 1, width=8, depth=2)
        images = torch.rand(2, 1, 16, 16)
        truth = torch.zeros(2, 1, 16, 16)
        truth[0, :, 4:12, 2:9] = 1
        truth[1, :, 1:6, 8:15] = 1
        optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
        for _ in range(80):
            optimiser.zero_grad()
            loss = bce(network(images), truth)
            loss.backward()
            optimiser.step()
        assert loss < 0.02

    def test_same_seed_same_weights(self, name: str) -> None:
        states = []
        for _ in range(2):
            torch.manual_seed(7)
            states.append(NETWORKS[name](1, 1, width=4, depth=2).state_dict())
        assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
