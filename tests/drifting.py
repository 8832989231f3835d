"""Phantoms as an inbox gets them, undrifted and drifted, and bundles that know how undrifted ones look."""

import os
import shutil
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.bundles.drift import reference_of
from tasks.bundles.files import BUNDLE_FILE, FINGERPRINT_FILE
from tasks.bundles.fingerprint import Fingerprint, fingerprint_of, thumbnail
from tasks.bundles.schema import Bundle
from tasks.sources.phantom import draw_phantom
from tests.helpers import png

Pixels = NDArray[np.uint8]

#: Shares of the classes, as in COVID-QU-Ex.
MIX = (0.66, 0.165, 0.175)
TRAIN, VAL, NEW = range(3)


def chests(split: int, count: int, seed: int = 0) -> Iterator[Pixels]:
    """Phantoms of a split, uint8 (64, 64), of classes in the usual mix."""
    groups = np.random.default_rng([seed, split]).choice(len(MIX), count, p=MIX)
    for index, group in enumerate(groups):
        yield draw_phantom(split, int(group), index, seed=seed, size=64).image


def thumbnails(images: Iterator[Pixels]) -> NDArray[np.float64]:
    return np.stack([thumbnail(Image.fromarray(image)) for image in images]).astype(float)


def darker(image: Pixels) -> Pixels:
    return (image * 0.7).astype(np.uint8)


def inverted(image: Pixels) -> Pixels:
    return 255 - image


def other_scanner(image: Pixels) -> Pixels:
    """A smaller field of view, and another grey curve."""
    inner = Image.fromarray(image).resize(image.shape[::-1], Image.Resampling.BILINEAR, box=(4, 4, 60, 60))
    return np.rint(255 * (np.asarray(inner) / 255) ** 1.3).astype(np.uint8)


def make_fingerprint() -> Fingerprint:
    train = thumbnails(chests(TRAIN, 300))
    return fingerprint_of(train, np.full(len(train), np.nan))


def with_reference(bundle: Path, to: Path) -> Path:
    """A copy of a tiny bundle, whose fingerprint is that of many phantoms."""
    shutil.copytree(bundle, to)
    fingerprint = make_fingerprint()
    reference = reference_of(fingerprint.measure(thumbnails(chests(VAL, 200))))
    content = fingerprint.to_bytes(reference.arrays())
    (to / FINGERPRINT_FILE).write_bytes(content)
    described = Bundle.parse((to / BUNDLE_FILE).read_text(), "bundle.json")
    described = described.model_copy(update={"fingerprint": sha256(content).hexdigest()})
    (to / BUNDLE_FILE).write_text(described.to_json())
    return to


def fill(inbox: Path, images: Iterator[Pixels], name: str = "image", age: float = 60.0) -> None:
    """Write images into an inbox as files that were last changed some seconds ago."""
    inbox.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        put(inbox / f"{name}-{index:03}.png", png(image), age)


def put(file: Path, content: bytes, age: float = 60.0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    os.utime(file, (time.time() - age,) * 2)
