"""Batches of a split on the training device: from its memory if the split fits, otherwise from disk."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from tasks.common.cores import in_order
from tasks.networks.device import Compute
from tasks.packed.reader import PackedSplit, scaled

#: Largest share of a GPU's free memory that the pixels of one split may take.
SHARE_OF_MEMORY = 0.25

#: Batches that are read ahead while the GPU works on earlier ones.
AHEAD = 4


class Batches:
    """The images and masks of a split, gathered in any order and scaled to [0, 1] on the device.

    A GPU keeps the bytes of the whole split in its memory if they fit; otherwise threads read ahead into
    pinned memory. A CPU reads the memory map, and the system caches as much of it as it can. `waited` is the
    total time, in seconds, that the consumer has waited for batches.
    """

    def __init__(self, split: PackedSplit, compute: Compute, resident: bool | None = None) -> None:
        """`resident` overrides the decision to keep the split in GPU memory."""
        self._split, self._compute = split, compute
        self._on_gpu = compute.device.type == "cuda"
        if resident is None:
            resident = self._on_gpu and self._fits()
        self._pixels = (self._to_device(split.images()), self._to_device(split.masks())) if resident else None
        self.waited = 0.0

    def __len__(self) -> int:
        return len(self._split)

    def __call__(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch of row indices: images (n, 1, S, S) and masks (n, C, S, S), float32 in [0, 1]."""
        gathered = self._gathered(batches)
        while True:
            started = time.perf_counter()
            try:
                images, masks = next(gathered)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - started
            yield scaled(images), scaled(masks)

    def _gathered(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        if self._pixels:
            images, masks = self._pixels
            for batch in batches:
                places = batch.to(self._compute.device, non_blocking=True)
                yield images[places], masks[places]
        elif self._on_gpu:
            with ThreadPoolExecutor(AHEAD) as pool:
                for images, masks in in_order(pool, self._read_pinned, batches, ahead=AHEAD):
                    yield self._to_device(images), self._to_device(masks)
        else:
            yield from map(self._read, batches)

    def _read(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        return self._split.images(batch.numpy()), self._split.masks(batch.numpy())

    def _read_pinned(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        images, masks = self._read(batch)
        return images.pin_memory(), masks.pin_memory()

    def _to_device(self, pixels: Tensor) -> Tensor:
        return pixels.to(self._compute.device, non_blocking=True)

    def _fits(self) -> bool:
        free, _ = torch.cuda.mem_get_info(self._compute.device)
        one_image = self._split.images(slice(1)).numel() + self._split.masks(slice(1)).numel()
        return one_image * len(self._split) < SHARE_OF_MEMORY * free
