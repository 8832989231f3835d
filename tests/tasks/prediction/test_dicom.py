from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from tasks.common.png import UnreadableError
from tasks.prediction.dicom import read_dicom
from tests.dicoms import SECRETS, compressed, dataset_of, lookup_table, make_dicom, to_bytes, twelve_bit

PIXELS = np.arange(256, dtype=np.uint8).reshape(16, 16)
WIDE = (np.arange(256, dtype=np.uint16) * 16 + 5).reshape(16, 16)


#: Of damaged files; the process that reads them shows none.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_eight_bits_are_read_as_stored() -> None:
    picture = read_dicom(make_dicom(PIXELS))
    np.testing.assert_array_equal(picture.pixels, PIXELS, strict=True)
    assert (picture.format, picture.grey) == ("DICOM", "stored range of 8 bits")


def test_an_inverted_image_of_twelve_bits_gives_the_eight_bits_it_was_made_of() -> None:
    picture = read_dicom(twelve_bit(PIXELS))
    np.testing.assert_array_equal(picture.pixels, PIXELS, strict=True)
    assert picture.grey == "window LINEAR 128/256, inverted (MONOCHROME1)"


def test_more_than_eight_bits_are_kept() -> None:
    picture = read_dicom(make_dicom(WIDE, 12))
    np.testing.assert_allclose(picture.pixels, WIDE / 4095, rtol=0, atol=1e-7)
    assert picture.pixels.dtype == np.float32
    assert (
        len(np.unique(read_dicom(make_dicom(np.arange(4096).reshape(64, 64).astype("u2"), 12)).pixels))
        == 4096
    )


#: Stored values and attributes -> grey values, worked out by hand from DICOM PS3.3 C.11.
GREY: dict[str, tuple[list[int], dict[str, Any], list[float], str]] = {
    "window": (
        [0, 50, 100, 4000],
        {"WindowCenter": "50.5", "WindowWidth": "101"},
        [0, 0.5, 1, 1],
        "window LINEAR 50.5/101",
    ),
    "exact window": (
        [0, 50, 100, 75],
        {"WindowCenter": "50", "WindowWidth": "100", "VOILUTFunction": "LINEAR_EXACT"},
        [0, 0.5, 1, 0.75],
        "window LINEAR_EXACT 50/100",
    ),
    "sigmoid": (
        [50, 75, 25, 1000],
        {"WindowCenter": "50", "WindowWidth": "100", "VOILUTFunction": "SIGMOID"},
        [0.5, 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), 1],
        "window SIGMOID 50/100",
    ),
    "the first of several windows": (
        [0, 50, 100, 100],
        {"WindowCenter": ["50.5", "9"], "WindowWidth": ["101", "3"]},
        [0, 0.5, 1, 1],
        "window LINEAR 50.5/101",
    ),
    "rescale": (
        [0, 1000, 4095, 2000],
        {"RescaleSlope": "2", "RescaleIntercept": "-100", "WindowCenter": "900.5", "WindowWidth": "2001"},
        [0, 1, 1, 1],
        "window LINEAR 900.5/2001",
    ),
    "negative slope": (
        [0, 4095, 0, 4095],
        {"RescaleSlope": "-1", "RescaleIntercept": "0"},
        [1, 0, 1, 0],
        "stored range of 12 bits",
    ),
    "VOI LUT": (
        [0, 1, 2, 3],
        {"VOILUTSequence": [lookup_table([0, 255, 510, 1023], 10)]},
        [0, 255 / 1023, 510 / 1023, 1],
        "VOI LUT of 10 bits",
    ),
    "modality LUT": (
        [0, 1, 2, 3],
        {"ModalityLUTSequence": [lookup_table([0, 1000, 65535, 32768], 16)]},
        [0, 1000 / 65535, 1, 32768 / 65535],
        "stored range of 12 bits",
    ),
    "a slope without an intercept, which DICOM does not define": (
        [0, 4095, 819, 4095],
        {"RescaleSlope": "2"},
        [0, 1, 0.2, 1],
        "stored range of 12 bits",
    ),
    "zero width": (
        [0, 4095, 0, 4095],
        {"WindowCenter": "50", "WindowWidth": "0"},
        [0, 1, 0, 1],
        "stored range of 12 bits",
    ),
}
GREY["rescale"][2][:] = [float(np.clip((v - 900) / 2000 + 0.5, 0, 1)) for v in (-100, 1900, 8090, 3900)]


