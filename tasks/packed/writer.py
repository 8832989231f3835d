"""Writes the arrays of `data/packed` and `data/lungs`. Does not import torch, which takes seconds to load."""

from pathlib import Path
from typing import BinaryIO, Self

import numpy as np


class ArrayWriter:
    """Appends arrays of one shape to an .npy file. Plain writes make a full disk an error, not a crash."""

    def __init__(self, path: Path, item_shape: tuple[int, ...]) -> None:
        self._file: BinaryIO = path.open("wb")
        self._item_shape = item_shape
        self.count = 0
        self._write_header()

    def append(self, item: np.ndarray) -> None:
        self._file.write(item.astype(np.uint8, copy=False).tobytes())
        self.count += 1

    def _write_header(self) -> None:
        # NumPy pads this header, so the final count fits in its place.
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *self._item_shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.flush()
            self._file.seek(0)
            self._write_header()
