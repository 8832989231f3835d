"""Stage `download`: from any source to `data/raw`, the same bytes for the same images."""

import argparse
import itertools
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from tasks.common.files import replacing, write_table
from tasks.common.raw import (
    CLASSES,
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
from tasks.settings.schema import load_params
from tasks.sources.listing import (
    Image,
    Images,
    Listing,
    PlaceInLayout,
    Stored,
    find_images,
    fingerprint,
    list_files,
    open_earlier,
)
from tasks.sources.open import open_source
from tasks.sources.source import Source
from tasks.support.cli import InputError, stage_main, without_secrets
from tasks.support.progress import progress


def download(
    source: Source, out: Path, where: str, pinned: str | None = None, previous: Path | None = None
) -> None:
    """Copy the images and masks of `source` into the shards and the manifest of `out`.

    Files are taken as they are: whether they are good images is for preprocessing to say.

    Args:
        source: the files, in the layout of COVID-QU-Ex.
        out: the folder to make, described in `tasks.common.raw`.
        where: the name of the source in messages.
        pinned: the fingerprint that the source has to have; None takes whatever it holds.
        previous: an earlier `out`, if it is there. What it holds as the source does is taken from it,
            which changes no byte of `out`.

    Raises:
        InputError: no file has that layout, a file can't be read, the source has another fingerprint, or it
            changed while it was read.
        UnavailableError: the source is far away and can't be reached.
    """
    images = find_images(source, where)
    total = sum(len(files) for files in images.values())
    print(f"{where}: {len(images)} images, {total} files", flush=True)
    # Not without need: for a folder it reads every file.
    listing = list_files(source, images) if pinned or previous else None
    if pinned:
        _refuse_another(pinned, listing, where)
    try:
        earlier = _Earlier(open_earlier(previous), listing)
        fetched = _copy_all(source, images, listing, earlier, out, where)
    except _EarlierDamagedError as error:
        print(f"{error}; the earlier dataset is ignored", flush=True)
        fetched = _copy_all(source, images, listing, _Earlier(None, None), out, where)
    if previous:
        print(f"{fetched} of {total} files fetched, {total - fetched} as before", flush=True)


def _copy_all(
    source: Source, images: Images, listing: Listing | None, earlier: "_Earlier", out: Path, where: str
) -> int:
    """Make `out`; how many files came from the source."""
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
        if listing is not None and not _is_as_listed(Stored(partial), listing):
            raise InputError(f"{where}: files changed while they were read; start again when nobody writes")
    print(manifest.groupby(["half", "split", "class"], sort=False).size().to_string(), flush=True)
    return len(needed)


def _kinds(images: Images, image: Image) -> list[Kind]:
    """The files that an image has, in the order in which they are stored."""
    return [kind for kind in HALF_KINDS[image.half] if kind in images[image]]


def _is_as_listed(stored: Stored, listing: Listing) -> bool:
    """Whether every file has the CRC-32 that it was listed with. A bucket gives that or nothing."""
    return stored.listing.keys() == listing.keys() and all(
        stored.holds(place, stamp) for place, stamp in listing.items() if isinstance(stamp.digest, int)
    )


def how_to_accept(found: str) -> str:
    """The command that takes what the source holds now."""
    return f"cxr params --set data.fingerprint={found}"


def _refuse_another(pinned: str, listing: Listing | None, where: str) -> None:
    assert listing is not None, "tasks.settings.schema lets nobody pin a source that never changes"
    found = fingerprint(listing)
    if found != pinned:
        raise InputError(
            f"{where}: holds other files than data.fingerprint pins: found {found}, pinned {pinned}; "
            f"to accept what is there now: {how_to_accept(found)}"
        )


class _EarlierDamagedError(Exception):
    """The earlier dataset can't be read."""


class _Earlier:
    """What an earlier dataset holds as the source does, by the places in `same`."""

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
    """Put the image's files into its shard; its row of the manifest."""
    hashes = dict.fromkeys(KIND_FOLDERS, "")
    for kind, content in files.items():
        hashes[kind] = sha256([content])
        write_member(shard, image.place(kind).member, content)
    return [image.id, image.half, SPLITS[image.split], CLASSES[image.image_class], *hashes.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("params", type=Path)
    parser.add_argument("raw", type=Path, help="the folder to make")
    args = parser.parse_args()
    data = load_params(args.params).data
    # A run in a checkout of its own still finds what lies beside the user's params.yaml.
    base = Path(os.environ.get("RETRAIN_SOURCE_ROOT", "."))
    # DVC removes data/raw before this runs, so an earlier one lies elsewhere. No result depends on it.
    previous = os.environ.get("RETRAIN_PREVIOUS_RAW")
    source = open_source(data.source, base, data.sha256)
    where = without_secrets(data.source)
    download(source, args.raw, where, data.fingerprint, Path(previous) if previous else None)


if __name__ == "__main__":
    stage_main(main)
