"""Random changes to whole batches, on the device that trains: the mask moves with its image exactly.

Flip, affine and elastic displacement become one sampling grid, so an image is interpolated once however many
of them are on. benchmarks/augmentation.py sets it beside kornia, which interpolates once a change.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

#: Nodes a side of the coarse grid of random displacements; U-Net's augmentation had 3.
ELASTIC_NODES = 5


class Strength(NamedTuple):
    """How far each change goes; 0 turns it off. Every image draws its own, evenly within the bounds."""

    flip: float = 0.0
    """Probability of a mirror image, left to right, in [0, 1]."""
    rotation: float = 0.0
    """Degrees to either side."""
    scale: float = 0.0
    """The size is multiplied by up to 1 + scale, or divided by it."""
    translation: float = 0.0
    """Share of the image's side, in either direction."""
    elastic: float = 0.0
    """Standard deviation of the displacement of a coarse grid's nodes, as a share of the image's side."""
    brightness: float = 0.0
    """Added to the grey values, up to this and down to its negative, on the scale [0, 1]."""
    contrast: float = 0.0
    """The distance from the image's mean is multiplied by up to 1 + contrast, or divided by it."""
    gamma: float = 0.0
    """Grey values are taken to a power of up to 1 + gamma, or down to its reciprocal."""
    noise: float = 0.0
    """Largest standard deviation of added Gaussian noise, on the scale [0, 1]."""


class Draws:
    """Random values for each image of a batch, of which some may be computed elsewhere.

    They are drawn for all `count` images and kept for those in `rows`, so an image gets the same values
    however a batch is shared out.
    """

    def __init__(self, generator: torch.Generator, count: int, rows: slice | Tensor) -> None:
        self._generator, self._count, self._rows = generator, count, rows

    def mirrored(self, probability: float) -> Tensor:
        """True with that probability, (N,)."""
        return self._uniform()[0] < probability

    def even(self, bound: float, kinds: int = 1) -> Tensor:
        """Evenly distributed in [-bound, bound], (kinds, N)."""
        return bound * (2 * self._uniform(kinds) - 1)

    def factor(self, bound: float) -> Tensor:
        """From 1 / (1 + bound) to 1 + bound, evenly on a logarithmic scale, (N,)."""
        return torch.exp(self.even(math.log1p(bound))[0])

    def normal(self, *shape: int) -> Tensor:
        """From the standard normal distribution, (N, *shape)."""
        drawn = torch.randn(self._count, *shape, generator=self._generator, device=self._generator.device)
        return drawn[self._rows]

    def _uniform(self, kinds: int = 1) -> Tensor:
        drawn = torch.rand(kinds * self._count, generator=self._generator, device=self._generator.device)
        return drawn.reshape(kinds, self._count)[:, self._rows]


class Augmentation:
    """Changes batches at random; equal seeds and batches give equal changes on one kind of device."""

    def __init__(self, strength: Strength, seed: int, device: torch.device) -> None:
        self._strength = strength
        self._generator = torch.Generator(device).manual_seed(seed)

    @property
    def generator(self) -> torch.Generator:
        """Where all its randomness comes from; its state is all of the state there is."""
        return self._generator

    @torch.no_grad()
    def __call__(
        self, images: Tensor, masks: Tensor, count: int | None = None, rows: slice | Tensor = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """Changed copies of a batch, or of the `rows` of one of `count` images.

        Args:
            images: float (N, 1, H, W) in [0, 1]; so are the changed ones.
            masks: float (N, C, H, W) in [0, 1], the marked share of each pixel. What comes into view from
                outside is 0 in both.
            count: images of the whole batch; N where it is whole.
            rows: which of them these are.
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
        """Where each pixel of the new images comes from: (N, H, W, 2), x and y in [-1, 1]."""
        s = self._strength
        count, _, height, width = shape
        angle = draws.even(math.radians(s.rotation))[0]
        size = draws.factor(s.scale)
        cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
        shift = draws.even(2 * s.translation, kinds=2)
        mirror = 1 - 2 * draws.mirrored(s.flip).float() if s.flip else torch.ones_like(angle)
        # Rotation is of pixels: a grid spans [-1, 1] on both sides, whatever their lengths.
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
    """(N,) to weigh (N, 1, H, W) by."""
    return values[:, None, None, None]
