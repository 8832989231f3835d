"""Reads PNG, JPEG, TIFF and BMP files as 8-bit grey, or says why a file cannot be used.

The content decides, not the name of the file. Whatever would be read as something else than its author sees
is refused, as in `tasks.common.png`, which reads PNG files: 16 bits, CMYK, transparency, several pages,
rotations.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np
from PIL import BmpImagePlugin, Image, JpegImagePlugin, TiffImagePlugin

from tasks.common import png
from tasks.common.png import OTHER_FORMATS, SIGNATURE, UnreadableError, refuse_size

#: Modes of Pillow that hold 8 bits per channel or less, and convert to grey as a viewer shows them.
_MODES = ("1", "L", "P", "RGB", "LA", "RGBA")
_MODE_WORDS = {"CMYK": "CMYK colours", "YCbCr": "YCbCr colours", "LAB": "L*a*b colours"}

# Tags of TIFF
_BITS, _COMPRESSION, _ORIENTATION = 258, 259, 274
#: Compressions of TIFF that change no pixel: none, CCITT, LZW, Deflate, PackBits, LZMA, Zstandard.
_LOSSLESS = {1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000}

#: Threads share the filters of warnings.
_FILTERS = Lock()

_UPRIGHT = (0, 1)  # values of the orientation; 0 is undefined, and viewers show such a picture as it is


def read_grey(content: bytes) -> Image.Image:
    """The picture of a PNG, JPEG, TIFF or BMP file, with colours converted to grey (mode L).

    Raises:
        UnreadableError: the file is damaged, or is something else than one upright, opaque picture of at most
            8 bits per channel.
    """
    match format_of(content):
        case "JPEG":
            return _read_jpeg(content)
        case "TIFF":
            return _read_tiff(content)
        case "BMP":
            return _read_bmp(content)
        case None if content:
            raise UnreadableError(f"is {png.format_of(content)}; PNG, JPEG, TIFF and BMP files can be read")
    return png.read_grey(content)


def format_of(content: bytes) -> str | None:
    """The format of a file, PNG, JPEG, TIFF or BMP, by its first bytes; None if it is another one."""
    if content.startswith(SIGNATURE):
        return "PNG"
    found = (name for beginning, name in OTHER_FORMATS.items() if content.startswith(beginning))
    return next((name for name in found if name in ("JPEG", "TIFF", "BMP")), None)


def read_mask(content: bytes) -> Image.Image:
    """As `read_grey`, for a file whose pixels are exactly those that were drawn.

    Raises:
        UnreadableError: as `read_grey`, or the file's compression changes pixels.
    """
    kind = format_of(content)
    if kind == "JPEG":
        raise UnreadableError("is a JPEG file, whose compression changes pixels; save masks as PNG")
    if kind == "TIFF" and _compression(content) not in _LOSSLESS:
        raise UnreadableError("is a TIFF file with a compression that changes pixels; save masks as PNG")
    return read_grey(content)


def _read_jpeg(content: bytes) -> Image.Image:
    with _translated(), JpegImagePlugin.JpegImageFile(io.BytesIO(content)) as picture:
        refuse_size(*picture.size)
        _refuse_mode(picture.mode)
        _refuse_rotation(picture.getexif().get(_ORIENTATION, 1))
        picture.load()
        return picture.convert("L")


def _read_bmp(content: bytes) -> Image.Image:
    with _translated(), BmpImagePlugin.BmpImageFile(io.BytesIO(content)) as picture:
        refuse_size(*picture.size)
        picture.load()
        return _opaque(picture)


def _read_tiff(content: bytes) -> Image.Image:
    with _translated(), TiffImagePlugin.TiffImageFile(io.BytesIO(content)) as picture:
        refuse_size(*picture.size)
        if (pages := picture.n_frames) > 1:
            raise UnreadableError(f"has {pages} pages; save one of them")
        if (bits := _most(picture.tag_v2.get(_BITS, 1))) > 8:
            raise UnreadableError(f"has {bits} bits per channel, not 8")
        _refuse_mode(picture.mode)
        _refuse_rotation(picture.tag_v2.get(_ORIENTATION, 1))
        picture.load()
        return _opaque(picture)


def _compression(content: bytes) -> int:
    with _translated(), TiffImagePlugin.TiffImageFile(io.BytesIO(content)) as picture:
        return _most(picture.tag_v2.get(_COMPRESSION, 1))


def _most(value: Any) -> int:
    """The largest of a tag's values."""
    return int(max(value)) if isinstance(value, tuple) else int(value)


def _refuse_mode(mode: str) -> None:
    if mode.startswith("I;16"):
        raise UnreadableError("has 16 bits per channel, not 8")
    if mode not in _MODES:
        words = _MODE_WORDS.get(mode, f"pixels of the type {mode!r}")
        raise UnreadableError(f"has {words}; save it as grey with 8 bits")


def _refuse_rotation(orientation: int) -> None:
    if orientation not in _UPRIGHT:
        raise UnreadableError(
            f"is stored rotated or mirrored (EXIF orientation {orientation}); save it upright"
        )


def _opaque(picture: Image.Image) -> Image.Image:
    """The picture as grey, if each pixel is opaque."""
    _refuse_mode(picture.mode)
    if picture.mode in ("LA", "RGBA") and (np.asarray(picture.getchannel("A")) < 255).any():
        raise UnreadableError("is partly transparent; save it without transparency")
    return picture.convert("L")


@contextmanager
def _translated() -> Iterator[None]:
    """Raise an UnreadableError for whatever Pillow raises or warns of because of what a file holds."""
    try:
        with _FILTERS, warnings.catch_warnings():
            warnings.filterwarnings("error", module=r"PIL\.")
            yield
    except (MemoryError, UnreadableError):
        raise
    except Exception as error:  # damaged files cause many kinds of errors in Pillow
        why = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableError(f"cannot be read: {why}") from None
