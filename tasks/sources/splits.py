"""Draws Train, Val and Test by lot, with the images of a group, such as a patient, in one split.

Within each class, groups stand in an order that depends only on the seed and on the group's own name: that of
a hash. The first of them are Test, the next Val, and the rest Train, so that each class has the wanted shares
of images as nearly as whole groups allow. A new image changes this order for no other. It only moves the two
borders between the splits a little, so at most a few groups at these borders change their split.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tasks.common.raw import CLASSES, Split
from tasks.settings.layout import Splits


class Lot(NamedTuple):
    """An image to draw a split for."""

    group: str
    """What stays together. An image that belongs to no group is a group of its own."""
    image_class: int


def draw(lots: Sequence[Lot], splits: Splits) -> list[Split]:
    """The split of each image. A group counts for the class that most of its images have."""
    found: dict[str, Split] = {}
    for groups in _by_class(lots).values():
        total, before = sum(groups.values()), 0
        for group in sorted(groups, key=lambda name: (_lot(splits.seed, name), name)):
            middle = (before + groups[group] / 2) / total
            found[group] = _at(middle, splits)
            before += groups[group]
    return [found[lot.group] for lot in lots]


def _at(middle: float, splits: Splits) -> Split:
    if middle < splits.test:
        return "Test"
    return "Val" if middle < splits.test + splits.val else "Train"


def _by_class(lots: Iterable[Lot]) -> dict[int, dict[str, int]]:
    """The groups of each class, with their numbers of images."""
    classes: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for lot in lots:
        classes[lot.group][lot.image_class] += 1
    found: dict[int, dict[str, int]] = {index: {} for index in range(len(CLASSES))}
    for group, counts in classes.items():
        # Of equally frequent classes, the first of CLASSES.
        most = min(counts, key=lambda index: (-counts[index], index))
        found[most][group] = counts.total()
    return found


def _lot(seed: int, group: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{group}".encode("utf-8", "surrogateescape")).digest()
