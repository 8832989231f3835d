"""Reads radiographs from DICOM files as grey pictures.

Files are not trusted, and may identify a patient. Only the attributes in `FACTS` leave a file, and messages
never quote its content. Warnings of the libraries do, and damaged files may crash them:
`tasks.prediction.decoder` calls this module in a process of its own.

Grey values follow the file's own instructions (DICOM PS3.3 C.11): modality LUT or rescale, then VOI LUT or
window, and otherwise the range that the stored bits can hold. The image's own minimum and maximum play no
role: they depend on collimators and markers.
"""

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_modality_lut, apply_voi

from tasks.common.png import MAX_PIXELS, MAX_SIDE, UnreadableError
from tasks.prediction.pictures import Picture, grey_pixels

#: Modalities of radiographs.
MODALITIES = {"CR": "computed radiography", "DX": "digital radiography", "RG": "radiographic imaging"}
#: Other common ones. Anything else is not quoted: people type anything anywhere.
OTHER_MODALITIES = frozenset({"CT", "MG", "MR", "NM", "OT", "PT", "PX", "RF", "SC", "SR", "US", "XA"})
#: Attributes that leave a file.
FACTS = ("Modality", "PhotometricInterpretation", "BitsStored", "ViewPosition", "VOILUTFunction")
#: Projections that are not frontal.
LATERAL = ("LL", "RL", "LLD", "RLD", "LATERAL")
#: Its data is compressed as a whole, so its size is unknown before all of it is in memory.
DEFLATED = b"1.2.840.10008.1.2.1.99"

Values = NDArray[np.float64]


def read_dicom(content: bytes) -> Picture:
    """The picture in a DICOM file.

    Raises:
        UnreadableError: the file is damaged, holds no single radiograph, or needs a missing decoder.
    """
    if DEFLATED in content[:4096]:
        raise UnreadableError("uses the deflated transfer syntax; save it uncompressed or as JPEG 2000")
    try:
        dataset = pydicom.dcmread(io.BytesIO(content))
        _refuse_others(dataset)
        return _picture(dataset)
    except (MemoryError, UnreadableError):
        raise
    except Exception as error:  # damaged files cause many kinds of errors
        raise UnreadableError(f"is a damaged DICOM file ({type(error).__name__})") from None


def _refuse_others(dataset: FileDataset) -> None:
    """Refuse what is not one radiograph, before its pixels are decoded."""
    modality = str(dataset.get("Modality", ""))
    if modality not in MODALITIES:
        found = modality if modality in OTHER_MODALITIES else "unknown"
        raise UnreadableError(f"is not a radiograph: its modality is {found}, not {' or '.join(MODALITIES)}")
    if "PixelData" not in dataset:
        raise UnreadableError("holds no image")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UnreadableError(f"holds {frames} frames; save each as a file of its own")
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnreadableError("is not a grey image (MONOCHROME1 or MONOCHROME2)")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > MAX_PIXELS or max(rows, columns) > MAX_SIDE or not rows * columns:
        raise UnreadableError(f"is {columns}x{rows}; at most {MAX_PIXELS / 1e6:g} megapixels are read")
    if not 1 <= int(dataset.BitsStored) <= int(dataset.BitsAllocated) <= 16:
        raise UnreadableError("does not store its pixels in 1 to 16 bits")
    if int(dataset.get("HighBit", dataset.BitsStored - 1)) != dataset.BitsStored - 1:
        raise UnreadableError(
            f"stores {dataset.BitsStored} bits whose highest is bit {dataset.HighBit}, not "
            f"{dataset.BitsStored - 1}; save it again in the present DICOM format"
        )


def _picture(dataset: FileDataset) -> Picture:
    stored = _stored(dataset)
    values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
    grey, how, notes = _windowed(values, stored, dataset, _range(dataset))
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey, how = 1 - grey, f"{how}, inverted (MONOCHROME1)"
    spacing, of_spacing = _spacing(dataset)
    view = str(dataset.get("ViewPosition", ""))
    if view in LATERAL:
        notes.append(f"not a frontal view (ViewPosition {view})")
    burned_in = str(dataset.get("BurnedInAnnotation", "")).upper() == "YES"
    if burned_in:
        notes.append("text is burned into the image, so there is no overlay")
    return Picture(
        grey_pixels(grey),
        "DICOM",
        how,
        spacing,
        tuple(notes + of_spacing),
        _facts(dataset),
        shows_text=burned_in,
    )


def _stored(dataset: FileDataset) -> NDArray[Any]:
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        pixels = dataset.pixel_array
    except (RuntimeError, NotImplementedError, AttributeError):
        name = syntax.name if syntax.is_transfer_syntax else "an unknown transfer syntax"
        raise UnreadableError(f"cannot be decoded: damaged, or no decoder for {name}") from None
    if pixels.shape != (dataset.Rows, dataset.Columns):
        raise UnreadableError("is damaged: its pixels do not have the size that it states")
    found: NDArray[Any] = pixels
    return found


