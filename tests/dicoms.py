"""DICOM files of radiographs, with a patient's name and id in them."""

import io
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

#: What must be in no output.
NAME, PATIENT_ID = "Planted^Patricia", "PID-4711-SECRET"
SECRETS = ("Planted", "Patricia", PATIENT_ID, "19481231", "Dr^House")


def dataset_of(pixels: np.ndarray, bits: int = 8, **attributes: Any) -> FileDataset:
    """A radiograph (H, W) of stored values; None removes an attribute."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["test"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = NAME, PATIENT_ID, "19481231"
    dataset.ReferringPhysicianName = "Dr^House"
    dataset.Modality, dataset.PhotometricInterpretation = "CR", "MONOCHROME2"
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, int(pixels.dtype.kind == "i")
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.BitsAllocated = 8 if bits <= 8 else 16
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelData = pixels.astype(f"<{pixels.dtype.kind}{dataset.BitsAllocated // 8}").tobytes()
    for name, value in attributes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def to_bytes(dataset: FileDataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def make_dicom(pixels: np.ndarray, bits: int = 8, **attributes: Any) -> bytes:
    return to_bytes(dataset_of(pixels, bits, **attributes))


def twelve_bit(pixels: np.ndarray, **attributes: Any) -> bytes:
    """An 8-bit X-ray as an inverted one of 12 bits, whose window covers the values 0..255."""
    stored = 16 * (255 - pixels.astype(np.uint16))
    window = {"RescaleSlope": "0.0625", "RescaleIntercept": "0", "WindowCenter": "128", "WindowWidth": "256"}
    return make_dicom(stored, 12, PhotometricInterpretation="MONOCHROME1", **window | attributes)


def lookup_table(values: list[int], bits: int, first: int = 0) -> Dataset:
    """An item of a modality or VOI LUT sequence."""
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.LUTData = np.array(values, "<u2").tobytes()
    item["LUTDescriptor"].VR = "US"
    item["LUTData"].VR = "OW"
    return item


def compressed(content: bytes, syntax: str, folder: Path) -> bytes:
    """The file in another transfer syntax, such as `JPEGLosslessProcess14_1`, as GDCM names them."""
    source, target = folder / "source.dcm", folder / "target.dcm"
    source.write_bytes(content)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change(), syntax
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(target).file_meta.TransferSyntaxUID.is_compressed
    return target.read_bytes()
