"""What a source holds, told without fetching it: the files of the dataset, each with its size and a digest.

A file is named by its place in `data/raw`, so that a zip and its unpacked folder have the same listing,
and so has the dataset that was made of them.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

from tasks.common.raw import (
    CLASSES,
    HALF_KINDS,
    KIND_FOLDERS,
    SPLITS,
    Kind,
    RawDataset,
    member_name,
    sha256,
    shard_name,
)
from tasks.sources.archives import ZipSource
from tasks.sources.source import Source, Stamp
from tasks.support.cli import InputError

# Not ._NAME.png, which a Mac adds to an archive for each file.
LAYOUT = re.compile(
    r"(?:^|.*/)(?P<half>Infection|Lung) Segmentation Data/(?:.*/)?"
    rf"(?P<split>{'|'.join(SPLITS)})/(?P<image_class>{'|'.join(CLASSES)})/"
    rf"(?P<folder>{'|'.join(KIND_FOLDERS.values())})/(?P<name>(?!\._)[^/]+)\.png$"
)
LAYOUT_EXAMPLE = "Infection Segmentation Data/Train/COVID-19/images/covid_1.png"


class Image(NamedTuple):
    """One X-ray of a source, before anything of it was read; sorts in the manifest's order."""

    half: str
    split: int
    image_class: int
    name: str

    @property
    def id(self) -> str:
        return f"{self.half}/{SPLITS[self.split]}/{CLASSES[self.image_class]}/{self.name}"

    def place(self, kind: Kind) -> "PlaceInLayout":
        shard = shard_name(self.half, SPLITS[self.split])
        return PlaceInLayout(shard, member_name(CLASSES[self.image_class], kind, self.name))


class PlaceInLayout(NamedTuple):
    """Where `data/raw` keeps a file."""

    shard: str
    member: str


Images = dict[Image, dict[Kind, str]]
Listing = dict[PlaceInLayout, Stamp]


def find_images(source: Source, where: str) -> Images:
    """The source's images, each with the names of its files.

    Raises:
        InputError: nothing is in the layout of COVID-QU-Ex, two files claim one place in it, or a file's
            name is no text.
    """
    kinds: dict[str, Kind] = {folder: kind for kind, folder in KIND_FOLDERS.items()}
    images: Images = {}
    for file in source.names():
        match = LAYOUT.match(file)
        if not match:
            continue
        half, kind = match["half"].lower(), kinds[match["folder"]]
        if kind not in HALF_KINDS[half]:
            continue
        if re.search("[\ud800-\udfff]", file):
            raise InputError(f"{where}: {file!r}: this name is not UTF-8; rename the file")
        split, image_class = SPLITS.index(match["split"]), CLASSES.index(match["image_class"])
        files = images.setdefault(Image(half, split, image_class, match["name"]), {})
        if kind in files:
            raise InputError(f"{where}: {files[kind]!r} and {file!r} are the same image twice")
        files[kind] = file
    if not images:
        raise InputError(
            f"{where}: no file is in the layout of COVID-QU-Ex, for example {LAYOUT_EXAMPLE!r}; "
            "is it the whole archive or its unpacked folder?"
        )
    return images


def list_files(source: Source, images: Images) -> Listing | None:
    """The stamp of every file of the images; None where the source never changes.

    Raises:
        InputError: a file's name leads out of the source.
    """
    places = {file: image.place(kind) for image, files in images.items() for kind, file in files.items()}
    stamps = source.stamps(places)
    return None if stamps is None else {places[file]: stamp for file, stamp in stamps.items()}


def fingerprint(listing: Listing) -> str:
    """One word for all places and stamps, in any order; what `data.fingerprint` pins.

    It tells that something changed. Like the CRC-32s that it stands on, it is no protection against
    somebody who wants it to stay the same; `data.sha256` is.
    """
    rows = sorted((*place, *stamp) for place, stamp in listing.items())
    # The f keeps YAML from reading as a number what happens to be digits alone.
    return "f" + sha256([json.dumps(rows).encode()])[:31]


class Stored:
    """The files of a `data/raw`, listed from its shards' own directories.

    Raises:
        OSError, ValueError, KeyError: the manifest or a shard that it names is missing or damaged.
    """

    def __init__(self, raw: Path) -> None:
        manifest = RawDataset(raw).manifest
        names = {shard_name(*row) for row in zip(manifest["half"], manifest["split"], strict=True)}
        self._shards = {name: ZipSource(raw / name) for name in names}
        self.listing: Listing = {
            PlaceInLayout(shard, member): stamp
            for shard, source in self._shards.items()
            for member, stamp in source.stamps(source.names()).items()
        }

    def holds(self, place: PlaceInLayout, stamp: Stamp) -> bool:
        """Whether a file is there and as a source's stamp says; no, where that doesn't tell.

        Raises:
            InputError: it is damaged.
        """
        own = self.listing.get(place)
        if own is None or own.size != stamp.size:
            return False
        if isinstance(stamp.digest, int):
            return own.digest == stamp.digest
        return stamp.digest == f"md5:{hashlib.md5(self.read(place), usedforsecurity=False).hexdigest()}"

    def read(self, place: PlaceInLayout) -> bytes:
        """The content of one file.

        Raises:
            InputError: it is damaged.
        """
        return self._shards[place.shard].read(place.member)


def open_earlier(raw: Path | None) -> Stored | None:
    """An earlier `data/raw`; None where there is none, or none that is whole, which one line then says."""
    if raw is None or not raw.exists():
        return None
    try:
        return Stored(raw)
    except (OSError, ValueError, KeyError) as error:
        print(f"{raw}: no whole dataset, ignored: {error}", flush=True)
        return None
