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


class Augmentation:
    """Changes batches at random; equal seeds and batches give equal changes on one kind of device."""

    def __init__(self, strength: Strength, seed: int, device: torch.device) -> None:
        self._strength = strength
        self._generator = torch.Generator(device).manual_seed(seed)
        self._device = device

    @property
    def generator(self) -> torch.Generator:
        """Where all its randomness comes from; its state is all of the state there is."""
        return self._generator

    @torch.no_grad()
    def __call__(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Changed copies of a batch.

        Args:
            images: float (N, 1, H, W) in [0, 1]; so are the changed ones.
            masks: float (N, C, H, W) in [0, 1], the marked share of each pixel. What comes into view from
                outside is 0 in both.
        """
        s = self._strength
        if any((s.rotation, s.scale, s.translation, s.elastic)):
            grid = self._grid(len(images), images.shape[-2], images.shape[-1])
            both = torch.cat([images, masks], dim=1)
            moved = functional.grid_sample(both, grid, mode="bilinear", align_corners=False)
            images, masks = moved[:, :1], moved[:, 1:]
        elif s.flip:
            mirrored = self._mirrored(len(images))[:, None, None, None]
            images = torch.where(mirrored, images.flip(-1), images)
            masks = torch.where(mirrored, masks.flip(-1), masks)
        return self._regrey(images), masks

    def _grid(self, count: int, height: int, width: int) -> Tensor:
        """Where each pixel of the new images comes from: (N, H, W, 2), x and y in [-1, 1]."""
        s = self._strength
        angle = self._even(count, math.radians(s.rotation))
        size = self._factor(count, s.scale)
        cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
        shift = self._even(2 * count, 2 * s.translation).reshape(2, count)
        mirror = 1 - 2 * self._mirrored(count).float() if s.flip else torch.ones(count, device=self._device)
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
        return grid + self._displacement(count, height, width) if s.elastic else grid

    def _displacement(self, count: int, height: int, width: int) -> Tensor:
        """Smooth random displacements (N, H, W, 2), after Ronneberger et al. 2015,
        doi 10.1007/978-3-319-24574-4_28."""
        nodes = torch.randn(
            count, 2, ELASTIC_NODES, ELASTIC_NODES, generator=self._generator, device=self._device
        )
        field = functional.interpolate(
            2 * self._strength.elastic * nodes, size=(height, width), mode="bicubic", align_corners=True
        )
        return field.permute(0, 2, 3, 1)

    def _regrey(self, images: Tensor) -> Tensor:
        s, count = self._strength, len(images)
        changed = images
        if s.gamma:
            changed = changed.clamp(0, 1) ** _each(self._factor(count, s.gamma))
        if s.contrast:
            mean = changed.mean(dim=(1, 2, 3), keepdim=True)
            changed = (changed - mean) * _each(self._factor(count, s.contrast)) + mean
        if s.brightness:
            changed = changed + _each(self._even(count, s.brightness))
        if s.noise:
            deviation = _each(self._even(count, s.noise).abs())
            noise = torch.randn(images.shape, generator=self._generator, device=self._device)
            changed = changed + deviation * noise
        return changed if changed is images else changed.clamp(0, 1)

    def _mirrored(self, count: int) -> Tensor:
        return torch.rand(count, generator=self._generator, device=self._device) < self._strength.flip

    def _even(self, count: int, bound: float) -> Tensor:
        """Evenly distributed in [-bound, bound], (count,)."""
        return bound * (2 * torch.rand(count, generator=self._generator, device=self._device) - 1)

    def _factor(self, count: int, bound: float) -> Tensor:
        """From 1 / (1 + bound) to 1 + bound, evenly on a logarithmic scale, (count,)."""
        return torch.exp(self._even(count, math.log1p(bound)))


def _each(values: Tensor) -> Tensor:
    """(N,) to weigh (N, 1, H, W) by."""
    return values[:, None, None, None]
