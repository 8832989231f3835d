"""Reads a file of any supported format as a grey picture."""

import numpy as np

from tasks.common.png import read_grey
from tasks.prediction.pictures import Picture


def read_picture(content: bytes) -> Picture:
    """The picture in a file, whose format is recognised by its content.

    Raises:
        UnreadableError: the file is damaged, or is not an X-ray of a supported format.
    """
    if content[128:132] == b"DICM":
        from tasks.prediction.dicom import read_dicom  # pydicom takes a quarter of a second to load

        return read_dicom(content)
    return Picture(np.asarray(read_grey(content)), "PNG", "as stored")
