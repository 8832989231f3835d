"""Reads PNG files as 8-bit grey, or says why a file cannot be used.

Whatever would be read as something else than its author sees is refused: 16 bits, transparency, animations,
rotations. Pillow neither reports these nor checks the CRC-32 of the pixels' chunks.
"""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin

#: More pixels than any X-ray has. A file of a few kB can claim to decompress to gigabytes.
MAX_PIXELS = 64_000_000
#: Resizing needs memory for each pixel of a side.
MAX_SIDE = 65_535

SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Beginnings of other files that are found under the name of a PNG.
OTHER_FORMATS = {
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"RIFF": "WebP",
}
#: Channels by the type of colour.
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
#: First column and step of columns, first line and step of lines, in each pass of an interlaced picture.
ADAM7 = [(0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2)]
#: Bytes that are decompressed at once.
BLOCK = 1 << 20
#: Chunks that determine how the pixels are read.
_HEADERS = (b"IHDR", b"PLTE", b"tRNS")
_ORIENTATION = 0x0112


class UnreadableError(Exception):
    """A file cannot be used. The text continues a sentence: `is truncated`."""


def read_grey(content: bytes) -> Image.Image:
    """The picture of a PNG file, with colours converted to grey (mode L).

    Raises:
        UnreadableError: the file is damaged, or is something else than an 8-bit opaque picture.
    """
    chunks = _checked_chunks(content)
    _refuse_unusual(chunks)
    _refuse_incomplete_pixels(chunks)
    try:
        # Image.open has its own, lower limit.
        with PngImagePlugin.PngImageFile(io.BytesIO(content)) as picture:
            picture.load()
            _refuse_invalid_palette(picture, chunks.get(b"PLTE", b""))
            if _is_transparent(picture, chunks):
                raise UnreadableError("is partly transparent; save it without transparency")
            picture.info.pop("transparency", None)  # nothing is transparent, and Pillow warns of it
            return picture.convert("L")
    except (MemoryError, UnreadableError):
        raise
    except Exception as error:  # damaged files cause many kinds of errors in Pillow
        why = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableError(f"cannot be read: {why}") from None


def _checked_chunks(content: bytes) -> dict[bytes, bytes]:
    """The first chunk of each type, and all of IDAT, the pixels. Checks that the file is complete."""
    if not content:
        raise UnreadableError("is an empty file")
    if not content.startswith(SIGNATURE):
        raise UnreadableError(f"is {format_of(content)}")
    chunks: dict[bytes, bytes] = {}
    pixels = []
    for kind, data in _chunks(content):
        if kind in _HEADERS and (kind in chunks or b"IDAT" in chunks):
            raise UnreadableError(f"is damaged: {kind.decode()} occurs twice or too late")
        chunks.setdefault(kind, data)
        if kind == b"IDAT":
            pixels.append(data)
    if next(iter(chunks)) != b"IHDR" or len(chunks[b"IHDR"]) != 13:
        raise UnreadableError("is damaged: it has no header")
    return chunks | {b"IDAT": b"".join(pixels)}


