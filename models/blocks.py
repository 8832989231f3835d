"""Building blocks of the networks. A block maps (N, C_in, H, W) to (N, C_out, H, W).

Upsampling doubles H and W. A skip takes two feature maps of the same shape and returns one of that shape.
"""

from torch import Tensor, nn


def conv_norm(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Sequential:
    """A convolution that keeps the size, and batch normalisation, whose shift replaces the bias."""
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
    """Two 3x3 convolutions with a shortcut connection (He et al. 2016, doi 10.1109/CVPR.2016.90).

    If the numbers of channels differ, a 1x1 convolution in the shortcut matches them.
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


def upsample(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    """A transposed convolution that doubles H and W; its output pixels do not overlap."""
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)


class PlainSkip(nn.Module):
    """Passes the encoder's feature map on unchanged."""

    def __init__(self, _channels: int) -> None:
        super().__init__()

    def forward(self, skip: Tensor, _signal: Tensor) -> Tensor:
        return skip


class AttentionGate(nn.Module):
    """Weights each pixel of the encoder's feature map by additive attention (Oktay et al. 2018,
    arXiv 1804.03999).

    weight = sigmoid(psi(relu(W_x skip + W_g signal))), where psi, W_x and W_g are 1x1 convolutions with batch
    normalisation. As in MONAI's AttentionUnet, `signal` is the decoder's feature map AFTER upsampling, and
    the intermediate map has half as many channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        between = channels // 2
        self.of_skip = conv_norm(channels, between, kernel_size=1)
        self.of_signal = conv_norm(channels, between, kernel_size=1)
        self.weight = nn.Sequential(nn.ReLU(inplace=True), conv_norm(between, 1, kernel_size=1), nn.Sigmoid())

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """Two (N, C, H, W) -> `skip` times weights (N, 1, H, W) in (0, 1)."""
        weight: Tensor = self.weight(self.of_skip(skip) + self.of_signal(signal))
        return skip * weight
