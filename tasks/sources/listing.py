"""Lists the dataset files of a source, with their sizes and digests, without fetching them.

A file is identified by its place in `data/raw`. A zip, its unpacked folder and the dataset made from either
therefore have the same listing.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

from tasks.common.raw import CLASSES, SPLITS, Kind, RawDataset, member_name, sha256, shard_name
from tasks.sources.archives import ZipSource
from tasks.sources.layout import LAYOUT_EXAMPLE, LeftOut, describe_left_out, left_out, place_of
from tasks.sources.source import Source, Stamp
from tasks.support.cli import InputError

#: Characters that a shard, a table or a log cannot hold: controls, backslashes, and bytes that are not UTF-8.
UNUSABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ud800-\udfff]")


class Image(NamedTuple):
    """One X-ray of a source, not read yet. Sorts in the order of the manifest."""

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
    """The location of a file within `data/raw`."""

    shard: str
    member: str


Images = dict[Image, dict[Kind, str]]
Listing = dict[PlaceInLayout, Stamp]


def find_images(source: Source, where: str) -> Images:
    """Find the source's images, each with the names of its files.

    Raises:
        InputError: no file is in the layout of COVID-QU-Ex, two files have the same place in it, or a file
            name cannot be stored.
    """
    images: Images = {}
    for file in source.names():
        place = place_of(file, source.base)
        if isinstance(place, str):
            continue
        half, split, image_class, kind, name = place
        refuse_unusable_name(name, file, where)
        files = images.setdefault(Image(half, split, image_class, name), {})
        if kind in files:
            raise InputError(f"{where}: {files[kind]!r} and {file!r} are the same file of the dataset")
        files[kind] = file
    if not images:
        hint = "".join(f" {line}" for line in describe_left_out(find_left_out(source)[:1], where))
        raise InputError(
            f"{where}: no file is in the layout of COVID-QU-Ex, for example {LAYOUT_EXAMPLE!r}; "
            f"is it the complete archive or its unpacked folder?{hint}"
        )
    return images


def refuse_unusable_name(name: str, file: str, where: str) -> None:
    """Refuse a name that cannot be stored.

    Raises:
        InputError: the name holds such a character.
    """
    if found := UNUSABLE.search(name):
        what = "is not UTF-8" if found[0] >= "\ud800" else f"contains {found[0]!r}"
        raise InputError(f"{where}: {file!r}: this file name {what}; rename the file")


def find_left_out(source: Source) -> list[LeftOut]:
    """The source's files that are not in the layout, by reason."""
    return left_out(source.names(), source.base)


def list_files(source: Source, images: Images) -> Listing | None:
    """The stamp of every file of the images; None if the source never changes.

    Raises:
        InputError: a file name leads outside the source.
    """
    places = {file: image.place(kind) for image, files in images.items() for kind, file in files.items()}
    stamps = source.stamps(places)
    return None if stamps is None else {places[file]: stamp for file, stamp in stamps.items()}


def fingerprint(listing: Listing) -> str:
    """A digest of all places and stamps, in any order; `data.fingerprint` pins it.

    It detects changes. Like the CRC-32s that it is computed from, it does not protect against deliberate
    tampering; `data.sha256` does.
    """
    rows = sorted((*place, *stamp) for place, stamp in listing.items())
    # The prefix f prevents YAML from reading a digest of decimal digits as a number.
    return "f" + sha256([json.dumps(rows).encode()])[:31]


class Stored:
    """The files of a `data/raw`, listed from the directories of its shards.

    Raises:
        OSError, ValueError, KeyError: the manifest or one of its shards is missing or damaged.
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
        """Whether the file exists and matches the stamp of a source; False if the stamp cannot tell.

        Raises:
            InputError: the file is damaged.
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
            InputError: the file is damaged.
        """
        return self._shards[place.shard].read(place.member)


def open_earlier(raw: Path | None) -> Stored | None:
    """Open an earlier `data/raw`; None if there is none, or (with a message) if it is incomplete."""
    if raw is None or not raw.exists():
        return None
    try:
        return Stored(raw)
    except (OSError, ValueError, KeyError) as error:
        print(f"{raw}: ignored, not a complete dataset: {error}", flush=True)
        return None
