"""Stage `preprocess`: the images and masks of `data/raw`, resized and packed into a few arrays.

    data/packed/images.csv                     one row a usable image
    data/packed/rejected.csv                   id and reason of each image set aside
    data/packed/infection/Train/image.npy      uint8 (N, S, S), grey values 0..255
    data/packed/infection/Train/lung.npy       uint8 (N, S, S), 0 and 1; likewise infection.npy

The arrays are for `numpy.load(..., mmap_mode="r")`; an image's place in them is its `row`.
"""

import argparse
import functools
import io
import itertools
import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from tasks.arrays import ArrayWriter
from tasks.cli import InputError, stage_main
from tasks.cores import available_cores
from tasks.files import replacing, write_table
from tasks.params import load_params
from tasks.progress import progress
from tasks.raw import HALF_KINDS, KIND_FOLDERS, Kind, RawDataset, sha256

#: Images that a worker process takes at a time; bounds memory whatever the dataset's size.
CHUNK = 32
GREY_MODES = {"L", "LA", "1", "P", "RGB", "RGBA"}


class Packed(NamedTuple):
    """A usable image: its arrays, uint8 (S, S) each, and what the table says of it."""

    arrays: dict[Kind, np.ndarray]
    facts: dict[str, object]


class Rejected(NamedTuple):
    reason: str


class UnusableError(Exception):
    """Why an image can't be used."""


def preprocess(raw: Path, out: Path, image_size: int, max_rejected: float) -> None:
    """Pack every usable image with its masks, `image_size` pixels a side.

    Images are resized bilinearly, masks to the nearest pixel. What can't be used is set aside and
    listed with its reason. Memory does not grow with the dataset.

    Raises:
        InputError: more than the share `max_rejected` of the images can't be used.
    """
    manifest = RawDataset(raw).manifest
    table: list[dict[str, object]] = []
    rejected: list[tuple[str, str]] = []
    with replacing(out) as partial, _Packer(raw, image_size) as packer:
        for (half, split), images in manifest.groupby(["half", "split"], sort=False):
            folder = partial / str(half) / str(split)
            folder.mkdir(parents=True)
            with ExitStack() as stack:
                writers = {
                    kind: stack.enter_context(ArrayWriter(folder / f"{kind}.npy", (image_size, image_size)))
                    for kind in HALF_KINDS[str(half)]
                }
                rows: list[dict[str, object]] = [
                    {column: image[column] for column in ("id", "half", "split", "class")}
                    for _, image in images.iterrows()
                ]
                results = packer.pack(list(images["id"]))
                shown = progress(results, len(rows), f"preprocess {half} {split}")
                for row, result in zip(rows, shown, strict=True):
                    if isinstance(result, Rejected):
                        rejected.append((str(row["id"]), result.reason))
                        print(f"set aside: {row['id']}: {result.reason}", flush=True)
                        continue
                    table.append({**row, "row": writers["image"].count, **result.facts})
                    for kind, writer in writers.items():
                        writer.append(result.arrays[kind])
        _refuse_too_many(rejected, len(manifest), max_rejected)
        write_table(pd.DataFrame(table), partial / "images.csv")
        write_table(pd.DataFrame(rejected, columns=["id", "reason"]), partial / "rejected.csv")
    print(f"packed {len(table)} images at {image_size}x{image_size}, set {len(rejected)} aside", flush=True)


def _refuse_too_many(rejected: Sequence[tuple[str, str]], total: int, max_rejected: float) -> None:
    if len(rejected) > max_rejected * total or len(rejected) == total:
        first_id, first_reason = rejected[0]
        raise InputError(
            f"{len(rejected)} of {total} images can't be used, more than preprocess.max_rejected = "
            f"{max_rejected:g} allows; the first: {first_id}: {first_reason}"
        )


