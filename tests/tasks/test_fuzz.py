"""Random damage to PNG files and archives: each is read, or refused with one line, and never a traceback."""

import io
import random
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.common.png import SIGNATURE
from tasks.common.raw import Kind, RawDataset
from tasks.download import download
from tasks.preprocess import Packed, Rejected, pack_image
from tasks.sources.archives import ZipSource
from tasks.support.cli import InputError
from tests.helpers import png
from tests.pngs import GREY_ALPHA, PALETTE, RGB, RGBA, chunk, exif, make_png, palette, with_alpha

IMAGE = "Infection Segmentation Data/Train/COVID-19/images/a.png"

#: Seconds for each kind of input.
SECONDS = [2, pytest.param(90, marks=pytest.mark.soak)]


def flip(dice: random.Random, content: bytearray) -> None:
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)


def set_byte(dice: random.Random, content: bytearray) -> None:
    content[dice.randrange(len(content))] = dice.choice([0, 1, 0x7F, 0x80, 0xFF])


def cut(dice: random.Random, content: bytearray) -> None:
    del content[dice.randrange(len(content)) :]


def remove(dice: random.Random, content: bytearray) -> None:
    start = dice.randrange(len(content))
    del content[start : start + dice.randrange(1, 40)]


def insert(dice: random.Random, content: bytearray) -> None:
    start = dice.randrange(len(content))
    content[start:start] = dice.randbytes(dice.randrange(1, 20))


def repeat(dice: random.Random, content: bytearray) -> None:
    start, target = dice.randrange(len(content)), dice.randrange(len(content))
    content[target:target] = content[start : start + dice.randrange(1, 60)]


def big_number(dice: random.Random, content: bytearray) -> None:
    start, size = dice.randrange(len(content)), dice.choice([2, 4, 8])
    content[start : start + size] = dice.choice([b"\xff", b"\0", b"\x7f"]) * size


DAMAGES = (flip, set_byte, cut, remove, insert, repeat, big_number)


def damaged(dice: random.Random, content: bytes) -> bytes:
    result = bytearray(content)
    for _ in range(dice.randrange(1, 5)):
        if result:
            dice.choice(DAMAGES)(dice, result)
    return bytes(result)


