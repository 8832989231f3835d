"""Reads a file of any supported format as a grey picture."""

import numpy as np

from tasks.common.pictures import format_of, read_grey
from tasks.prediction.decoder import Decoders
from tasks.prediction.pictures import Picture


def read_picture(content: bytes, decoders: Decoders) -> Picture:
    """The picture in a file, whose format is recognised by its content.

    Raises:
        UnreadableError: the file is damaged, or is not an X-ray of a supported format.
    """
    if content[128:132] == b"DICM":
        return decoders.read(content)
    pixels = np.asarray(read_grey(content))
    return Picture(pixels, format_of(content) or "", "as stored")
