from itertools import pairwise

import pytest
import torch
from monai.networks.nets import AttentionUnet, BasicUNetPlusPlus
from monai.networks.nets.attentionunet import AttentionBlock
from torch import nn

from models.blocks import AttentionGate
from models.losses import bce
from models.networks import NETWORKS, UNet, UNetPlusPlus


def parameter_count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def silent_parameters(network: nn.Module) -> list[str]:
    """Names of the parameters without a gradient from the last backward pass."""
    return [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "expected"), [(1, 1, 31_036_481), (3, 2, 31_037_698)]
)
def test_plain_unet_has_the_known_parameter_count(in_channels: int, out_channels: int, expected: int) -> None:
    with torch.device("meta"):
        assert parameter_count(UNet(in_channels, out_channels, width=64, depth=4)) == expected


def test_residual_encoder_only_adds_shortcuts() -> None:
    plain, residual = (
        parameter_count(NETWORKS[n](1, 1, width=8, depth=2)) for n in ("unet", "residual_unet")
    )
    shortcuts = sum(i * o + 2 * o for i, o in [(1, 8), (8, 16), (16, 32)])  # 1x1 weights, batch norm
    assert residual - plain == shortcuts


def test_attention_unet_parameter_count_against_monai() -> None:
    width, depth = 64, 4
    channels = [width * 2**k for k in range(depth + 1)]
    with torch.device("meta"):
        theirs = parameter_count(AttentionUnet(2, 1, 1, channels, strides=[2] * depth))
        ours = parameter_count(NETWORKS["attention_unet"](1, 1, width=width, depth=depth))
    assert theirs == 31_739_185

    for c in channels:
        theirs -= 2 * c  # biases of the encoder's convolutions, which batch norm makes redundant
    for narrow, wide in pairwise(channels):
        theirs -= narrow // 2 + narrow // 2 + 1  # biases of the gate's convolutions, for the same reason
        theirs -= (9 - 4) * wide * narrow  # 3x3 transposed convolutions; ours are 2x2,
        theirs -= 2 * narrow  # followed by batch norm; ours are not
        theirs -= narrow + 1  # one convolution per decoder level, with bias, instance norm and PReLU;
        theirs += 9 * narrow**2 + 2 * 2 * narrow  # ours has two, each with batch norm and ReLU
    assert ours == theirs


def test_attention_gate_against_monai() -> None:
    torch.manual_seed(0)
    theirs, ours = AttentionBlock(2, f_int=4, f_g=8, f_l=8), AttentionGate(8)
    pairs = [(theirs.W_x, ours.of_skip), (theirs.W_g, ours.of_signal), (theirs.psi, ours.weight[1])]
    for (convolution, norm, *_), mine in pairs:
        mine[0].weight.data, mine[1] = convolution.conv.weight.data, norm
    skip, signal = torch.randn(2, 8, 6, 4), torch.randn(2, 8, 6, 4)
    # In training mode, batch norm cancels the biases that ours does not have.
    torch.testing.assert_close(ours(skip, signal), theirs(g=signal, x=skip), rtol=1e-5, atol=1e-6)


def test_unet_plus_plus_parameter_count_against_monai() -> None:
    width, depth = 64, 4  # MONAI supports only this depth
    channels = [width * 2**k for k in range(depth + 1)]
    with torch.device("meta"):
        theirs = parameter_count(
            BasicUNetPlusPlus(2, 1, 1, (*channels, width), norm="batch", act="relu", bias=False)
        )
        ours = parameter_count(UNetPlusPlus(1, 1, width=width, depth=depth, deep_supervision=True))

    for _ in range(depth):  # X(0, 1) ... X(0, 4): MONAI's upsampling keeps the channels here
        theirs -= 4 * channels[1] ** 2 + channels[1]
        theirs += 4 * channels[1] * channels[0] + channels[0]
        theirs -= 9 * (channels[1] - channels[0]) * channels[0]  # which are inputs of the next convolution
    assert ours == theirs


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 48)])
def test_output_shapes_against_monai(height: int, width: int) -> None:
    images = torch.rand(2, 1, height, width)
    attention = AttentionUnet(2, 1, 2, (4, 8, 16, 32, 64), strides=(2, 2, 2, 2))
    assert NETWORKS["attention_unet"](1, 2, width=4, depth=4)(images).shape == attention(images).shape
    nested = BasicUNetPlusPlus(2, 1, 2, (4, 8, 16, 32, 64, 4), deep_supervision=True)
    ours = NETWORKS["unet_plus_plus"](1, 2, width=4, depth=4, deep_supervision=True)(images)
    assert [o.shape for o in ours] == [o.shape for o in nested(images)]


