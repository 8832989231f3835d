"""Reads the arrays of `data/packed` and `data/lungs` for networks."""

import argparse
import hashlib
from collections.abc import Iterable, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.common.raw import Split
from tasks.support.cli import InputError

#: Row indices within a split.
Indices = slice | NDArray[np.int64]

#: Images hashed at a time.
AT_A_TIME = 256


class Fold(NamedTuple):
    """A fold of a cross-validation over the Train and Val images, as ids."""

    train: frozenset[str]
    """The images of the other folds, on which the network is trained."""
    val: frozenset[str]
    """The images of this fold, which the network does not see."""


class PackedSplit:
    """The images of one split and some classes, with their masks, as memory-mapped arrays.

    Images whose ids are in `dropped` are excluded. With a `fold`, Train and Val are those of the fold.
    `table` has one row per image, as in images.csv, with index 0..N-1.

    Raises:
        InputError: no image matches.
    """

    def __init__(
        self,
        packed: Path,
        half: str,
        split: Split,
        targets: tuple[str, ...] = (),
        classes: tuple[str, ...] | None = None,
        dropped: Set[str] = frozenset(),
        fold: Fold | None = None,
    ) -> None:
        table = pd.read_csv(packed / "images.csv")
        wanted = table["half"] == half
        if fold is None or split == "Test":
            wanted &= table["split"] == split
        else:
            wanted &= table["id"].isin(fold.train if split == "Train" else fold.val)
        if classes is not None:
            wanted &= table["class"].isin(classes)
        wanted &= ~table["id"].isin(dropped)
        self.table = table[wanted].reset_index(drop=True)
        if self.table.empty:
            of = f" of {', '.join(classes)}" if classes else ""
            raise InputError(f"{packed}: the {half} half has no {split} image{of}")
        self._rows, self._stored = self.table["row"].to_numpy(), self.table["split"].to_numpy()
        self._folders = {name: packed / half / name for name in self.table["split"].unique()}
        self._targets = targets
        self._arrays: dict[tuple[str, str], NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self.table)

    def images(self, indices: Indices = slice(None)) -> Tensor:
        """uint8 (n, 1, S, S), grey values 0..255."""
        return self._read("image", indices).unsqueeze(1)

    def masks(self, indices: Indices = slice(None)) -> Tensor:
        """uint8 (n, C, S, S), one channel per target; 0..255 is the marked share of each pixel."""
        return torch.stack([self._read(target, indices) for target in self._targets], dim=1)

    def regions(self, indices: Indices = slice(None)) -> Tensor | None:
        """uint8 (n, S, S), 1 where the network may see a pixel; None if it may see all of them."""
        known = all((folder / "region.npy").exists() for folder in self._folders.values())
        return self._read("region", indices) if known else None

    def digest(self) -> str:
        """A hash of the images, their masks and their order."""
        hashed = hashlib.sha256("\n".join(self.table["id"]).encode())
        for start in range(0, len(self), AT_A_TIME):
            rows = slice(start, start + AT_A_TIME)
            for pixels in (self.images(rows), self.masks(rows)):
                hashed.update(pixels.numpy().data)
        return hashed.hexdigest()

    def _read(self, kind: str, indices: Indices) -> Tensor:
        """Copy rows out of the memory maps."""
        rows = self._rows[indices]
        if len(self._folders) == 1:
            return torch.from_numpy(self._array(kind, *self._folders)[rows])
        stored, arrays = self._stored[indices], {name: self._array(kind, name) for name in self._folders}
        one = next(iter(arrays.values()))
        pixels = np.empty((len(rows), *one.shape[1:]), one.dtype)
        for name, array in arrays.items():
            here = stored == name
            pixels[here] = array[rows[here]]
        return torch.from_numpy(pixels)

    def _array(self, kind: str, stored: str) -> NDArray[np.uint8]:
        """The memory map of a kind in the split in which images are stored."""
        if (kind, stored) not in self._arrays:
            file = self._folders[stored] / f"{kind}.npy"
            if not file.exists():
                raise InputError(f"{file}: the dataset has no {kind} masks; change targets in params.yaml")
            self._arrays[kind, stored] = np.load(file, mmap_mode="r")
        return self._arrays[kind, stored]


def require_scores(packed: Path, half: str, targets: Iterable[str]) -> None:
    """Refuse a dataset on which a network could be trained, but not scored.

    Raises:
        InputError: no Test image of the half has anything marked as one of the targets.
    """
    table = pd.read_csv(packed / "images.csv")
    test = table[(table["half"] == half) & (table["split"] == "Test")]
    for target in targets:
        if not (test[f"{target}_area"] > 0).any():
            raise InputError(
                f"{packed}: no Test image of the {half} half has {target} in its mask: nothing to score"
            )


def add_dropped_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option `--dropped`; `dropped_ids` reads its file."""
    parser.add_argument("--dropped", type=Path, help="artifacts/audit/dropped.csv: images to exclude")


def dropped_ids(table: Path | None) -> frozenset[str]:
    """The ids in the audit's dropped.csv; empty without a file."""
    return frozenset(pd.read_csv(table, dtype=str)["id"]) if table else frozenset()


def add_folds_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option `--folds`; `read_folds` reads its file."""
    parser.add_argument(
        "--folds", type=Path, help="artifacts/audit/folds/TRAINING.csv: the folds of a cross-validation"
    )


def read_folds(table: Path | None) -> tuple[Fold, ...]:
    """All folds of a cross-validation; empty without a file, or if it has no image."""
    if table is None:
        return ()
    rows = pd.read_csv(table, dtype={"id": str})
    members = [frozenset(of_fold["id"]) for _, of_fold in rows.groupby("fold")]
    return tuple(Fold(frozenset(rows["id"]) - own, own) for own in members)


def scaled(pixels: Tensor) -> Tensor:
    """Convert grey values or shares 0..255 to float32 in [0, 1], the input of networks."""
    return pixels.to(torch.float32) / 255
