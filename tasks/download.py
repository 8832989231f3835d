"""Stage `download`: copies the dataset from any source to `data/raw`; equal images give identical bytes.

With `--external`, as the stage `download_external`, it copies the Test images of an external dataset.
"""

import argparse
import itertools
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from tasks.common.files import replacing, write_table
from tasks.common.raw import (
    CLASSES,
    GROUP_OF,
    GROUPS,
    HALF_KINDS,
    KIND_FOLDERS,
    MANIFEST,
    MANIFEST_COLUMNS,
    SPLITS,
    Kind,
    sha256,
    shard_name,
    write_member,
)
from tasks.settings.data import DataSource
from tasks.settings.layout import Layout
from tasks.settings.params import load_params
from tasks.sources.layout import describe_left_out
from tasks.sources.listing import (
    Image,
    Images,
    Listing,
    PlaceInLayout,
    Stored,
    fingerprint,
    list_files,
    open_earlier,
)
from tasks.sources.open import how_to_accept, open_source, section_of
from tasks.sources.own import Found, describe, find
from tasks.sources.source import Source
from tasks.support.cli import InputError, stage_main, without_secrets
from tasks.support.progress import progress
from tasks.support.repository import user_repository


def download(
    source: Source,
    out: Path,
    where: str,
    pinned: str | None = None,
    previous: Path | None = None,
    layout: Layout | None = None,
    external: str | None = None,
) -> None:
    """Copy the images and masks of `source` into the shards and the manifest of `out`.

    Files are copied unchanged; preprocessing checks whether the images are usable.

    Args:
        source: the files, in the layout of COVID-QU-Ex or in `layout`.
        out: the folder to create; `tasks.common.raw` describes its contents.
        where: the name of the source in messages.
        pinned: the fingerprint that the source must have; None accepts any files.
        previous: an earlier `out`, if there is one. Files that the source has not changed are copied from
            it; the bytes of `out` do not depend on it.
        layout: the user's own layout, if it is not that of COVID-QU-Ex.
        external: the name of the external dataset, if it is one.

    Raises:
        InputError: no file has this layout, a file cannot be read, the fingerprint does not match, or the
            source changed during the download.
        UnavailableError: a remote source cannot be reached.
    """
    found = find(source, where, layout, external)
    images = found.images
    total = sum(len(files) for files in images.values())
    print(f"{where}: {len(images)} images, {total} files", flush=True)
    for line in (*describe_left_out(found.left_out, where), *describe(found, layout)):
        print(line, flush=True)
    # Only if needed: for a folder this reads every file.
    listing = list_files(source, images) if pinned or previous else None
    if pinned:
        _refuse_another(pinned, listing, where, section_of(external))
    try:
        earlier = _Earlier(open_earlier(previous), listing)
        fetched = _copy_all(source, found, listing, earlier, out, where)
    except _EarlierDamagedError as error:
        print(f"{error}; the earlier dataset is ignored", flush=True)
        fetched = _copy_all(source, found, listing, _Earlier(None, None), out, where)
    if previous:
        print(f"{fetched} of {total} files fetched, {total - fetched} unchanged", flush=True)


def _copy_all(
    source: Source, found: Found, listing: Listing | None, earlier: "_Earlier", out: Path, where: str
) -> int:
    """Create `out`; return the number of files read from the source."""
    images = found.images
    files = {
        image.place(kind): images[image][kind] for image in sorted(images) for kind in _kinds(images, image)
    }
    needed = [file for place, file in files.items() if place not in earlier.same]
    with source.reading(needed) as contents, replacing(out) as partial:
        partial.mkdir()
        rows = []
        steps = progress(sorted(images), len(images), "download")
        for (half, split), group in itertools.groupby(steps, key=lambda image: image[:2]):
            with zipfile.ZipFile(partial / shard_name(half, SPLITS[split]), "w") as shard:
                for image in group:
                    own = {
                        kind: earlier.read(place)
                        if (place := image.place(kind)) in earlier.same
                        else next(contents)
                        for kind in _kinds(images, image)
                    }
                    rows.append(_store(image, own, shard))
        manifest = pd.DataFrame(rows, columns=MANIFEST_COLUMNS)
        write_table(manifest, partial / MANIFEST)
        if found.groups:
            (partial / GROUPS).write_text(json.dumps(found.groups._asdict()) + "\n", encoding="utf-8")
            write_table(_numbered(found.group_of), partial / GROUP_OF)
        if listing is not None and not _is_as_listed(Stored(partial), listing):
            raise InputError(f"{where}: files changed during the download; run it again when nothing writes")
    print(manifest.groupby(["half", "split", "class"], sort=False).size().to_string(), flush=True)
    return len(needed)


