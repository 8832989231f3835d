"""Networks, by their names in params.yaml.

U-Net: Ronneberger et al. 2015, doi 10.1007/978-3-319-24574-4_28.
Attention U-Net: Oktay et al. 2018, arXiv 1804.03999.
UNet++: Zhou et al. 2018, doi 10.1007/978-3-030-00889-5_1.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from models.blocks import AttentionGate, DoubleConv, PlainSkip, ResidualBlock, upsample

Block = Callable[[int, int], nn.Module]
Skip = Callable[[int], nn.Module]


def level_channels(width: int, depth: int) -> list[int]:
    """Channels of each of the depth + 1 levels: `width` at the first, doubled at each further level."""
    return [width * 2**k for k in range(depth + 1)]


def require_multiples(images: Tensor, stride: int) -> None:
    """Reject images (N, C, H, W) whose size pooling would round.

    Raises:
        ValueError: H or W is not a multiple of the stride.
    """
    height, width = images.shape[-2:]
    if height % stride or width % stride:
        raise ValueError(f"images of {height}x{width}: both sides must be multiples of {stride}")


class Encoder(nn.Module):
    """One block per level with 2x2 max pooling in between; `channels` are the channels of each level."""

    def __init__(self, in_channels: int, channels: list[int], block: Block) -> None:
        super().__init__()
        self.channels = channels
        self.pool = nn.MaxPool2d(2)
        ins = [in_channels, *channels[:-1]]
        self.levels = nn.ModuleList(block(i, o) for i, o in zip(ins, channels, strict=True))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> one feature map per level, the k-th (N, channels[k], H / 2^k, W / 2^k)."""
        features: list[Tensor] = []
        for k, level in enumerate(self.levels):
            x = level(self.pool(x) if k else x)
            features.append(x)
        return features


class Decoder(nn.Module):
    """Upsamples, concatenates the encoder's feature map after `skip`, and applies a block, at each level."""

    def __init__(self, channels: list[int], block: Block, skip: Skip) -> None:
        super().__init__()
        wide, narrow = channels[:0:-1], channels[-2::-1]
        self.ups = nn.ModuleList(upsample(i, o) for i, o in zip(wide, narrow, strict=True))
        self.levels = nn.ModuleList(block(2 * o, o) for o in narrow)
        self.skips = nn.ModuleList(skip(o) for o in narrow)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Feature maps of all levels -> (N, channels[0], H, W)."""
        *above, x = features
        for up, level, skip, feature in zip(self.ups, self.levels, self.skips, reversed(above), strict=True):
            x = up(x)
            x = level(torch.cat([skip(feature, x), x], dim=1))
        return x


class NestedDecoder(nn.Module):
    """The nodes X(i, j) of UNet++ at level i, column j >= 1; column 0 is the encoder.

    X(i, j) = block([X(i, 0), ..., X(i, j - 1), upsample(X(i + 1, j - 1))]), i + j <= depth.
    """

    def __init__(self, channels: list[int], block: Block) -> None:
        super().__init__()
        depth = len(channels) - 1
        self.places = [(i, j) for j in range(1, depth + 1) for i in range(depth - j + 1)]
        self.ups = nn.ModuleList(upsample(channels[i + 1], channels[i]) for i, _ in self.places)
        self.nodes = nn.ModuleList(block((j + 1) * channels[i], channels[i]) for i, j in self.places)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Feature maps of all levels -> X(0, 1) ... X(0, depth), each (N, channels[0], H, W)."""
        rows = [[feature] for feature in features]
        for (i, j), up, node in zip(self.places, self.ups, self.nodes, strict=True):
            rows[i].append(node(torch.cat([*rows[i], up(rows[i + 1][j - 1])], dim=1)))
        return rows[0][1:]


class UNet(nn.Module):
    """U-Net with a configurable encoder block and skip.

    Args:
        in_channels: channels of the image, 1 for an X-ray.
        out_channels: one per target.
        width: channels of the first level, doubled at each of the `depth` further levels.
        encoder_block: block at each level of the encoder; the decoder uses double convolutions.
        skip: module applied to the encoder's feature maps on their way to the decoder.

    H and W of the input must be multiples of `stride`, 2^depth.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        depth: int,
        encoder_block: Block = DoubleConv,
        skip: Skip = PlainSkip,
    ) -> None:
        super().__init__()
        self.stride = 2**depth
        channels = level_channels(width, depth)
        self.encoder = Encoder(in_channels, channels, encoder_block)
        self.decoder = Decoder(channels, DoubleConv, skip)
        self.head = nn.Conv2d(width, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) images in [0, 1] -> (N, C_out, H, W) logits.

        Raises:
            ValueError: H or W is not a multiple of the stride.
        """
        require_multiples(x, self.stride)
        logits: Tensor = self.head(self.decoder(self.encoder(x)))
        return logits


class UNetPlusPlus(nn.Module):
    """UNet++: nodes between encoder and decoder at every level, each connected to all previous ones.

    Args:
        in_channels: channels of the image, 1 for an X-ray.
        out_channels: one per target.
        width: channels of the first level, doubled at each of the `depth` further levels.
        deep_supervision: a head on each of X(0, 1) ... X(0, depth), instead of only on the last.

    H and W of the input must be multiples of `stride`, 2^depth.
    """

    def __init__(
        self, in_channels: int, out_channels: int, width: int, depth: int, deep_supervision: bool = False
    ) -> None:
        super().__init__()
        self.stride = 2**depth
        self.deep_supervision = deep_supervision
        channels = level_channels(width, depth)
        self.encoder = Encoder(in_channels, channels, DoubleConv)
        self.decoder = NestedDecoder(channels, DoubleConv)
        self.heads = nn.ModuleList(
            nn.Conv2d(width, out_channels, kernel_size=1) for _ in range(depth if deep_supervision else 1)
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(N, C_in, H, W) images in [0, 1] -> (N, C_out, H, W) logits from X(0, depth).

        With deep supervision in training mode: a tuple of such logits from X(0, 1) ... X(0, depth).

        Raises:
            ValueError: H or W is not a multiple of the stride.
        """
        require_multiples(x, self.stride)
        outputs = self.decoder(self.encoder(x))
        if self.deep_supervision and self.training:
            return tuple(head(output) for head, output in zip(self.heads, outputs, strict=True))
        logits: Tensor = self.heads[-1](outputs[-1])
        return logits


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "residual_unet": partial(UNet, encoder_block=ResidualBlock),
    "attention_unet": partial(UNet, skip=AttentionGate),
    "unet_plus_plus": UNetPlusPlus,
}
