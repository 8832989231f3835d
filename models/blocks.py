"""The blocks that networks are built from; each maps (N, C_in, H, W) to (N, C_out, H, W)."""

from torch import Tensor, nn


def conv_norm(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Sequential:
    """A size-keeping convolution and batch normalisation, whose shift makes a bias superfluous."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with batch normalisation and ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_norm(in_channels, out_channels),
            nn.ReLU(inplace=True),
            conv_norm(out_channels, out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added (He et al. 2016, doi 10.1109/CVPR.2016.90).

    A 1x1 convolution matches the channels of the shortcut where they differ.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_norm(in_channels, out_channels),
            nn.ReLU(inplace=True),
            conv_norm(out_channels, out_channels),
        )
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else conv_norm(in_channels, out_channels, kernel_size=1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.layers(x) + self.shortcut(x))
        return y