def _numbered(group_of: Mapping[Image, str]) -> pd.DataFrame:
    """The group of each image, numbered in the order of their first images: a name may be a patient's."""
    images = sorted(group_of)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(group_of[i] for i in images))}
    return pd.DataFrame([(i.id, numbers[group_of[i]]) for i in images], columns=["id", "group"])


def _kinds(images: Images, image: Image) -> list[Kind]:
    """The kinds of files that an image has, in storage order."""
    return [kind for kind in HALF_KINDS[image.half] if kind in images[image]]


def _is_as_listed(stored: Stored, listing: Listing) -> bool:
    """Whether every file has the CRC-32 that it was listed with. Buckets may list no CRC-32."""
    return stored.listing.keys() == listing.keys() and all(
        stored.holds(place, stamp) for place, stamp in listing.items() if isinstance(stamp.digest, int)
    )


def _refuse_another(pinned: str, listing: Listing | None, where: str, section: str) -> None:
    assert listing is not None, "tasks.settings.data forbids pinning a source that never changes"
    found = fingerprint(listing)
    if found != pinned:
        raise InputError(
            f"{where}: the files do not match {section}.fingerprint: found {found}, pinned {pinned}; "
            f"to accept the current files, run: {how_to_accept(found, section)}"
        )


class _EarlierDamagedError(Exception):
    """The earlier dataset cannot be read."""


class _Earlier:
    """The files of an earlier dataset; `same` are the places of those that equal the source's files."""

    def __init__(self, stored: Stored | None, listing: Listing | None) -> None:
        self._stored = stored
        self.same: set[PlaceInLayout] = set()
        if stored and listing:
            with self._whole():
                self.same = {place for place, stamp in listing.items() if stored.holds(place, stamp)}

    def read(self, place: PlaceInLayout) -> bytes:
        assert self._stored
        with self._whole():
            return self._stored.read(place)

    @staticmethod
    @contextmanager
    def _whole() -> Iterator[None]:
        try:
            yield
        except (InputError, OSError) as error:
            raise _EarlierDamagedError(str(error)) from None


def _store(image: Image, files: dict[Kind, bytes], shard: zipfile.ZipFile) -> list[str]:
    """Store the image's files in its shard; return its row of the manifest."""
    hashes = dict.fromkeys(KIND_FOLDERS, "")
    for kind, content in files.items():
        hashes[kind] = sha256([content])
        write_member(shard, image.place(kind).member, content)
    return [image.id, image.half, SPLITS[image.split], CLASSES[image.image_class], *hashes.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("params", type=Path)
    parser.add_argument("raw", type=Path, help="folder to create")
    parser.add_argument("--external", metavar="NAME", help="an external dataset instead of the main one")
    args = parser.parse_args()
    params = load_params(args.params)
    data: DataSource = params.external[args.external] if args.external else params.data
    # DVC deletes data/raw before this stage runs, so the earlier dataset is elsewhere. It changes no result.
    previous = None if args.external else os.environ.get("RETRAIN_PREVIOUS_RAW")
    own_layout, section = data.layout is not None, section_of(args.external)
    source = open_source(data.source, user_repository(), data.sha256, own_layout, section)
    where = without_secrets(data.source)
    earlier = Path(previous) if previous else None
    download(source, args.raw, where, data.fingerprint, earlier, data.layout, args.external)


if __name__ == "__main__":
    stage_main(main)