@pytest.mark.parametrize("name", GREY)
def test_grey_values_follow_the_file(name: str) -> None:
    stored, attributes, expected, how = GREY[name]
    picture = read_dicom(make_dicom(np.array([stored], np.uint16), 12, **attributes))
    pixels = picture.pixels if picture.pixels.dtype == np.float32 else picture.pixels / 255
    np.testing.assert_allclose(pixels, [expected], rtol=0, atol=1e-6)
    assert picture.grey == how
    assert bool(picture.warnings) == (name == "zero width")


def test_signed_values_span_the_signed_range() -> None:
    picture = read_dicom(make_dicom(np.array([[-2048, 2047]], np.int16), 12))
    assert picture.pixels.tolist() == [[0, 255]]


def test_the_darkest_and_brightest_pixel_do_not_matter() -> None:
    alone = read_dicom(make_dicom(np.full((2, 2), 1000, np.uint16), 12)).pixels
    beside = read_dicom(make_dicom(np.array([[1000, 4000], [10, 1000]], np.uint16), 12)).pixels
    assert alone[0, 0] == beside[0, 0]


SYNTAXES = ("JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless")


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_compressed_pixels_are_the_same(syntax: str, tmp_path: Path) -> None:
    plain = twelve_bit(PIXELS)
    np.testing.assert_array_equal(
        read_dicom(compressed(plain, syntax, tmp_path)).pixels, read_dicom(plain).pixels, strict=True
    )


def test_spacing_is_that_of_the_body_if_known() -> None:
    of_body = read_dicom(make_dicom(PIXELS, PixelSpacing=["0.2", "0.1"], ImagerPixelSpacing=["1", "1"]))
    assert (of_body.spacing, of_body.warnings) == ((0.2, 0.1), ())
    at_detector = read_dicom(make_dicom(PIXELS, ImagerPixelSpacing=["0.2", "0.1"]))
    assert at_detector.spacing == (0.2, 0.1)
    assert "at the detector" in at_detector.warnings[0]


@pytest.mark.parametrize(
    "written",
    [b"0.00\\0.00", b"1000\\0.50", b"-0.5\\0.50", b"0.50\\    ", b"0,50\\0,50", b"unknown  ", b"nan \\0.50"],
)
def test_an_invalid_spacing_costs_no_more_than_the_areas_in_mm2(written: bytes) -> None:
    content = make_dicom(PIXELS, PixelSpacing=["0.12", "0.12"])
    assert content.count(b"0.12\\0.12") == 1
    picture = read_dicom(content.replace(b"0.12\\0.12", written))
    np.testing.assert_array_equal(picture.pixels, PIXELS, strict=True)
    assert picture.spacing is None
    assert picture.warnings == ("its PixelSpacing is invalid and was not used",)


@pytest.mark.parametrize("written", [b"13,7", b"wide", b"nan ", b"inf ", b"    ", b"-10 "])
def test_an_invalid_window_is_not_used_and_warned_of(written: bytes) -> None:
    content = make_dicom(WIDE, 12, WindowCenter="2468", WindowWidth="1357")
    assert content.count(b"1357") == 1
    picture = read_dicom(content.replace(b"1357", written))
    np.testing.assert_allclose(picture.pixels, WIDE / 4095, rtol=0, atol=1e-7)
    assert picture.warnings == ("its window is invalid and was not used",)


