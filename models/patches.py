"""Networks on patches of pixels, which reduces work on the largest feature maps, where most of it is."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from models.networks import require_multiples


class Patchwise(nn.Module):
    """Folds each patch of pixels into channels, and the network's output back into pixels.

    Folding is lossless (sub-pixel convolution, Shi et al. 2016, doi 10.1109/CVPR.2016.207).

    Args:
        make: builds the network for given numbers of input and output channels; its images have 1 / patch of
            the size.
        patch: side of a patch in pixels; 1 disables folding.
    """

    def __init__(
        self, make: Callable[..., nn.Module], in_channels: int, out_channels: int, patch: int
    ) -> None:
        super().__init__()
        self.patch = patch
        self.network = make(in_channels=in_channels * patch**2, out_channels=out_channels * patch**2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(N, C_in, H, W) -> logits (N, C_out, H, W), or a tuple of them if the network returns a tuple.

        Raises:
            ValueError: H or W is not a multiple of the patch.
        """
        require_multiples(x, self.patch)
        logits = self.network(functional.pixel_unshuffle(x, self.patch))
        if isinstance(logits, tuple):
            return tuple(functional.pixel_shuffle(one, self.patch) for one in logits)
        return functional.pixel_shuffle(logits, self.patch)
