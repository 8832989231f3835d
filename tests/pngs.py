"""PNG files of every kind, built from their chunks."""

import struct
import zlib

import numpy as np

from tasks.common.png import ADAM7, SIGNATURE

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_png(
    values: np.ndarray,
    colour: int = GREY,
    depth: int = 8,
    interlaced: bool = False,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG of these values, (H, W) or (H, W, channels), in 0..2**depth - 1.

    Args:
        before: chunks before the pixels.
        after: chunks after them.
    """
    height, width = values.shape[:2]
    passes = ADAM7 if interlaced else [(0, 1, 0, 1)]
    rows = b"".join(
        b"\0" + _packed(row, depth)
        for x, columns, y, lines in passes
        for row in values[y::lines, x::columns]
        if row.size
    )
    return b"".join(
        [
            SIGNATURE,
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)),
            before,
            chunk(b"IDAT", zlib.compress(rows)),
            after,
            chunk(b"IEND"),
        ]
    )


def _packed(row: np.ndarray, depth: int) -> bytes:
    if depth == 16:
        return row.astype(">u2").tobytes()
    bits = np.unpackbits(row.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - depth :]
    return np.packbits(bits.ravel()).tobytes()


def with_alpha(values: np.ndarray, alpha: np.ndarray | int) -> np.ndarray:
    """The values (H, W) or (H, W, 3) with a further channel."""
    colours = values.reshape(*values.shape[:2], -1)
    return np.concatenate([colours, np.broadcast_to(alpha, values.shape[:2])[..., None]], axis=2)


def exif(orientation: int, order: str = ">") -> bytes:
    """The chunk eXIf with an orientation."""
    head = {">": b"MM\0*", "<": b"II*\0"}[order]
    entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    return chunk(b"eXIf", head + struct.pack(f"{order}IH", 8, 1) + entry + bytes(4))


def palette(colours: np.ndarray) -> bytes:
    return chunk(b"PLTE", colours.astype(np.uint8).tobytes())
