"""Stage `download`: from any source to `data/raw`, the same bytes for the same images."""

import argparse
import itertools
import os
import zipfile
from pathlib import Path

import pandas as pd

from tasks.cli import InputError, stage_main
from tasks.files import replacing, write_table
from tasks.listing import Image, Listing, Place, Stored, find_images, fingerprint, list_files, open_earlier
from tasks.params import load_params
from tasks.progress import progress
from tasks.raw import (
    CLASSES,
    HALF_KINDS,
    KIND_FOLDERS,
    MANIFEST_COLUMNS,
    SPLITS,
    Kind,
    sha256,
    shard_name,
    write_member,
)
from tasks.sources import Source, open_source


def download(
    source: Source, out: Path, where: str, pinned: str | None = None, previous: Path | None = None
) -> None:
    """Copy the images and masks of `source` into the shards and the manifest of `out`.

    Files are taken as they are: whether they are good images is for preprocessing to say.

    Args:
        source: the files, in the layout of COVID-QU-Ex.
        out: the folder to make, described in `tasks.raw`.
        where: the name of the source in messages.
        pinned: the fingerprint that the source has to have; None takes whatever it holds.
        previous: an earlier `out`, if it is there. What it holds as the source does is taken from it,
            which changes no byte of `out`.

    Raises:
        InputError: no file has that layout, a file can't be read, the source has another fingerprint, or it
            changed while it was read.
    """
    images = find_images(source, where)
    total = sum(len(files) for files in images.values())
    print(f"{where}: {len(images)} images, {total} files", flush=True)
    # Not without need: for a folder it reads every file.
    listing = list_files(source, images) if pinned or previous else None
    if pinned:
        _refuse_another(pinned, listing, where)
    reader = _Reader(source, listing or {}, open_earlier(previous))
    with replacing(out) as partial:
        partial.mkdir()
        rows = []
        steps = progress(sorted(images.items()), len(images), "download")
        for (half, split), group in itertools.groupby(steps, key=lambda step: step[0][:2]):
            with zipfile.ZipFile(partial / shard_name(half, SPLITS[split]), "w") as shard:
                rows += [_copy(reader, image, files, shard) for image, files in group]
        manifest = pd.DataFrame(rows, columns=MANIFEST_COLUMNS)
        write_table(manifest, partial / "manifest.csv")
        if listing is not None and Stored(partial).listing != listing:
            raise InputError(f"{where}: files changed while they were read; start again when nobody writes")
    print(manifest.groupby(["half", "split", "class"], sort=False).size().to_string(), flush=True)
    if previous:
        print(f"{reader.fetched} of {total} files fetched, {total - reader.fetched} as before", flush=True)


def how_to_accept(found: str) -> str:
    """The command that takes what the source holds now."""
    return f"python -m tasks.params --set data.fingerprint={found}"


def _refuse_another(pinned: str, listing: Listing | None, where: str) -> None:
    assert listing is not None, "tasks.params lets nobody pin a source that never changes"
    found = fingerprint(listing)
    if found != pinned:
        raise InputError(
            f"{where}: holds other files than data.fingerprint pins: found {found}, pinned {pinned}; "
            f"to accept what is there now: {how_to_accept(found)}"
        )


class _Reader:
    """Reads a file from the earlier dataset where that holds it as the source does, else from the source."""

    def __init__(self, source: Source, listing: Listing, earlier: Stored | None) -> None:
        self.fetched = 0
        self._source = source
        self._earlier = earlier
        before = earlier.listing if earlier else {}
        self._same = {place for place, stamp in listing.items() if before.get(place) == stamp}

    def read(self, place: Place, file: str) -> bytes:
        if self._earlier and place in self._same:
            try:
                return self._earlier.read(place)
            except (InputError, OSError) as error:
                print(f"{error}; the earlier dataset is ignored from here on", flush=True)
                self._earlier = None
        self.fetched += 1
        return self._source.read(file)


def _copy(reader: _Reader, image: Image, files: dict[Kind, str], shard: zipfile.ZipFile) -> list[str]:
    """Store the image's files in its shard; its row of the manifest."""
    hashes = dict.fromkeys(KIND_FOLDERS, "")
    for kind in HALF_KINDS[image.half]:
        if kind in files:
            place = image.place(kind)
            content = reader.read(place, files[kind])
            hashes[kind] = sha256([content])
            write_member(shard, place.member, content)
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
    source = open_source(data.source, relative_to=base)
    download(source, args.raw, data.source, data.fingerprint, Path(previous) if previous else None)


if __name__ == "__main__":
    stage_main(main)
