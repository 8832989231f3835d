"""Stage `download`: from any source to `data/raw`, the same bytes for the same images."""

import argparse
import itertools
import os
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from tasks.cli import InputError, stage_main
from tasks.files import replacing, write_table
from tasks.params import load_params
from tasks.progress import progress
from tasks.raw import (
    CLASSES,
    HALF_KINDS,
    KIND_FOLDERS,
    MANIFEST_COLUMNS,
    SPLITS,
    Kind,
    member_name,
    sha256,
    shard_name,
    write_member,
)
from tasks.sources import Source, open_source

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


def download(source: Source, out: Path, where: str) -> None:
    """Copy the images and masks of `source` into the shards and the manifest of `out`.

    Files are taken as they are: whether they are good images is for preprocessing to say.

    Args:
        source: the files, in the layout of COVID-QU-Ex.
        out: the folder to make, described in `tasks.raw`.
        where: the name of the source in messages.

    Raises:
        InputError: no file has that layout, or a file can't be read.
    """
    images = find_images(source, where)
    total = sum(len(files) for files in images.values())
    print(f"{where}: {len(images)} images, {total} files", flush=True)
    with replacing(out) as partial:
        partial.mkdir()
        rows = []
        steps = progress(sorted(images.items()), len(images), "download")
        for (half, split), group in itertools.groupby(steps, key=lambda step: step[0][:2]):
            with zipfile.ZipFile(partial / shard_name(half, SPLITS[split]), "w") as shard:
                rows += [_copy(source, image, files, shard) for image, files in group]
        manifest = pd.DataFrame(rows, columns=MANIFEST_COLUMNS)
        write_table(manifest, partial / "manifest.csv")
    print(manifest.groupby(["half", "split", "class"], sort=False).size().to_string(), flush=True)


def find_images(source: Source, where: str) -> dict[Image, dict[Kind, str]]:
    """The source's images, each with the names of its files.

    Raises:
        InputError: nothing is in the layout of COVID-QU-Ex, or two files claim one place in it.
    """
    kinds: dict[str, Kind] = {folder: kind for kind, folder in KIND_FOLDERS.items()}
    images: dict[Image, dict[Kind, str]] = {}
    for file in source.names():
        match = LAYOUT.match(file)
        if not match:
            continue
        half, kind = match["half"].lower(), kinds[match["folder"]]
        split, image_class = SPLITS.index(match["split"]), CLASSES.index(match["image_class"])
        files = images.setdefault(Image(half, split, image_class, match["name"]), {})
        if kind not in HALF_KINDS[half]:
            continue
        if kind in files:
            raise InputError(f"{where}: {files[kind]!r} and {file!r} are the same image twice")
        files[kind] = file
    if not images:
        raise InputError(
            f"{where}: no file is in the layout of COVID-QU-Ex, for example {LAYOUT_EXAMPLE!r}; "
            "is it the whole archive or its unpacked folder?"
        )
    return images


def _copy(source: Source, image: Image, files: dict[Kind, str], shard: zipfile.ZipFile) -> list[str]:
    """Store the image's files in its shard; its row of the manifest."""
    image_class = CLASSES[image.image_class]
    hashes = dict.fromkeys(KIND_FOLDERS, "")
    for kind in HALF_KINDS[image.half]:
        if kind in files:
            content = source.read(files[kind])
            hashes[kind] = sha256([content])
            write_member(shard, member_name(image_class, kind, image.name), content)
    return [image.id, image.half, SPLITS[image.split], image_class, *hashes.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("params", type=Path)
    parser.add_argument("raw", type=Path, help="the folder to make")
    args = parser.parse_args()
    where = load_params(args.params).data.source
    # A run in a checkout of its own still finds what lies beside the user's params.yaml.
    base = Path(os.environ.get("RETRAIN_SOURCE_ROOT", "."))
    download(open_source(where, relative_to=base), args.raw, where)


if __name__ == "__main__":
    stage_main(main)
