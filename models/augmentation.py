"""Random augmentation of whole batches on the training device. Masks move exactly with their images.

Flip, affine transform and elastic displacement are combined into one sampling grid, so each image is
interpolated only once. benchmarks/augmentation.py compares this with kornia, which interpolates once per
transform.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

#: Nodes per side of the coarse grid of random displacements; the original U-Net used 3.
ELASTIC_NODES = 5


class Strength(NamedTuple):
    """Strength of each transform; 0 disables it. Values are drawn per image, uniformly within the bounds."""

    flip: float = 0.0
    """Probability of a horizontal flip, in [0, 1]."""
    rotation: float = 0.0
    """Maximum angle in degrees, in both directions."""
    scale: float = 0.0
    """The size is multiplied or divided by a factor of up to 1 + scale."""
    translation: float = 0.0
    """Maximum shift as a share of the image's side, in both directions."""
    elastic: float = 0.0
    """Standard deviation of the displacements of the coarse grid's nodes, as a share of the image's side."""
    brightness: float = 0.0
    """Maximum value added to or subtracted from the grey values, which are in [0, 1]."""
    contrast: float = 0.0
    """The distance from the image's mean is multiplied or divided by a factor of up to 1 + contrast."""
    gamma: float = 0.0
    """Grey values are raised to a power between 1 / (1 + gamma) and 1 + gamma."""
    noise: float = 0.0
    """Maximum standard deviation of added Gaussian noise, for grey values in [0, 1]."""


class Draws:
    """Random values for the images of a batch that may be distributed over processes.

    Values are drawn for all `count` images of the batch, and those of `rows` are kept. An image therefore
    gets the same values however the batch is distributed.
    """

    def __init__(self, generator: torch.Generator, count: int, rows: slice | Tensor) -> None:
        self._generator, self._count, self._rows = generator, count, rows

    def mirrored(self, probability: float) -> Tensor:
        """True with the given probability, (N,)."""
        return self._uniform()[0] < probability

    def even(self, bound: float, kinds: int = 1) -> Tensor:
        """Uniform in [-bound, bound], (kinds, N)."""
        return bound * (2 * self._uniform(kinds) - 1)

    def factor(self, bound: float) -> Tensor:
        """From 1 / (1 + bound) to 1 + bound, uniform on a logarithmic scale, (N,)."""
        return torch.exp(self.even(math.log1p(bound))[0])

    def normal(self, *shape: int) -> Tensor:
        """Standard normal values, (N, *shape)."""
        drawn = torch.randn(self._count, *shape, generator=self._generator, device=self._generator.device)
        return drawn[self._rows]

    def _uniform(self, kinds: int = 1) -> Tensor:
        drawn = torch.rand(kinds * self._count, generator=self._generator, device=self._generator.device)
        return drawn.reshape(kinds, self._count)[:, self._rows]


class Augmentation:
    """Augments batches at random. On one kind of device, equal seeds and batches give equal results."""

    def __init__(self, strength: Strength, seed: int, device: torch.device) -> None:
        self._strength = strength
        self._generator = torch.Generator(device).manual_seed(seed)

    @property
    def generator(self) -> torch.Generator:
        """The source of all randomness; its state is the complete state of the augmentation."""
        return self._generator

    @torch.no_grad()
    def __call__(
        self, images: Tensor, masks: Tensor, count: int | None = None, rows: slice | Tensor = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """Augment a batch, or the images `rows` of a batch of `count` images.

        Args:
            images: float (N, 1, H, W) in [0, 1].
            masks: float (N, C, H, W) in [0, 1], the marked share of each pixel.
            count: number of images in the whole batch; None means N.
            rows: indices of these images in the whole batch.

        Returns:
            New images and masks in the same ranges. Pixels from outside the image are 0 in both.
        """
        s = self._strength
        draws = Draws(self._generator, len(images) if count is None else count, rows)
        if any((s.rotation, s.scale, s.translation, s.elastic)):
            grid = self._grid(draws, images.shape)
            both = torch.cat([images, masks], dim=1)
            moved = functional.grid_sample(both, grid, mode="bilinear", align_corners=False)
            images, masks = moved[:, :1], moved[:, 1:]
        elif s.flip:
            mirrored = _each(draws.mirrored(s.flip))
            images = torch.where(mirrored, images.flip(-1), images)
            masks = torch.where(mirrored, masks.flip(-1), masks)
        return self._regrey(draws, images), masks

    def _grid(self, draws: Draws, shape: torch.Size) -> Tensor:
        """Where each pixel of the new images is sampled: (N, H, W, 2), x and y in [-1, 1]."""
        s = self._strength
        count, _, height, width = shape
        angle = draws.even(math.radians(s.rotation))[0]
        size = draws.factor(s.scale)
        cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
        shift = draws.even(2 * s.translation, kinds=2)
        mirror = 1 - 2 * draws.mirrored(s.flip).float() if s.flip else torch.ones_like(angle)
        # Rotate in pixels: the grid spans [-1, 1] on both sides even if their lengths differ.
        aspect = height / width
        theta = torch.stack(
            [
                torch.stack([mirror * cos, -mirror * sin * aspect, shift[0]], dim=1),
                torch.stack([sin / aspect, cos, shift[1]], dim=1),
            ],
            dim=1,
        )
        grid = functional.affine_grid(theta, [count, 1, height, width], align_corners=False)
        return grid + self._displacement(draws, height, width) if s.elastic else grid

    def _displacement(self, draws: Draws, height: int, width: int) -> Tensor:
        """Smooth random displacements (N, H, W, 2), after Ronneberger et al. 2015,
        doi 10.1007/978-3-319-24574-4_28."""
        nodes = draws.normal(2, ELASTIC_NODES, ELASTIC_NODES)
        field = functional.interpolate(
            2 * self._strength.elastic * nodes, size=(height, width), mode="bicubic", align_corners=True
        )
        return field.permute(0, 2, 3, 1)

    def _regrey(self, draws: Draws, images: Tensor) -> Tensor:
        s = self._strength
        changed = images
        if s.gamma:
            changed = changed.clamp(0, 1) ** _each(draws.factor(s.gamma))
        if s.contrast:
            mean = changed.mean(dim=(1, 2, 3), keepdim=True)
            changed = (changed - mean) * _each(draws.factor(s.contrast)) + mean
        if s.brightness:
            changed = changed + _each(draws.even(s.brightness)[0])
        if s.noise:
            deviation = _each(draws.even(s.noise)[0].abs())
            changed = changed + deviation * draws.normal(*images.shape[1:])
        return changed if changed is images else changed.clamp(0, 1)


def _each(values: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1, 1), to broadcast over images."""
    return values[:, None, None, None]
