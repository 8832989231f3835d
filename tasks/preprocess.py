"""Stage `preprocess`: resizes the images and masks of `data/raw` and packs them into a few arrays.

    data/packed/S/images.csv                     one row per usable image
    data/packed/S/rejected.csv                   id and reason of each excluded image
    data/packed/S/thumbnails.npy                 uint8 (N, 32, 32) for any S, in the order of images.csv
    data/packed/S/infection/Train/image.npy      uint8 (N, S, S), grey values 0..255
    data/packed/S/infection/Train/lung.npy       uint8 (N, S, S), marked share of each pixel, 255 if fully
                                                 marked; likewise infection.npy. Only masks that exist

Read the arrays with `numpy.load(..., mmap_mode="r")`; the column `row` is an image's index in them.
"""

import argparse
import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from tasks.common.cores import Processes
from tasks.common.files import replacing, write_table
from tasks.common.pictures import read_grey, read_mask
from tasks.common.png import UnreadableError
from tasks.common.raw import KIND_FOLDERS, KIND_WORDS, Kind, RawDataset, sha256
from tasks.packed.writer import ArrayWriter
from tasks.settings.params import load_params
from tasks.support.cli import InputError, stage_main
from tasks.support.progress import progress

#: Images per job of a worker process; limits memory whatever the size of the dataset.
CHUNK = 32
#: Columns of images.csv that come from the manifest.
COLUMNS = ["id", "half", "split", "class"]
THUMBNAIL = (32, 32)

#: The value of marked pixels, where masks say nothing else.
MARKED = 255
#: Masks from which the value of marked pixels is taken, and masks that are read to find as many with marks.
VOTERS, CANDIDATES = 25, 1000

Marks = Mapping[Kind, int]  # the value of marked pixels in each kind of mask


class Packed(NamedTuple):
    """A usable image: its arrays (each uint8 (S, S)), its thumbnail, and its row of images.csv."""

    arrays: dict[Kind, np.ndarray]
    thumbnail: np.ndarray
    facts: dict[str, object]


class Rejected(NamedTuple):
    reason: str


class UnusableError(Exception):
    """An image cannot be used, and why."""


def preprocess(raw: Path, out: Path, image_size: int, max_rejected: float) -> None:
    """Pack every usable image with its masks, with `image_size` pixels per side.

    Images are resized bilinearly, masks and thumbnails by area averaging: the shares in a 128x128 mask keep
    the position of its edges at 256x256. Unusable images are excluded and listed with their reason. Memory
    use does not grow with the dataset.

    A mask holds 0 and one other value, the same in all masks of its kind: 255, or what most of them use.

    Raises:
        InputError: more than the share `max_rejected` of the images is unusable.
    """
    dataset = RawDataset(raw)
    manifest = dataset.manifest
    of_half = {half: _kinds_and_marks(dataset, half) for half in dict.fromkeys(manifest["half"])}
    with replacing(out) as partial, ExitStack() as stack:
        partial.mkdir()
        found = _Found(stack.enter_context(ArrayWriter(partial / "thumbnails.npy", THUMBNAIL)))
        processes = stack.enter_context(Processes())
        for (half, split), images in manifest.groupby(["half", "split"], sort=False):
            kinds, marks = of_half[half]
            rows = [dict(zip(COLUMNS, row, strict=True)) for row in images[COLUMNS].itertuples(index=False)]
            results = _pack_all(processes, raw, list(images["id"]), image_size, marks)
            shown = progress(results, len(rows), f"preprocess {half} {split}")
            with _writers(partial / str(half) / str(split), kinds, image_size) as writers:
                for row, result in zip(rows, shown, strict=True):
                    found.add(row, result, writers)
        _refuse_too_many(found.rejected, len(manifest), max_rejected)
        write_table(pd.DataFrame(found.rows), partial / "images.csv")
        write_table(pd.DataFrame(found.rejected, columns=["id", "reason"]), partial / "rejected.csv")
    packed, excluded = len(found.rows), len(found.rejected)
    print(f"packed {packed} images at {image_size}x{image_size}, excluded {excluded}", flush=True)


