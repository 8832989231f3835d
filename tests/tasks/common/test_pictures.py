"""Pictures are read as their author sees them, or refused with the reason."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from tasks.common.pictures import read_grey, read_mask
from tasks.common.png import UnreadableError

GREY = (np.add.outer(np.arange(24) * 5, np.arange(20) * 6) % 256).astype(np.uint8)
RGB = np.stack([GREY, GREY // 2, 255 - GREY], axis=2)
#: Pillow's weights of red, green and blue (ITU-R 601-2).
LUMA = np.asarray(Image.fromarray(RGB).convert("L"))
MASK = np.where(GREY > 128, 255, 0).astype(np.uint8)


def saved(pixels: np.ndarray | Image.Image, file_format: str, **options: Any) -> bytes:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    picture.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def tagged(tag: int, value: int) -> TiffImagePlugin.ImageFileDirectory_v2:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[tag] = value
    return tags


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


EXACT = {
    "PNG": (saved(GREY, "PNG"), GREY),
    "TIFF": (saved(GREY, "TIFF"), GREY),
    "TIFF with LZW": (saved(GREY, "TIFF", compression="tiff_lzw"), GREY),
    "TIFF with Deflate": (saved(GREY, "TIFF", compression="tiff_adobe_deflate"), GREY),
    "TIFF in colour": (saved(RGB, "TIFF"), LUMA),
    "TIFF of bits": (saved(MASK > 0, "TIFF"), MASK),
    "TIFF upright": (saved(GREY, "TIFF", tiffinfo=tagged(274, 1)), GREY),
    "TIFF whose 0 is white": (saved(GREY, "TIFF", tiffinfo=tagged(262, 0)), GREY),
    "BMP": (saved(GREY, "BMP"), GREY),
    "BMP in colour": (saved(RGB, "BMP"), LUMA),
    "BMP of bits": (saved(Image.fromarray(MASK).convert("1"), "BMP"), MASK),
}


@pytest.mark.parametrize(("content", "expected"), EXACT.values(), ids=EXACT)
def test_lossless_pictures_are_read_exactly(content: bytes, expected: np.ndarray) -> None:
    for read in (read_grey, read_mask):
        picture = read(content)
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.asarray(picture), expected)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"exif": exif(1)}], ids=["plain", "progressive", "upright"]
)
@pytest.mark.parametrize(("pixels", "expected"), [(GREY, GREY), (RGB, LUMA)], ids=["grey", "colour"])
def test_jpeg_is_read_nearly_exactly(
    pixels: np.ndarray, expected: np.ndarray, options: dict[str, Any]
) -> None:
    smooth = np.kron(pixels[:4, :4], np.ones((16, 16, 1) if pixels.ndim == 3 else (16, 16), np.uint8))
    found = np.asarray(read_grey(saved(smooth, "JPEG", quality=95, **options)), int)
    assert np.abs(found - np.kron(expected[:4, :4], np.ones((16, 16), int))).max() <= 4


def pages(count: int) -> bytes:
    more = [Image.fromarray(GREY)] * (count - 1)
    return saved(GREY, "TIFF", save_all=True, append_images=more)


def claimed(width: int, height: int) -> bytes:
    """A BMP of a few bytes whose header claims this size."""
    content = bytearray(saved(GREY, "BMP"))
    content[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return bytes(content)


SIXTEEN = GREY.astype(np.uint16) * 257
HALF_CLEAR = np.dstack([RGB, np.full(GREY.shape, 99, np.uint8)])
REFUSED = {
    "nothing": (b"", "is an empty file"),
    "GIF": (saved(GREY, "GIF"), "is a GIF file, not a PNG file; PNG, JPEG, TIFF and BMP files can be read"),
    "text": (b"no picture", "is not a PNG file; PNG, JPEG, TIFF and BMP files can be read"),
    "rotated JPEG": (saved(GREY, "JPEG", exif=exif(6)), "is stored rotated or mirrored (EXIF orientation 6)"),
    "CMYK JPEG": (saved(Image.fromarray(RGB).convert("CMYK"), "JPEG"), "has CMYK colours; save it as grey"),
    "half a JPEG": (saved(np.tile(GREY, (9, 9)), "JPEG")[:900], "cannot be read: "),
    "TIFF of 16 bits": (saved(SIXTEEN, "TIFF"), "has 16 bits per channel, not 8"),
    "TIFF of floats": (saved(GREY.astype(np.float32), "TIFF"), "has 32 bits per channel, not 8"),
    "TIFF in CMYK": (
        saved(Image.fromarray(RGB).convert("CMYK"), "TIFF"),
        "has CMYK colours; save it as grey",
    ),
    "TIFF of two pages": (pages(2), "has 2 pages; save one of them"),
    "rotated TIFF": (saved(GREY, "TIFF", tiffinfo=tagged(274, 3)), "(EXIF orientation 3); save it upright"),
    "transparent TIFF": (saved(HALF_CLEAR, "TIFF"), "is partly transparent; save it without transparency"),
    "half a TIFF": (saved(GREY, "TIFF")[:300], "cannot be read: "),
    "half a BMP": (saved(RGB, "BMP")[:900], "cannot be read: "),
    "a bomb": (claimed(10_000, 8000), "is 10000x8000, more than 64 megapixels"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_read_wrongly_is_refused(content: bytes, reason: str) -> None:
    for read in (read_grey, read_mask):
        if read is read_mask and content.startswith(b"\xff\xd8"):
            continue
        with pytest.raises(UnreadableError) as error:
            read(content)
        assert reason in str(error.value)
        assert str(error.value).isprintable()


LOSSY = {
    "JPEG": (saved(MASK, "JPEG"), "is a JPEG file, whose compression changes pixels; save masks as PNG"),
    "JPEG in TIFF": (
        saved(MASK, "TIFF", compression="jpeg"),
        "is a TIFF file with a compression that changes pixels; save masks as PNG",
    ),
}


@pytest.mark.parametrize(("content", "reason"), LOSSY.values(), ids=LOSSY)
def test_masks_with_lossy_compression_are_refused(content: bytes, reason: str) -> None:
    assert read_grey(content).size == (20, 24)
    with pytest.raises(UnreadableError) as error:
        read_mask(content)
    assert str(error.value) == reason
