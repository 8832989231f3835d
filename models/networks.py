"""Networks, by the words of params.yaml.

U-Net: Ronneberger et al. 2015, doi 10.1007/978-3-319-24574-4_28.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from models.blocks import DoubleConv, ResidualBlock

Block = Callable[[int, int], nn.Module]


class Encoder(nn.Module):
    """One block a level, 2x2 max pooling between; publishes the channels of each level."""

    def __init__(self, in_channels: int, channels: list[int], block: Block) -> None:
        super().__init__()
        self.channels = channels
        self.pool = nn.MaxPool2d(2)
        ins = [in_channels, *channels[:-1]]
        self.levels = nn.ModuleList(block(i, o) for i, o in zip(ins, channels, strict=True))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> one feature map a level, the k-th (N, channels[k], H / 2^k, W / 2^k)."""
        features: list[Tensor] = []
        for k, level in enumerate(self.levels):
            x = level(self.pool(x) if k else x)
            features.append(x)
        return features


class Decoder(nn.Module):
    """Transposed convolutions up, the encoder's map of the same size concatenated, then a block."""

    def __init__(self, channels: list[int], block: Block) -> None:
        super().__init__()
        wide, narrow = channels[:0:-1], channels[-2::-1]
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(i, o, kernel_size=2, stride=2) for i, o in zip(wide, narrow, strict=True)
        )
        self.levels = nn.ModuleList(block(2 * o, o) for o in narrow)

    def forward(self, features: list[Tensor]) -> Tensor:
        *skips, x = features
        for up, level, skip in zip(self.ups, self.levels, reversed(skips), strict=True):
            x = level(torch.cat([skip, up(x)], dim=1))
        return x


class UNet(nn.Module):
    """U-Net whose encoder block is a choice.

    Args:
        in_channels: of the image, 1 for an X-ray.
        out_channels: one a target.
        width: channels of the first level, doubled at each of the `depth` levels down.
        encoder_block: what stands at each level of the encoder; the decoder has double convolutions.

    H and W of the input must be multiples of `stride`, 2^depth.
    """

    def __init__(
        self, in_channels: int, out_channels: int, width: int, depth: int, encoder_block: Block = DoubleConv
    ) -> None:
        super().__init__()
        self.stride = 2**depth
        channels = [width * 2**k for k in range(depth + 1)]
        self.encoder = Encoder(in_channels, channels, encoder_block)
        self.decoder = Decoder(channels, DoubleConv)
        self.head = nn.Conv2d(width, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) images in [0, 1] -> (N, C_out, H, W) logits.

        Raises:
            ValueError: H or W is not a multiple of the stride.
        """
        height, width = x.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"images of {height}x{width}: both sides must be multiples of {self.stride}")
        logits: Tensor = self.head(self.decoder(self.encoder(x)))
        return logits


NETWORKS: dict[str, Callable[..., UNet]] = {
    "unet": UNet,
    "residual_unet": partial(UNet, encoder_block=ResidualBlock),
}