def _windowed(
    values: Values, stored: NDArray[Any], dataset: Dataset, ends: tuple[float, float]
) -> tuple[Values, str, list[str]]:
    """Grey values in [0, 1] before inversion, how they were made, and warnings.

    `ends` are the values that stand for 0 and 1 without a VOI LUT or window.
    """
    if dataset.get("VOILUTSequence"):
        return _by_lut(values, stored, dataset)
    notes = []
    try:
        if window := _window(dataset):
            function, center, width = window
            grey = np.clip(WINDOWS[function](values, center, width), 0, 1)
            return grey, f"window {function} {center:g}/{width:g}", []
    except ValueError:
        notes.append("its window is invalid and was not used")
    lowest, highest = ends
    grey = np.clip((values - lowest) / (highest - lowest), 0, 1)
    return grey, f"stored range of {int(dataset.BitsStored)} bits", notes


def _window(dataset: Dataset) -> tuple[str, float, float] | None:
    """Function, centre and width of the first window; None if there is none.

    Raises:
        ValueError: it is invalid.
    """
    center, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if center is None and width is None:
        return None
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if center is None or width is None or function not in WINDOWS:
        raise ValueError
    if not (width >= 1 if function == "LINEAR" else width > 0):
        raise ValueError
    return function, center, width


def _linear(values: Values, center: float, width: float) -> Values:
    if width <= 1:
        return (values > center - 0.5).astype(np.float64)
    return (values - (center - 0.5)) / (width - 1) + 0.5


#: Grey values in [0, 1] before clipping, by VOILUTFunction (PS3.3 C.11.2.1.2 and C.11.2.1.3).
WINDOWS: dict[str, Callable[[Values, float, float], Values]] = {
    "LINEAR": _linear,
    "LINEAR_EXACT": lambda values, center, width: (values - center) / width + 0.5,
    "SIGMOID": lambda values, center, width: 0.5 + 0.5 * np.tanh(2 * (values - center) / width),
}


def _by_lut(values: Values, stored: NDArray[Any], dataset: Dataset) -> tuple[Values, str, list[str]]:
    # The table is read by whole numbers, such as those of a modality LUT.
    whole = values.astype(np.int64) if (values == np.rint(values)).all() else stored
    table = dataset.VOILUTSequence[0]
    bits = int(table.LUTDescriptor[2])
    if not 8 <= bits <= 16:
        raise UnreadableError("is damaged: its VOI LUT is invalid")
    grey = np.asarray(apply_voi(whole, dataset), dtype=np.float64) / (2**bits - 1)
    return np.clip(grey, 0, 1), f"VOI LUT of {bits} bits", []


def _range(dataset: Dataset) -> tuple[float, float]:
    """The lowest and the highest value that the stored bits can hold, after the modality LUT.

    Raises:
        UnreadableError: all stored values are the same after it, or are infinite.
    """
    if dataset.get("ModalityLUTSequence"):
        return 0, 2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    bits = int(dataset.BitsStored)
    signed = int(dataset.get("PixelRepresentation") or 0) == 1
    stored = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    ends = sorted(map(float, apply_modality_lut(np.array(stored), dataset)))
    if not (math.isfinite(ends[0]) and math.isfinite(ends[1]) and ends[0] < ends[1]):
        raise UnreadableError("is damaged: its rescale slope is invalid")
    return ends[0], ends[1]


def _first(value: Any) -> float | None:
    """The first of one or several numbers; None if there is none.

    Raises:
        ValueError: it is no finite number.
    """
    first = (value[0] if len(value) else None) if isinstance(value, MultiValue | list) else value
    if first is None:
        return None
    if not math.isfinite(float(first)):
        raise ValueError
    return float(first)


def _spacing(dataset: Dataset) -> tuple[tuple[float, float] | None, list[str]]:
    """Distance of rows and of columns in mm, and warnings: it is that at the detector, or it is invalid."""
    notes = []
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        try:
            value = dataset.get(name)
            if value is None:
                continue
            rows, columns = map(float, value)
        except (ValueError, TypeError):
            rows = columns = 0.0
        if 0.01 <= rows <= 10 and 0.01 <= columns <= 10:
            if name == "ImagerPixelSpacing":
                notes.append("areas in mm2 are those at the detector, larger than in the body")
            return (rows, columns), notes
        notes.append(f"its {name} is invalid and was not used")
    return None, notes


def _facts(dataset: Dataset) -> dict[str, str | int]:
    """The attributes of `FACTS`, as far as their values are codes or numbers."""
    found: dict[str, str | int] = {}
    for name in FACTS:
        value = dataset.get(name)
        if isinstance(value, int):
            found[name] = int(value)
        elif isinstance(value, str) and CODES.get(name, frozenset()) & {value}:
            found[name] = str(value)
    return found


CODES = {
    "Modality": frozenset(MODALITIES),
    "PhotometricInterpretation": frozenset({"MONOCHROME1", "MONOCHROME2"}),
    "ViewPosition": frozenset({"AP", "PA", "LLO", "LAO", "RLO", "RAO", *LATERAL}),
    "VOILUTFunction": frozenset(WINDOWS),
}