def format_of(content: bytes) -> str:
    """What a file that is not PNG is, as the end of a sentence."""
    if content[128:132] == b"DICM":
        return "a DICOM file, not a PNG file"
    for beginning, name in OTHER_FORMATS.items():
        if content.startswith(beginning):
            return f"a {name} file, not a PNG file"
    return "not a PNG file"


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and data of each chunk up to the last one, IEND."""
    place, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        head = content[place : place + 8]
        size = int.from_bytes(head[:4])
        kind, data = head[4:], content[place + 8 : place + 8 + size]
        crc32 = content[place + 8 + size : place + 12 + size]
        if len(head) < 8 or len(crc32) < 4:
            raise UnreadableError("is truncated")
        if zlib.crc32(data, zlib.crc32(kind)) != int.from_bytes(crc32):
            raise UnreadableError(f"is damaged: the checksum of {kind.decode('latin-1')!a} is wrong")
        yield kind, data
        place += 12 + size


def refuse_size(width: int, height: int) -> None:
    """Refuse a picture without pixels, or one that is too large for any X-ray, before it is decoded.

    Raises:
        UnreadableError: the size is out of range.
    """
    if not width * height:
        raise UnreadableError(f"is {width}x{height}, without any pixel")
    if width * height > MAX_PIXELS:
        raise UnreadableError(f"is {width}x{height}, more than {MAX_PIXELS / 1e6:g} megapixels")
    if max(width, height) > MAX_SIDE:
        raise UnreadableError(f"is {width}x{height}, more than {MAX_SIDE} pixels on a side")


def _refuse_unusual(chunks: dict[bytes, bytes]) -> None:
    width, height, depth = struct.unpack(">IIB", chunks[b"IHDR"][:9])
    refuse_size(width, height)
    if depth > 8:
        raise UnreadableError(f"has {depth} bits per channel, not 8")
    if b"acTL" in chunks:
        raise UnreadableError("is an animation")
    orientation = _orientation(chunks.get(b"eXIf", b""))
    if 2 <= orientation <= 8:
        raise UnreadableError(
            f"is stored rotated or mirrored (EXIF orientation {orientation}); save it upright"
        )


def _refuse_incomplete_pixels(chunks: dict[bytes, bytes]) -> None:
    """Pillow would leave missing pixels black."""
    missing = _bytes_of_pixels(chunks[b"IHDR"])
    stream, data = zlib.decompressobj(), chunks[b"IDAT"]
    try:
        while not stream.eof and (block := stream.decompress(data, BLOCK)):
            data = stream.unconsumed_tail
            missing -= len(block)
            if missing < -BLOCK:  # a few kB can decompress to gigabytes
                raise UnreadableError("is damaged: it has more pixels than its header says")
    except zlib.error as error:
        raise UnreadableError(f"is damaged: {error}") from None
    if missing > 0:
        raise UnreadableError("is truncated: it has fewer pixels than its header says")


def _bytes_of_pixels(header: bytes) -> int:
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * CHANNELS.get(colour, 1)
    return sum(
        lines * (1 + (columns * bits + 7) // 8)
        for x, column_step, y, line_step in (ADAM7 if interlaced else [(0, 1, 0, 1)])
        if (lines := len(range(y, height, line_step))) and (columns := len(range(x, width, column_step)))
    )


def _orientation(exif: bytes) -> int:
    """The orientation in EXIF data; 1, upright, if it names none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    try:
        if order:
            (start,) = struct.unpack_from(f"{order}I", exif, 4)
            (count,) = struct.unpack_from(f"{order}H", exif, start)
            for entry in range(start + 2, start + 2 + 12 * count, 12):
                tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
                if tag == _ORIENTATION:
                    return int(value)
    except struct.error:  # damaged; viewers ignore it too
        pass
    return 1


def _refuse_invalid_palette(picture: Image.Image, palette: bytes) -> None:
    if picture.mode == "P" and any(picture.histogram()[len(palette) // 3 :]):
        raise UnreadableError("is damaged: it has colours that its palette lacks")


def _is_transparent(picture: Image.Image, chunks: dict[bytes, bytes]) -> bool:
    """Whether any pixel is not opaque."""
    if picture.mode in ("LA", "RGBA"):
        return any(picture.getchannel("A").histogram()[:255])
    alphas = chunks.get(b"tRNS")
    if alphas is None:
        return False
    if picture.mode == "P":
        return any(used and alpha < 255 for used, alpha in zip(picture.histogram(), alphas, strict=False))
    depth = chunks[b"IHDR"][8]
    top = 2**depth - 1
    # The values of the transparent colour, two bytes each, as Pillow scales the pixels.
    colour = [(value & top) * 255 // top for (value,) in struct.iter_unpack(">H", alphas)]
    if picture.mode == "RGB":
        return bool((np.asarray(picture) == colour).all(axis=-1).any())
    return bool(picture.convert("L").histogram()[colour[0]])