class _Found:
    """The usable images of the dataset, whose thumbnails are written at once, and the rejected ones."""

    def __init__(self, thumbnails: ArrayWriter) -> None:
        self._thumbnails = thumbnails
        self.rows: list[dict[str, object]] = []
        self.rejected: list[tuple[str, str]] = []
        """Id and reason."""

    def add(
        self, row: dict[str, object], result: Packed | Rejected, writers: Mapping[Kind, ArrayWriter]
    ) -> None:
        """Append the arrays of an image to those of its split, or note why it is excluded."""
        if isinstance(result, Rejected):
            self.rejected.append((str(row["id"]), result.reason))
            print(f"excluded: {row['id']}: {result.reason}", flush=True)
            return
        self.rows.append(row | {"row": writers["image"].count} | result.facts)
        self._thumbnails.append(result.thumbnail)
        for kind, writer in writers.items():
            writer.append(result.arrays[kind])


@contextmanager
def _writers(folder: Path, kinds: Sequence[Kind], image_size: int) -> Iterator[dict[Kind, ArrayWriter]]:
    """Open the arrays of a split in a new folder, one for each kind."""
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        shape = (image_size, image_size)
        yield {kind: stack.enter_context(ArrayWriter(folder / f"{kind}.npy", shape)) for kind in kinds}


def _pack_all(
    processes: Processes, raw: Path, ids: Sequence[str], image_size: int, marks: Marks
) -> Iterator[Packed | Rejected]:
    """Pack images in several processes, in the order of their ids."""
    jobs = ((raw, ids[i : i + CHUNK], image_size, marks) for i in range(0, len(ids), CHUNK))
    return itertools.chain.from_iterable(processes.map(_pack_chunk, jobs))


def _refuse_too_many(rejected: Sequence[tuple[str, str]], total: int, max_rejected: float) -> None:
    if len(rejected) > max_rejected * total or len(rejected) == total:
        first_id, first_reason = rejected[0]
        raise InputError(
            f"{len(rejected)} of {total} images cannot be used, more than preprocess.max_rejected = "
            f"{max_rejected:g} allows; the first is {first_id}: {first_reason}"
        )


def _kinds_and_marks(dataset: RawDataset, half: str) -> tuple[tuple[Kind, ...], Marks]:
    """The kinds of files of a half, and the value of marked pixels in its masks."""
    kinds = dataset.kinds(half)
    ids = list(dataset.manifest["id"][dataset.manifest["half"] == half])
    marks: dict[Kind, int] = {kind: marked_value(dataset, ids, kind) for kind in kinds if kind != "image"}
    for kind, value in marks.items():
        if value != MARKED:
            print(f"{half} half: the {KIND_WORDS[kind]}s mark with {value} instead of {MARKED}", flush=True)
    empty = sum(dataset.is_empty_by_class(image_id, "infection") for image_id in ids)
    if "infection" in kinds and empty:
        print(f"{half} half: controls without an infection mask, which counts as empty: {empty}", flush=True)
    if "lung" not in kinds:
        print(f"{half} half: no image has a lung mask", flush=True)
    return kinds, marks


