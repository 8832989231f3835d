"""Draws the folds of a cross-validation over the Train and Val images of a half.

Images that belong together are in one fold: near-duplicates, and those of a group, such as a patient. Each
class is spread evenly: if every image could be moved by itself, the folds would differ by one image of each
class at most, and larger groups are placed first, so that single images even out what they leave.

Groups of equal size stand in the order of a hash of the seed and of their first image's id, so equal images
and seeds give equal folds on every machine.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise

import pandas as pd

from tasks.support.cli import InputError

#: The splits whose images are drawn.
DRAWN = ("Train", "Val")


def groups_of(ids: Iterable[str], together: Iterable[Iterable[str]]) -> dict[str, str]:
    """The group of each image, as the first id in it: the images that belong together, also through others.

    Args:
        ids: the images.
        together: sets of images that belong together; others than `ids` are ignored.
    """
    parent = {image_id: image_id for image_id in ids}

    def root(image_id: str) -> str:
        while parent[image_id] != image_id:
            parent[image_id] = image_id = parent[parent[image_id]]
        return image_id

    for members in together:
        for one, other in pairwise(image_id for image_id in members if image_id in parent):
            first, second = sorted((root(one), root(other)))
            parent[second] = first
    return {image_id: root(image_id) for image_id in parent}


def draw_folds(images: pd.DataFrame, group_of: Mapping[str, str], folds: int, seed: int) -> pd.DataFrame:
    """The fold of each image, as the columns `id` and `fold` (0 to folds - 1), in the order of `images`.

    Args:
        images: one row per image, with the columns `id` and `class`.
        group_of: the group of each image.

    Raises:
        InputError: a fold would have no image of some class.
    """
    members: defaultdict[str, list[str]] = defaultdict(list)
    for image_id in images["id"]:
        members[group_of[image_id]].append(image_id)
    class_of = dict(zip(images["id"], images["class"], strict=True))
    counts = {group: Counter(class_of[i] for i in ids) for group, ids in members.items()}
    fold_of = _placed(counts, folds, seed)
    _refuse_empty(counts, fold_of, folds)
    found = [fold_of[group_of[image_id]] for image_id in images["id"]]
    return pd.DataFrame({"id": images["id"].to_numpy(), "fold": found})


def _placed(counts: Mapping[str, Counter[str]], folds: int, seed: int) -> dict[str, int]:
    """The fold of each group: where its classes have the fewest images, then where there are the fewest."""
    held: list[Counter[str]] = [Counter() for _ in range(folds)]
    placed = {}
    for group in sorted(counts, key=lambda name: (-counts[name].total(), _lot(seed, name))):
        own = counts[group]

        def cost(fold: int, own: Counter[str] = own) -> tuple[int, int, int]:
            return sum(number * held[fold][name] for name, number in own.items()), held[fold].total(), fold

        placed[group] = min(range(folds), key=cost)
        held[placed[group]].update(own)
    return placed


def _lot(seed: int, group: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{group}".encode()).digest()


def _refuse_empty(counts: Mapping[str, Counter[str]], fold_of: Mapping[str, int], folds: int) -> None:
    for name in sorted({name for of_group in counts.values() for name in of_group}):
        having = [group for group, own in counts.items() if own[name]]
        if len({fold_of[group] for group in having}) < folds:
            number = sum(counts[group][name] for group in having)
            raise InputError(
                f"folds: {folds}: each fold needs an image of {name}, but the {number} Train and Val images "
                f"of this class are in {len(having)} groups that must not be split; set fewer folds"
            )


def drawn_images(images: pd.DataFrame, dropped: "pd.Series[str]") -> pd.DataFrame:
    """The images that folds are drawn from: Train and Val, without those that the audit drops."""
    return images[images["split"].isin(DRAWN) & ~images["id"].isin(dropped)]