def test_unet_plus_plus_connects_each_node_to_all_previous_ones() -> None:
    torch.manual_seed(0)
    network = UNetPlusPlus(1, 1, width=4, depth=3).eval()
    images = torch.rand(1, 1, 16, 24)
    features = network.encoder(images)
    places = [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (0, 3)]
    ups = dict(zip(places, network.decoder.ups, strict=True))
    blocks = dict(zip(places, network.decoder.nodes, strict=True))

    def node(i: int, j: int) -> torch.Tensor:
        if j == 0:
            return features[i]
        before = [node(i, k) for k in range(j)]
        return blocks[i, j](torch.cat([*before, ups[i, j](node(i + 1, j - 1))], dim=1))

    torch.testing.assert_close(network(images), network.heads[0](node(0, 3)))


class TestDeepSupervision:
    def network(self) -> nn.Module:
        torch.manual_seed(0)
        return NETWORKS["unet_plus_plus"](1, 2, width=4, depth=3, deep_supervision=True)

    def test_returns_the_logits_of_each_column_in_training_mode(self) -> None:
        outputs = self.network()(torch.rand(2, 1, 16, 24))
        assert [o.shape for o in outputs] == [(2, 2, 16, 24)] * 3

    def test_returns_the_last_logits_in_evaluation_mode(self) -> None:
        network, images = self.network(), torch.rand(2, 1, 16, 24)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        last = network(images)[-1]
        assert torch.equal(network.eval()(images), last)

    def test_gradient_reaches_every_parameter(self) -> None:
        network = self.network()
        outputs = network(torch.rand(2, 1, 32, 32))
        sum(bce(o, torch.ones_like(o)) for o in outputs).backward()
        assert silent_parameters(network) == []


def test_weight_names_are_stable() -> None:
    names = list(NETWORKS["unet"](1, 1, width=2, depth=1).state_dict())
    modules = list(dict.fromkeys(".".join(n.split(".")[:3]) for n in names))
    assert modules == [
        "encoder.levels.0",
        "encoder.levels.1",
        "decoder.ups.0",
        "decoder.levels.0",
        "head.weight",
        "head.bias",
    ]


@pytest.mark.parametrize("name", NETWORKS)
class TestEveryNetwork:
    @pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 32), (8, 72)])
    @pytest.mark.parametrize("targets", [1, 2])
    def test_returns_one_logit_per_pixel_and_target(
        self, name: str, targets: int, height: int, width: int
    ) -> None:
        network = NETWORKS[name](1, targets, width=4, depth=3)
        assert network(torch.rand(2, 1, height, width)).shape == (2, targets, height, width)

    @pytest.mark.parametrize(("height", "width"), [(20, 16), (16, 20), (4, 8)])
    def test_size_off_the_stride_is_an_error(self, name: str, height: int, width: int) -> None:
        network = NETWORKS[name](1, 1, width=4, depth=3)
        with pytest.raises(ValueError, match=f"{height}x{width}: both sides must be multiples of 8"):
            network(torch.rand(1, 1, height, width))

    def test_gradient_reaches_every_parameter(self, name: str) -> None:
        torch.manual_seed(0)
        network = NETWORKS[name](1, 1, width=4, depth=3)
        bce(network(torch.rand(2, 1, 32, 32)), torch.ones(2, 1, 32, 32)).backward()
        assert silent_parameters(network) == []

    def test_overfits_one_batch(self, name: str) -> None:
        torch.manual_seed(1)  # with seed 0, the attention gates need more than 80 steps
        network = NETWORKS[name](1, 1, width=8, depth=2)
        images = torch.rand(2, 1, 16, 16)
        reference = torch.zeros(2, 1, 16, 16)
        reference[0, :, 4:12, 2:9] = 1
        reference[1, :, 1:6, 8:15] = 1
        optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
        for _ in range(80):
            optimiser.zero_grad()
            loss = bce(network(images), reference)
            loss.backward()
            optimiser.step()
        assert loss < 0.02

    def test_equal_seeds_give_equal_weights(self, name: str) -> None:
        states = []
        for _ in range(2):
            torch.manual_seed(7)
            states.append(NETWORKS[name](1, 1, width=4, depth=2).state_dict())
        assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
