import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import tasks.prediction.decoder
from tasks.common.png import UnreadableError
from tasks.prediction.decoder import Decoders
from tasks.prediction.dicom import read_dicom
from tests.dicoms import make_dicom, twelve_bit

PIXELS = np.arange(256, dtype=np.uint8).reshape(16, 16)
CONTENTS = [
    make_dicom(PIXELS, PixelSpacing=["0.2", "0.1"], ViewPosition="LL", BurnedInAnnotation="YES"),
    make_dicom(PIXELS.astype(np.uint16) * 16 + 1, 12),
    twelve_bit(PIXELS),
]


@pytest.fixture
def decoders() -> Decoders:
    return Decoders()


def test_pictures_are_those_of_read_dicom(decoders: Decoders) -> None:
    for content in CONTENTS * 2:
        found, expected = decoders.read(content), read_dicom(content)
        np.testing.assert_array_equal(found.pixels, expected.pixels, strict=True)
        for name in ("format", "grey", "spacing", "warnings", "facts", "shows_text"):
            assert getattr(found, name) == getattr(expected, name)
    decoders.close()


def test_several_threads_read_at_once(decoders: Decoders) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(decoders.read, CONTENTS * 8))
    assert [one.grey for one in found] == [read_dicom(content).grey for content in CONTENTS] * 8
    decoders.close()


def test_a_reason_is_passed_on(decoders: Decoders) -> None:
    with pytest.raises(UnreadableError, match="its modality is CT"):
        decoders.read(make_dicom(PIXELS, Modality="CT"))
    decoders.close()


def stop_at_start(monkeypatch: pytest.MonkeyPatch, how: signal.Signals) -> list[int]:
    """Send each new process a signal before it can answer."""
    started = []
    popen = subprocess.Popen

    def start(*args: object, **more: object) -> "subprocess.Popen[bytes]":
        process = popen(*args, **more)  # type: ignore[call-overload]
        os.kill(process.pid, how)
        started.append(process.pid)
        return process  # type: ignore[no-any-return]

    monkeypatch.setattr(tasks.prediction.decoder.subprocess, "Popen", start)
    return started


def test_a_crash_is_the_fault_of_one_file(decoders: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_at_start(patch, signal.SIGSEGV)
        with pytest.raises(UnreadableError, match="crashes its decoder"):
            decoders.read(CONTENTS[0])
    assert decoders.read(CONTENTS[0]).shape == (16, 16)
    decoders.close()


def test_a_decoder_that_hangs_is_ended(decoders: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.prediction.decoder, "SECONDS", 0.5)
    started = stop_at_start(monkeypatch, signal.SIGSTOP)
    with pytest.raises(UnreadableError, match=r"takes longer than 0\.5 s"):
        decoders.read(CONTENTS[0])
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)
