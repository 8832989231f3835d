"""Reads DICOM files in other processes: a damaged file may crash or hang the libraries that decode it.

`python -m tasks.prediction.decoder` is such a process. It reads files from its standard input and writes
pictures to its standard output, each message as its length in eight bytes and its bytes.
"""

import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO

import numpy as np

from tasks.common.png import UnreadableError
from tasks.prediction.pictures import Picture

#: Seconds within which any X-ray is decoded.
SECONDS = 120.0
#: The folder from which the process imports the project.
ROOT = Path(__file__).parents[2]


class Decoders:
    """Processes that read DICOM files, one for each thread that reads at the same time."""

    def __init__(self) -> None:
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()

    def read(self, content: bytes) -> Picture:
        """The picture in a DICOM file.

        Raises:
            UnreadableError: as `tasks.prediction.dicom.read_dicom`, or the file crashes or hangs its decoder.
        """
        process = self._take()
        timer = threading.Timer(SECONDS, process.kill)
        timer.start()
        try:
            assert process.stdin
            assert process.stdout
            _send(process.stdin, content)
            header, pixels = _receive(process.stdout), _receive(process.stdout)
        except (EOFError, BrokenPipeError):
            late = not timer.is_alive()
            _end(process)
            raise UnreadableError(f"takes longer than {SECONDS:g} s to decode" if late else CRASH) from None
        finally:
            timer.cancel()
        self._idle.put(process)
        return _picture(header, pixels)

    def _take(self) -> "subprocess.Popen[bytes]":
        try:
            return self._idle.get_nowait()
        except Empty:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            command = [sys.executable, "-m", "tasks.prediction.decoder"]
            return subprocess.Popen(command, cwd=ROOT, **pipes)  # type: ignore[call-overload, no-any-return]

    def close(self) -> None:
        """End the processes."""
        while not self._idle.empty():
            _end(self._idle.get_nowait())


CRASH = "crashes its decoder"


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate()


def _send(stream: IO[bytes], message: bytes) -> None:
    stream.write(len(message).to_bytes(8))
    stream.write(message)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes:
    """The next message. Raises EOFError if the other side has ended."""
    head = stream.read(8)
    message = stream.read(int.from_bytes(head))
    if len(head) < 8 or len(message) < int.from_bytes(head):
        raise EOFError
    return message


def _picture(header: bytes, pixels: bytes) -> Picture:
    described = json.loads(header)
    if reason := described.get("reason"):
        raise UnreadableError(reason)
    dtype = np.dtype(np.uint8 if described.pop("eight_bit") else np.float32)
    array = np.frombuffer(pixels, dtype).reshape(described.pop("shape"))
    spacing = described.pop("spacing")
    return Picture(
        array,
        spacing=tuple(spacing) if spacing else None,
        warnings=tuple(described.pop("warnings")),
        **described,
    )


def _answer(content: bytes) -> tuple[bytes, bytes]:
    from tasks.prediction.dicom import read_dicom

    try:
        picture = read_dicom(content)
    except UnreadableError as error:
        return json.dumps({"reason": str(error)}).encode(), b""
    except MemoryError:
        return json.dumps({"reason": "is too large for the memory"}).encode(), b""
    header = {
        "eight_bit": picture.pixels.dtype == np.uint8,
        "shape": picture.shape,
        "format": picture.format,
        "grey": picture.grey,
        "spacing": picture.spacing,
        "warnings": picture.warnings,
        "facts": picture.facts,
        "shows_text": picture.shows_text,
    }
    return json.dumps(header).encode(), np.ascontiguousarray(picture.pixels).tobytes()


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # What libraries print may quote the file, and would disturb the answers.
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(null, stream.fileno())
    warnings.simplefilter("ignore")
    while True:
        try:
            content = _receive(sys.stdin.buffer)
        except EOFError:
            return
        for message in _answer(content):
            _send(answers, message)


if __name__ == "__main__":
    main()
