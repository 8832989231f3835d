"""The arrays of `data/packed` and `data/lungs`, read for networks."""

import argparse
import hashlib
from collections.abc import Set
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.common.raw import Split
from tasks.support.cli import InputError

#: Places in a split.
Indices = slice | NDArray[np.int64]

#: Images that are hashed at a time.
AT_A_TIME = 256


class PackedSplit:
    """The images of one split and some classes, with their masks, as memory-mapped arrays.

    Those whose ids are `left_out` are not among them. `table` has one row an image, as in images.csv, with
    index 0..N-1.

    Raises:
        InputError: there is no such image.
    """

    def __init__(
        self,
        packed: Path,
        half: str,
        split: Split,
        targets: tuple[str, ...] = (),
        classes: tuple[str, ...] | None = None,
        left_out: Set[str] = frozenset(),
    ) -> None:
        table = pd.read_csv(packed / "images.csv")
        wanted = (table["half"] == half) & (table["split"] == split)
        if classes is not None:
            wanted &= table["class"].isin(classes)
        wanted &= ~table["id"].isin(left_out)
        self.table = table[wanted].reset_index(drop=True)
        if self.table.empty:
            of = f" of {', '.join(classes)}" if classes else ""
            raise InputError(f"{packed}: the {half} half has no {split} image{of}")
        self._rows = self.table["row"].to_numpy()
        self._folder = packed / half / split
        self._targets = targets
        self._arrays: dict[str, NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self.table)

    def images(self, indices: Indices = slice(None)) -> Tensor:
        """uint8 (n, 1, S, S), grey values 0..255."""
        return self._read("image", indices).unsqueeze(1)

    def masks(self, indices: Indices = slice(None)) -> Tensor:
        """uint8 (n, C, S, S), one channel a target, 0..255 for the marked share of each pixel."""
        return torch.stack([self._read(target, indices) for target in self._targets], dim=1)

    def regions(self, indices: Indices = slice(None)) -> Tensor | None:
        """uint8 (n, S, S), 1 where a pixel may be seen; None where all may."""
        return self._read("region", indices) if (self._folder / "region.npy").exists() else None

    def digest(self) -> str:
        """Changes with the images, their masks, and their order."""
        hashed = hashlib.sha256("\n".join(self.table["id"]).encode())
        for start in range(0, len(self), AT_A_TIME):
            rows = slice(start, start + AT_A_TIME)
            for pixels in (self.images(rows), self.masks(rows)):
                hashed.update(pixels.numpy().data)
        return hashed.hexdigest()

    def _read(self, kind: str, indices: Indices) -> Tensor:
        """Copied out of the memory map, whose pages the system can do without."""
        if kind not in self._arrays:
            self._arrays[kind] = np.load(self._folder / f"{kind}.npy", mmap_mode="r")
        return torch.from_numpy(self._arrays[kind][self._rows[indices]])


def add_dropped_argument(parser: argparse.ArgumentParser) -> None:
    """The option that names what training and validation leave out, as `dropped_ids` gives it."""
    parser.add_argument("--dropped", type=Path, help="artifacts/audit/dropped.csv: images to leave out")


def dropped_ids(table: Path | None) -> frozenset[str]:
    """The ids in the audit's dropped.csv, none without one."""
    return frozenset(pd.read_csv(table, dtype=str)["id"]) if table else frozenset()


def scaled(pixels: Tensor) -> Tensor:
    """0..255, grey values or shares, as float32 in [0, 1], what networks see."""
    return pixels.to(torch.float32) / 255
