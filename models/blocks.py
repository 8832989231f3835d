"""The blocks that networks are built from; each maps (N, C_in, H, W) to (N, C_out, H, W).

Upsampling doubles H and W; a skip takes two maps of one shape and gives one of that shape.
"""

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


def upsample(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    """A transposed convolution that doubles H and W, without overlap between the pixels it writes."""
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)


class PlainSkip(nn.Module):
    """The encoder's map as it is."""

    def __init__(self, _channels: int) -> None:
        super().__init__()

    def forward(self, skip: Tensor, _signal: Tensor) -> Tensor:
        return skip


class AttentionGate(nn.Module):
    """The encoder's map, each pixel weighed by additive attention (Oktay et al. 2018, arXiv 1804.03999).

    weight = sigmoid(psi(relu(W_x skip + W_g signal))), each of psi, W_x and W_g a 1x1 convolution
    with batch normalisation. `signal` is the decoder's map AFTER upsampling, and between stand half
    as many channels, as in MONAI's AttentionUnet.
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
