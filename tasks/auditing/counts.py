"""Counts of images, beside those that are published for COVID-QU-Ex."""

import itertools

import pandas as pd

from tasks.common.raw import CLASSES, SPLITS

#: Name of the totals in counts.csv.
ALL = "all"
#: Published counts of COVID-QU-Ex: half -> (split, class) -> images. Of the lung half only totals are known.
PUBLISHED = {
    "infection": {
        ("Train", "COVID-19"): 1864, ("Train", "Non-COVID"): 932, ("Train", "Normal"): 932,
        ("Val", "COVID-19"): 466, ("Val", "Non-COVID"): 233, ("Val", "Normal"): 233,
        ("Test", "COVID-19"): 583, ("Test", "Non-COVID"): 292, ("Test", "Normal"): 291,
        ("Train", ALL): 3728, ("Val", ALL): 932, ("Test", ALL): 1166,
        (ALL, "COVID-19"): 2913, (ALL, "Non-COVID"): 1457, (ALL, "Normal"): 1456,
        (ALL, ALL): 5826,
    },
    "lung": {
        ("Train", ALL): 21715, ("Val", ALL): 5417, ("Test", ALL): 6788,
        (ALL, "COVID-19"): 11956, (ALL, "Non-COVID"): 11263, (ALL, "Normal"): 10701,
        (ALL, ALL): 33920,
    },
}  # fmt: skip


def count(manifest: pd.DataFrame, images: pd.DataFrame, published: bool) -> pd.DataFrame:
    """One row per half, split and class, totals included; `published` is empty if unknown."""
    rows = []
    for half in sorted(set(manifest["half"])):
        expected = PUBLISHED[half] if published else {}
        for split, image_class in itertools.product((*SPLITS, ALL), (*CLASSES, ALL)):
            found, usable = (_count(table, half, split, image_class) for table in (manifest, images))
            rows.append((half, split, image_class, found, usable, expected.get((split, image_class))))
    table = pd.DataFrame(rows, columns=["half", "split", "class", "images", "usable", "published"])
    return table.astype({"published": "Int64"})


def _count(table: pd.DataFrame, half: str, split: str, image_class: str) -> int:
    wanted = table["half"] == half
    if split != ALL:
        wanted &= table["split"] == split
    if image_class != ALL:
        wanted &= table["class"] == image_class
    return int(wanted.sum())