class _Packer:
    """Packs images in as many processes as there are cores."""

    def __init__(self, raw: Path, image_size: int) -> None:
        self._raw, self._image_size = raw, image_size
        self._cores = available_cores()
        # Processes start at the first image, each afresh: what torch or pandas hold open is not shared.
        self._pool = ProcessPoolExecutor(self._cores, mp_context=multiprocessing.get_context("spawn"))

    def pack(self, ids: list[str]) -> Iterator[Packed | Rejected]:
        """One result an id, in order.

        Raises:
            InputError: a process was killed.
        """
        jobs = iter([(self._raw, ids[i : i + CHUNK], self._image_size) for i in range(0, len(ids), CHUNK)])
        # Asking for a few chunks ahead keeps the processes busy and the memory flat.
        ahead = deque(self._pool.submit(_pack_chunk, job) for job in itertools.islice(jobs, 2 * self._cores))
        try:
            while ahead:
                yield from ahead.popleft().result()
                ahead.extend(self._pool.submit(_pack_chunk, job) for job in itertools.islice(jobs, 1))
        except BrokenProcessPool:
            raise InputError("a worker process was killed; is there enough memory?") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def _pack_chunk(job: tuple[Path, list[str], int]) -> list[Packed | Rejected]:
    raw, ids, image_size = job
    return [pack_image(_opened(raw), image_id, image_size) for image_id in ids]


@functools.lru_cache(maxsize=1)
def _opened(raw: Path) -> RawDataset:
    """The dataset, its manifest and shards opened once a process."""
    return RawDataset(raw)


def pack_image(dataset: RawDataset, image_id: str, image_size: int) -> Packed | Rejected:
    """Read, check and resize one image and its masks."""
    try:
        pixels = {
            kind: _read_pixels(dataset, image_id, kind) for kind in HALF_KINDS[image_id.partition("/")[0]]
        }
        image = pixels["image"]
        masks = {kind: mask for kind, mask in pixels.items() if kind != "image"}
        for kind, mask in masks.items():
            _check_mask(kind, mask, image)
    except UnusableError as error:
        return Rejected(str(error))
    arrays: dict[Kind, np.ndarray] = {"image": _resize(image, image_size, Image.Resampling.BILINEAR)}
    for kind, mask in masks.items():
        arrays[kind] = _resize(mask, image_size, Image.Resampling.NEAREST) // 255
    facts = {
        "height": image.shape[0],
        "width": image.shape[1],
        "sha256": sha256([str(image.shape).encode(), image.tobytes()]),
        "lung_area": (pixels["lung"] > 0).mean(),
        "infection_area": (pixels["infection"] > 0).mean() if "infection" in pixels else None,
    }
    return Packed(arrays, facts)


def _read_pixels(dataset: RawDataset, image_id: str, kind: Kind) -> np.ndarray:
    content = dataset.read_bytes(image_id, kind)
    what = "image" if kind == "image" else f"{kind} mask"
    if content is None:
        raise UnusableError(f"the {what} is missing in {KIND_FOLDERS[kind]!r}")
    if not content:
        raise UnusableError(f"the {what} is a file of zero bytes")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.mode not in GREY_MODES:
                raise UnusableError(f"the {what} has pixels of kind {image.mode}, not 8 bit")
            return np.asarray(image if image.mode == "L" else image.convert("L"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "not a PNG" if isinstance(error, UnidentifiedImageError) else error
        raise UnusableError(f"the {what} can't be read: {reason}") from None


def _check_mask(kind: Kind, mask: np.ndarray, image: np.ndarray) -> None:
    if mask.shape != image.shape:
        sizes = " but the image ".join(f"{width}x{height}" for height, width in (mask.shape, image.shape))
        raise UnusableError(f"the {kind} mask is {sizes}")
    others = mask[(mask != 0) & (mask != 255)]
    if others.size:
        raise UnusableError(f"the {kind} mask is not binary: it holds {others.min()} beside 0 and 255")


def _resize(pixels: np.ndarray, size: int, resampling: Image.Resampling) -> np.ndarray:
    if pixels.shape == (size, size):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), resampling))


def main() -> None:
    parser = argparse.ArgumentParser(description="Resize and pack the images and masks of data/raw.")
    parser.add_argument("params", type=Path)
    parser.add_argument("raw", type=Path, help="the dataset, data/raw")
    parser.add_argument("packed", type=Path, help="the folder to make")
    args = parser.parse_args()
    params = load_params(args.params)
    preprocess(args.raw, args.packed, params.image_size, params.preprocess.max_rejected)


if __name__ == "__main__":
    stage_main(main)
