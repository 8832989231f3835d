"""The arrays of `data/packed` and `data/lungs`: how they are read, and how they are written."""

from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tasks.cli import InputError
from tasks.raw import Split


class ArrayWriter:
    """Appends equal arrays to an .npy file; plain writes, so that a full disk is an error, not a crash."""

    def __init__(self, path: Path, item_shape: tuple[int, ...]) -> None:
        self._file: BinaryIO = path.open("wb")
        self._item_shape = item_shape
        self.count = 0
        self._write_header()

    def append(self, item: np.ndarray) -> None:
        self._file.write(item.astype(np.uint8, copy=False).tobytes())
        self.count += 1

    def _write_header(self) -> None:
        # numpy pads this header so that a longer first axis still fits in its place.
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *self._item_shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.flush()
            self._file.seek(0)
            self._write_header()


class PackedSplit:
    """The images of one split and some classes, with their masks, as memory-mapped arrays.

    `table` has one row an image, as in images.csv, with index 0..N-1.

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
    ) -> None:
        table = pd.read_csv(packed / "images.csv")
        wanted = (table["half"] == half) & (table["split"] == split)
        if classes is not None:
            wanted &= table["class"].isin(classes)
        self.table = table[wanted].reset_index(drop=True)
        if self.table.empty:
            of = f" of {', '.join(classes)}" if classes else ""
            raise InputError(f"{packed}: the {half} half has no {split} image{of}")
        self._folder = packed / half / split
        self._targets = targets

    def __len__(self) -> int:
        return len(self.table)

    def images(self, indices: slice = slice(None)) -> Tensor:
        """uint8 (n, 1, S, S), grey values 0..255."""
        return self._read("image", indices).unsqueeze(1)

    def masks(self, indices: slice = slice(None)) -> Tensor:
        """uint8 (n, C, S, S), one channel a target, 0 and 1."""
        return torch.stack([self._read(target, indices) for target in self._targets], dim=1)

    def regions(self, indices: slice = slice(None)) -> Tensor | None:
        """uint8 (n, S, S), 1 where a pixel may be seen; None where all may."""
        return self._read("region", indices) if (self._folder / "region.npy").exists() else None

    def _read(self, kind: str, indices: slice) -> Tensor:
        array = np.load(self._folder / f"{kind}.npy", mmap_mode="r")
        return torch.from_numpy(array[self.table["row"].to_numpy()[indices]])


def scaled(images: Tensor) -> Tensor:
    """Grey values 0..255 as float32 in [0, 1], what networks see."""
    return images.to(torch.float32) / 255
