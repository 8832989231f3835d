import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from tasks.common.png import UnreadableError, read_grey
from tests.helpers import png
from tests.pngs import (
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB,
    RGBA,
    SIGNATURE,
    chunk,
    exif,
    make_png,
    palette,
    with_alpha,
)

RANDOM = np.random.default_rng(0)
#: All 8-bit values once, not a square.
VALUES = RANDOM.permutation(256).reshape(8, 32)
COLOURS = RANDOM.integers(0, 256, (8, 32, 3))
TABLE = RANDOM.integers(0, 256, (256, 3))
MASK = 255 * (VALUES > 99)


def luma(colours: np.ndarray) -> np.ndarray:
    """Grey values after ITU-R 601-2, as Pillow documents them."""
    return colours @ [0.299, 0.587, 0.114]


def saved(pixels: np.ndarray, file_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format=file_format)
    return buffer.getvalue()


def grey_of(content: bytes) -> np.ndarray:
    picture = read_grey(content)
    assert picture.mode == "L"
    return np.asarray(picture)


LEVELS = {depth: VALUES % 2**depth for depth in (1, 2, 4, 8)}
READ = {
    "8 bit": (make_png(VALUES), VALUES),
    "interlaced": (make_png(VALUES, interlaced=True), VALUES),
    "colours": (make_png(COLOURS, RGB), luma(COLOURS)),
    "interlaced colours": (make_png(COLOURS, RGB, interlaced=True), luma(COLOURS)),
    "opaque grey": (make_png(with_alpha(VALUES, 255), GREY_ALPHA), VALUES),
    "opaque colours": (make_png(with_alpha(COLOURS, 255), RGBA), luma(COLOURS)),
    "palette": (make_png(VALUES, PALETTE, before=palette(TABLE)), luma(TABLE[VALUES])),
    "opaque palette": (
        make_png(VALUES, PALETTE, before=palette(TABLE) + chunk(b"tRNS", b"\xff" * 256)),
        luma(TABLE[VALUES]),
    ),
    "palette whose transparent colours are not used": (
        make_png(VALUES // 2 + 128, PALETTE, before=palette(TABLE) + chunk(b"tRNS", bytes(range(128)))),
        luma(TABLE[VALUES // 2 + 128]),
    ),
    "transparent grey that is not used": (
        make_png(VALUES // 2, before=chunk(b"tRNS", struct.pack(">H", 200))),
        VALUES // 2,
    ),
    "transparent colour that is not used": (
        make_png(COLOURS // 2, RGB, before=chunk(b"tRNS", struct.pack(">3H", 200, 200, 200))),
        luma(COLOURS // 2),
    ),
    "upright by EXIF": (make_png(VALUES, before=exif(1)), VALUES),
    "EXIF of nonsense": (make_png(VALUES, before=chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff")), VALUES),
    "gamma and text": (
        make_png(VALUES, before=chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"tEXt", b"a\0b")),
        VALUES,
    ),
} | {
    f"{depth} bit of {'palette' if colour else 'grey'}": (
        make_png(levels, colour, depth, before=palette(TABLE[: 2**depth]) if colour else b""),
        luma(TABLE[levels]) if colour else levels * 255 / (2**depth - 1),
    )
    for depth, levels in LEVELS.items()
    for colour in (GREY, PALETTE)
}


@pytest.mark.parametrize(("content", "expected"), READ.values(), ids=READ)
def test_picture_is_read_as_grey(content: bytes, expected: np.ndarray) -> None:
    np.testing.assert_allclose(grey_of(content), expected, rtol=0, atol=0.51)


@pytest.mark.parametrize(("content", "expected"), READ.values(), ids=READ)
def test_picture_reads_like_pillow_converts_it(content: bytes, expected: np.ndarray) -> None:
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content)) as picture:
        np.testing.assert_array_equal(grey_of(content), np.asarray(picture.convert("L")))


TRANSPARENT = "is partly transparent; save it without transparency"
DEEP = "has 16 bits per channel, not 8"
GOOD = make_png(VALUES)
FLIPPED = bytearray(GOOD)
FLIPPED[60] ^= 1  # in the compressed pixels
CMYK = io.BytesIO()
Image.new("CMYK", (8, 8)).save(CMYK, format="JPEG")
REFUSED = {
    "16-bit grey": (make_png(VALUES * 257, GREY, 16), DEEP),
    "12 bits in 16-bit colours": (make_png(COLOURS * 16, RGB, 16), DEEP),
    "16-bit grey with alpha": (make_png(with_alpha(VALUES * 257, 65535), GREY_ALPHA, 16), DEEP),
    "16-bit colours with alpha": (make_png(with_alpha(COLOURS * 257, 65535), RGBA, 16), DEEP),
    "mask in the alpha of white": (
        make_png(with_alpha(VALUES | 255, MASK), GREY_ALPHA),
        TRANSPARENT,
    ),
    "mask in the alpha of black": (make_png(with_alpha(COLOURS * 0, MASK), RGBA), TRANSPARENT),
    "one pixel nearly opaque": (make_png(with_alpha(VALUES, 255 - (VALUES == 7)), GREY_ALPHA), TRANSPARENT),
    "palette with a transparent colour": (
        make_png(VALUES, PALETTE, before=palette(TABLE) + chunk(b"tRNS", b"\xff\xff\0")),
        TRANSPARENT,
    ),
    "palette with alpha": (
        make_png(VALUES, PALETTE, before=palette(TABLE) + chunk(b"tRNS", bytes(range(256)))),
        TRANSPARENT,
    ),
    "transparent grey": (make_png(VALUES, before=chunk(b"tRNS", struct.pack(">H", 7))), TRANSPARENT),
    "transparent 2-bit grey": (
        make_png(LEVELS[2], depth=2, before=chunk(b"tRNS", struct.pack(">H", 2))),
        TRANSPARENT,
    ),
    "transparent white of 1 bit": (
        make_png(LEVELS[1], depth=1, before=chunk(b"tRNS", struct.pack(">H", 1))),
        TRANSPARENT,
    ),
    "transparent colour": (
        make_png(COLOURS, RGB, before=chunk(b"tRNS", struct.pack(">3H", *COLOURS[3, 5]))),
        TRANSPARENT,
    ),
    "JPEG": (saved(VALUES, "JPEG"), "is a JPEG file, not a PNG file"),
    "CMYK JPEG": (CMYK.getvalue(), "is a JPEG file, not a PNG file"),
    "GIF": (saved(VALUES, "GIF"), "is a GIF file, not a PNG file"),
    "BMP": (saved(VALUES, "BMP"), "is a BMP file, not a PNG file"),
    "TIFF": (saved(VALUES, "TIFF"), "is a TIFF file, not a PNG file"),
    "WebP": (saved(COLOURS, "WEBP"), "is a WebP file, not a PNG file"),
    "DICOM": (bytes(128) + b"DICM", "is a DICOM file, not a PNG file"),
    "text": (b"version https://git-lfs.github.com/spec/v1\n", "is not a PNG file"),
    "empty": (b"", "is an empty file"),
    "rotated": (
        make_png(VALUES, before=exif(6)),
        "is stored rotated or mirrored (EXIF orientation 6); save it upright",
    ),
    "mirrored, said after the pixels": (
        make_png(VALUES, after=exif(2, "<")),
        "is stored rotated or mirrored (EXIF orientation 2); save it upright",
    ),
    "animation": (make_png(VALUES, before=chunk(b"acTL", struct.pack(">II", 2, 0))), "is an animation"),
    "signature alone": (SIGNATURE, "is truncated"),
    "truncated": (GOOD[:150], "is truncated"),
    "truncated before its last chunk": (GOOD[:-12], "is truncated"),
    "truncated pixels in whole chunks": (
        make_png(VALUES)[:33] + make_png(VALUES[:4])[33:],
        "is truncated: it has fewer pixels than its header says",
    ),
    "truncated interlaced pixels": (
        make_png(VALUES, interlaced=True)[:33] + make_png(VALUES)[33:],
        "is truncated: it has fewer pixels than its header says",
    ),
    "truncated stream of pixels": (
        GOOD[:33] + chunk(b"IDAT", zlib.compress(VALUES.astype(np.uint8).tobytes())[:-90]) + chunk(b"IEND"),
        "is truncated: it has fewer pixels than its header says",
    ),
    "gigabytes of pixels in a few kB": (
        GOOD[:33] + chunk(b"IDAT", zlib.compress(bytes(4 << 20), 9)) + chunk(b"IEND"),
        "is damaged: it has more pixels than its header says",
    ),
    "no pixels": (GOOD[:33] + chunk(b"IEND"), "is truncated: it has fewer pixels than its header says"),
    "invalid pixels": (GOOD[:33] + chunk(b"IDAT", b"abc") + chunk(b"IEND"), "is damaged: Error -3 while"),
    "flipped bit": (bytes(FLIPPED), "is damaged: the checksum of 'IDAT' is wrong"),
    "no header": (SIGNATURE + chunk(b"IEND"), "is damaged: it has no header"),
    "short header": (SIGNATURE + chunk(b"IHDR", b"abc") + chunk(b"IEND"), "is damaged: it has no header"),
    "two palettes": (
        make_png(VALUES, PALETTE, before=2 * palette(TABLE)),
        "is damaged: PLTE occurs twice or too late",
    ),
    "no palette": (make_png(VALUES, PALETTE), "is damaged: it has colours that its palette lacks"),
    "short palette": (
        make_png(VALUES, PALETTE, before=palette(TABLE[:200])),
        "is damaged: it has colours that its palette lacks",
    ),
    "no width": (make_png(VALUES[:, :0]), "is 0x8, without any pixel"),
    "no height": (make_png(VALUES[:0]), "is 32x0, without any pixel"),
    "long": (make_png(np.zeros((1, 65_536), np.uint8)), "is 65536x1, more than 65535 pixels on a side"),
    "unknown kind of colour": (make_png(VALUES, 1), "cannot be read: "),
    "3 bits": (make_png(VALUES % 8, depth=3), "cannot be read: "),
    "odd transparency": (make_png(VALUES, before=chunk(b"tRNS", b"\0")), "cannot be read: "),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_refused_with_its_reason(content: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError) as refused:
        read_grey(content)
    assert str(refused.value).startswith(reason)
    assert reason == str(refused.value) or reason.endswith((": ", "while"))


def test_largest_allowed_picture_is_read() -> None:
    assert grey_of(png(np.zeros((1, 65_535), np.uint8))).shape == (1, 65_535)