def chunks_of(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(SIGNATURE)
    while place + 12 <= len(content):
        size = int.from_bytes(content[place : place + 4])
        yield content[place + 4 : place + 8], content[place + 8 : place + 8 + size]
        place += 12 + size


def damaged_inside(dice: random.Random, content: bytes) -> bytes:
    """A PNG with right checksums, whose chunks are damaged, exchanged, repeated or lost."""
    chunks = [[kind, data] for kind, data in chunks_of(content)]
    for _ in range(dice.randrange(1, 4)):
        a, b = dice.randrange(len(chunks)), dice.randrange(len(chunks))
        match dice.randrange(5):
            case 0:
                chunks[a], chunks[b] = chunks[b], chunks[a]
            case 1:
                chunks.insert(b, list(chunks[a]))
            case 2 if len(chunks) > 1:
                del chunks[a]
            case _:
                chunks[a][1] = damaged(dice, chunks[a][1])
    return SIGNATURE + b"".join(chunk(kind, data) for kind, data in chunks)


def pngs() -> list[bytes]:
    dice = np.random.default_rng(0)
    values, colours = dice.integers(0, 256, (24, 20)), dice.integers(0, 256, (24, 20, 3))
    text = (
        chunk(b"tEXt", b"a\0b")
        + chunk(b"zTXt", b"a\0\0x\x9c\x03\0\0\0\0\1")
        + chunk(b"gAMA", b"\0\0\xb1\x8f")
    )
    colour_table = palette(dice.integers(0, 256, (256, 3)))
    return [
        make_png(values, before=text + exif(1)),
        make_png(values, interlaced=True),
        make_png(values % 4, depth=2, before=chunk(b"tRNS", b"\0\2")),
        make_png(values % 2, depth=1),
        make_png(values * 257, depth=16),
        make_png(colours, RGB, before=chunk(b"tRNS", b"\0\1\0\2\0\3")),
        make_png(values, PALETTE, before=colour_table + chunk(b"tRNS", b"\xff" * 200)),
        make_png(values % 16, PALETTE, 4, before=colour_table),
        make_png(with_alpha(values, 255), GREY_ALPHA, interlaced=True),
        make_png(with_alpha(colours, 255), RGBA),
        make_png(values, before=chunk(b"acTL", b"\0\0\0\2\0\0\0\0"), after=chunk(b"iTXt", b"a\0\1\0\0\0x")),
        saved(values, "PNG"),
        saved(values, "JPEG"),
        saved(values, "TIFF"),
        saved(values, "BMP"),
    ]


def saved(values: np.ndarray, file_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(buffer, format=file_format)
    return buffer.getvalue()


class OneImage(RawDataset):
    """A dataset of one image whose files are these bytes."""

    def __init__(self, files: dict[Kind, bytes]) -> None:
        self.content = files

    def read_bytes(self, image_id: str, kind: Kind) -> bytes | None:
        return self.content[kind]


def many(seconds: float, work: Callable[[random.Random], None]) -> None:
    """Repeat `work` with random numbers of known seeds; a failure names its seed."""
    first = 0 if seconds < 10 else int(time.time()) * 1_000_000
    end, seed = time.monotonic() + seconds, first
    while time.monotonic() < end or seed < first + 100:
        try:
            work(random.Random(seed))
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        seed += 1


PLACE: tuple[str, int, dict[Kind, int]] = ("lung/Train/Normal/a", 16, {"lung": 255})


def check_png(content: bytes, mask: bytes) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        result = pack_image(OneImage({"image": content, "lung": mask}), *PLACE)
        mask_result = pack_image(OneImage({"image": mask, "lung": content}), *PLACE)
    assert not warned, [str(warning.message) for warning in warned]
    for one in (result, mask_result):
        if isinstance(one, Rejected):
            assert one.reason.isprintable()
            assert one.reason.startswith(("the image ", "the lung mask "))
        else:
            assert isinstance(one, Packed)


@pytest.mark.parametrize("seconds", SECONDS)
def test_damaged_picture_is_packed_or_refused_with_its_reason(seconds: float) -> None:
    corpus, mask = pngs(), png(255 * np.eye(24, 20, dtype=np.uint8))

    def work(dice: random.Random) -> None:
        content = dice.choice(corpus)
        inside = content.startswith(SIGNATURE) and dice.random() < 0.7
        check_png((damaged_inside if inside else damaged)(dice, content), mask)

    many(seconds, work)


def zips() -> list[bytes]:
    methods = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    return [zip_of(method) for method in methods]


def zip_of(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in ("a.png", "é.png", "b.PNG", ".DS_Store", "c.jpg"):
            archive.writestr(IMAGE.replace("a.png", name), png(np.eye(9, dtype=np.uint8)))
        archive.comment = b"comment"
    return buffer.getvalue()


@contextmanager
def refused_in_one_line() -> Iterator[None]:
    """Nothing else than an InputError of one line may be raised."""
    message = ""
    try:
        yield
    except InputError as error:
        message = str(error)
    assert message.isprintable()


def check_zip(content: bytes, folder: Path) -> None:
    archive = folder / "a.zip"
    archive.write_bytes(content)
    with refused_in_one_line():
        download(ZipSource(archive), folder / "raw", "here", previous=folder / "raw")


@pytest.mark.parametrize("seconds", SECONDS)
def test_damaged_archive_is_read_or_refused_with_one_line(seconds: float, tmp_path: Path) -> None:
    corpus = zips()
    many(seconds, lambda dice: check_zip(damaged(dice, dice.choice(corpus)), tmp_path))


@pytest.mark.parametrize("seconds", SECONDS)
def test_damaged_shard_is_read_or_refused_with_one_line(seconds: float, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_of(zipfile.ZIP_STORED))
    download(ZipSource(tmp_path / "a.zip"), tmp_path / "raw", "here")
    shard = tmp_path / "raw" / "infection-train.zip"
    whole = shard.read_bytes()
    ids = list(RawDataset(tmp_path / "raw").manifest["id"])

    def work(dice: random.Random) -> None:
        shard.write_bytes(damaged(dice, whole))
        with refused_in_one_line():
            dataset = RawDataset(tmp_path / "raw")
            for image_id in ids:
                dataset.read_bytes(image_id, "image")

    many(seconds, work)