def test_side_views_and_burned_in_text_are_warned_of() -> None:
    assert "not a frontal view" in read_dicom(make_dicom(PIXELS, ViewPosition="LL")).warnings[0]
    assert read_dicom(make_dicom(PIXELS, ViewPosition="PA")).warnings == ()
    picture = read_dicom(make_dicom(PIXELS, BurnedInAnnotation="YES"))
    assert picture.shows_text
    assert "no overlay" in picture.warnings[0]


def test_only_codes_and_numbers_leave_a_file() -> None:
    picture = read_dicom(make_dicom(PIXELS, ViewPosition="PLANTED", BodyPartExamined="PLANTED"))
    assert picture.facts == {"Modality": "CR", "PhotometricInterpretation": "MONOCHROME2", "BitsStored": 8}
    assert not any(secret in repr(picture) for secret in SECRETS)


def deflated() -> bytes:
    dataset = dataset_of(PIXELS)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return to_bytes(dataset)


UNREADABLE: dict[str, tuple[bytes, str]] = {
    "a CT slice": (make_dicom(PIXELS, Modality="CT"), "its modality is CT, not CR or DX or RG"),
    "a name as modality": (make_dicom(PIXELS, Modality="PLANTED"), "its modality is unknown"),
    "no modality": (make_dicom(PIXELS, Modality=None), "its modality is unknown"),
    "frames": (make_dicom(np.stack([PIXELS] * 3), NumberOfFrames=3), "holds 3 frames"),
    "no pixels": (make_dicom(PIXELS, PixelData=None), "holds no image"),
    "colours": (make_dicom(PIXELS, PhotometricInterpretation="RGB", SamplesPerPixel=3), "not a grey image"),
    "a palette": (make_dicom(PIXELS, PhotometricInterpretation="PALETTE COLOR"), "not a grey image"),
    "huge": (make_dicom(PIXELS, Rows=60000, Columns=60000), "at most 64 megapixels"),
    "no rows": (make_dicom(PIXELS, Rows=0), "is 16x0"),
    "too few pixels": (make_dicom(PIXELS, Rows=4000, Columns=4000), "cannot be decoded|damaged"),
    "32 bits": (make_dicom(PIXELS, BitsAllocated=32, BitsStored=32), "does not store its pixels in 1 to 16"),
    "a slope of 0": (
        make_dicom(PIXELS, RescaleSlope="0", RescaleIntercept="5"),
        "its rescale slope is invalid",
    ),
    "an endless slope": (
        make_dicom(PIXELS, RescaleSlope="1e308", RescaleIntercept="0"),
        "its rescale slope is invalid",
    ),
    "bits at the top of their bytes": (
        make_dicom(WIDE << 4, 12, HighBit=15),
        "stores 12 bits whose highest is bit 15, not 11",
    ),
    "deflated": (deflated(), "uses the deflated transfer syntax"),
    "truncated": (make_dicom(PIXELS)[:300], "holds no image|damaged|modality is unknown"),
    "nothing after the preamble": (b"\0" * 128 + b"DICM", "modality is unknown|damaged"),
    "noise": (b"\0" * 128 + b"DICM" + bytes(range(256)) * 9, "damaged|modality is unknown"),
}


@pytest.mark.parametrize("fault", UNREADABLE)
def test_what_is_no_single_radiograph_is_refused(fault: str) -> None:
    content, reason = UNREADABLE[fault]
    with pytest.raises(UnreadableError, match=reason) as raised:
        read_dicom(content)
    assert not any(secret.lower() in str(raised.value).lower() for secret in SECRETS)


@pytest.mark.parametrize("syntax", [None, *SYNTAXES])
def test_changed_bytes_give_a_picture_or_a_reason(syntax: str | None, tmp_path: Path) -> None:
    content = twelve_bit(PIXELS) if syntax is None else compressed(twelve_bit(PIXELS), syntax, tmp_path)
    rng = np.random.default_rng(0)
    for _ in range(40):
        changed = bytearray(content)
        for place in rng.integers(132, len(content), rng.integers(1, 20)):
            changed[place] = rng.integers(256)
        with suppress(UnreadableError):
            read_dicom(bytes(changed))
