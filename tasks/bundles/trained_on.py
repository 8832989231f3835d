"""Which images the networks of a bundle were trained on, as hashes of their pixels.

Another bundle can be compared on images that neither network has seen, without any image in a bundle. A line
of the file is the beginning of the column `sha256` of data/packed/SIZE/images.csv: 64 bits, which two of
100,000 different images share with a probability below 1e-9.
"""

import csv
from collections.abc import Iterable, Set
from pathlib import Path

from tasks.support.cli import InputError

#: Hexadecimal digits of a hash.
DIGITS = 16


def shortened(digest: str) -> str:
    """The hash of an image in the file, from its SHA-256."""
    return digest[:DIGITS]


def training_hashes(
    packed: Path, dropped: Path, half: str, classes: Iterable[str], splits: Iterable[str] = ("Train",)
) -> set[str]:
    """The hashes of the images of some splits and classes, without those that the audit dropped.

    Args:
        packed: data/packed/SIZE, of any size.
        dropped: artifacts/audit/dropped.csv.
    """
    left_out, wanted, trained = {row["id"] for row in _rows(dropped)}, set(classes), set(splits)
    return {
        shortened(row["sha256"])
        for row in _rows(packed / "images.csv")
        if row["half"] == half
        and row["split"] in trained
        and row["class"] in wanted
        and row["id"] not in left_out
    }


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def hashes_to_text(hashes: Set[str]) -> str:
    """The content of the file: equal sets give equal text."""
    return "".join(f"{one}\n" for one in sorted(hashes))


def read_hashes(path: Path) -> frozenset[str]:
    """The hashes in a bundle's file.

    Raises:
        InputError: the file has other lines.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError:
        lines = [""]
    if any(len(line) != DIGITS or set(line) - set("0123456789abcdef") for line in lines):
        raise InputError(f"{path}: not a list of {DIGITS}-digit hashes")
    return frozenset(lines)