def marked_value(dataset: RawDataset, ids: Sequence[str], kind: Kind) -> int:
    """The value of marked pixels in most of the masks of a kind; 255 if none of those read has marks.

    Reads masks at even distances, until `VOTERS` of them have marks of a single value.
    """
    step = max(1, len(ids) // VOTERS)
    order = itertools.chain.from_iterable(ids[start::step] for start in range(step))
    votes: Counter[int] = Counter()
    for image_id in itertools.islice(order, CANDIDATES):
        try:
            levels = np.unique(np.asarray(_read(dataset, image_id, kind)))
        except UnusableError:
            continue
        if len(found := levels[levels != 0]) == 1:
            votes[int(found[0])] += 1
        if votes.total() == VOTERS:
            break
    return max(votes, key=lambda value: (votes[value], value)) if votes else MARKED


def _pack_chunk(job: tuple[Path, Sequence[str], int, Marks]) -> list[Packed | Rejected]:
    raw, ids, image_size, marks = job
    return [pack_image(_opened(raw), image_id, image_size, marks) for image_id in ids]


@functools.lru_cache(maxsize=1)
def _opened(raw: Path) -> RawDataset:
    """The dataset; its manifest and shards are opened once per process."""
    return RawDataset(raw)


def pack_image(dataset: RawDataset, image_id: str, image_size: int, marks: Marks) -> Packed | Rejected:
    """Read, check and resize one image with its masks, which are those in `marks`."""
    try:
        image = _read(dataset, image_id, "image")
        masks = {
            kind: _checked(kind, _read(dataset, image_id, kind), image, value)
            for kind, value in marks.items()
        }
    except UnusableError as error:
        return Rejected(str(error))
    size = (image_size, image_size)
    arrays: dict[Kind, np.ndarray] = {"image": _resized(image, size, Image.Resampling.BILINEAR)}
    for kind, mask in masks.items():
        arrays[kind] = _resized(Image.fromarray(mask * np.uint8(255)), size, Image.Resampling.BOX)
    pixels = np.asarray(image)
    lung, infection = masks.get("lung"), masks.get("infection")
    facts = {
        "height": image.height,
        "width": image.width,
        "sha256": sha256([str(pixels.shape).encode(), pixels.tobytes()]),
        "lung_area": None if lung is None else _share(lung, pixels.size),
        "lung_correlation": None if lung is None else lung_correlation(pixels, lung),
        "infection_area": None if infection is None else _share(infection, pixels.size),
        "infection_outside_lung": None
        if infection is None or lung is None
        else _share(infection & ~lung, int(np.count_nonzero(infection))),
    }
    return Packed(arrays, _resized(image, THUMBNAIL, Image.Resampling.BOX), facts)


def _read(dataset: RawDataset, image_id: str, kind: Kind) -> Image.Image:
    """The picture as 8-bit grey."""
    if dataset.is_empty_by_class(image_id, kind):
        return Image.new("L", _read(dataset, image_id, "image").size)
    content = dataset.read_bytes(image_id, kind)
    what = KIND_WORDS[kind]
    if content is None:
        raise UnusableError(f"the {what} is missing in {KIND_FOLDERS[kind]!r}")
    try:
        return read_grey(content) if kind == "image" else read_mask(content)
    except UnreadableError as error:
        raise UnusableError(f"the {what} {error}") from None


def _checked(kind: Kind, mask: Image.Image, image: Image.Image, value: int) -> np.ndarray:
    """The mask as a boolean array (H, W): where it has `value`, which marks pixels."""
    if mask.size != image.size:
        raise UnusableError(
            f"the {kind} mask is {mask.width}x{mask.height} but the image {image.width}x{image.height}"
        )
    levels = np.asarray(mask)
    marked: np.ndarray = levels == value
    if not (marked | (levels == 0)).all():
        other = levels[~marked & (levels != 0)].min()
        raise UnusableError(f"the {kind} mask is not binary: it contains {other} besides 0 and {value}")
    return marked


def _share(marked: np.ndarray, of: int) -> float:
    """Number of marked pixels divided by `of`; 0 if that is 0."""
    return int(np.count_nonzero(marked)) / of if of else 0.0


def lung_correlation(pixels: np.ndarray, lung: np.ndarray) -> float | None:
    """Pearson correlation of grey values and lung mask, within the mask's bounding box; None if undefined.

    It is negative for X-rays, where lungs are darker than the rest of the chest, and positive for inverted
    ones. The bounding box excludes the background beside the body, which may be black or white.
    """
    if not lung.any():
        return None
    rows, columns = (np.flatnonzero(lung.any(axis=axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    pixels, inside, grey = pixels[box], lung[box], np.arange(256)
    levels = np.bincount(pixels.ravel(), minlength=256)
    levels_inside = np.bincount(pixels[inside], minlength=256)
    # Python's integers: the result is the same on every machine, and large images cannot overflow.
    n, area = inside.size, int(np.count_nonzero(inside))
    total, square, total_inside = map(int, (levels @ grey, levels @ grey**2, levels_inside @ grey))
    scale = (n * square - total**2) * area * (n - area)
    return (n * total_inside - area * total) / math.sqrt(scale) if scale else None


def _resized(picture: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    pixels: np.ndarray = np.asarray(picture if picture.size == size else picture.resize(size, resampling))
    return pixels


def main() -> None:
    parser = argparse.ArgumentParser(description="Resize and pack the images and masks of data/raw.")
    parser.add_argument("params", type=Path)
    parser.add_argument("raw", type=Path, help="data/raw")
    parser.add_argument("packed", type=Path, help="folder to create")
    parser.add_argument("--image-size", type=int, required=True, help="pixels per side")
    args = parser.parse_args()
    params = load_params(args.params)
    preprocess(args.raw, args.packed, args.image_size, params.preprocess.max_rejected)


if __name__ == "__main__":
    stage_main(main)
