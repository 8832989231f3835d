"""Predicts all images of a run and writes its folder. One bad file never ends the run."""

import hashlib
import io
import itertools
import json
import math
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tasks.bundles.files import BUNDLE_FILE, FINGERPRINT_FILE
from tasks.bundles.fingerprint import Fingerprint, thumbnail
from tasks.bundles.schema import Bundle, open_bundle
from tasks.common.cores import MOST_THREADS, in_threads
from tasks.common.png import UnreadableError
from tasks.common.raw import encode_mask
from tasks.inference.masks import Floats, Mask
from tasks.prediction.decoder import Decoders
from tasks.prediction.drawing import overlay
from tasks.prediction.folder import OVERLAYS, Folder, Record
from tasks.prediction.inputs import Item, find_items
from tasks.prediction.measures import measure
from tasks.prediction.page import Failure, render
from tasks.prediction.pictures import Picture
from tasks.prediction.predictor import EngineName, Prediction, Predictor, Raw
from tasks.prediction.pseudonyms import with_pseudonyms
from tasks.prediction.reading import read_picture
from tasks.settings.training import Target
from tasks.support.cli import InputError, describe_os_error
from tasks.support.cpus import available_cores
from tasks.support.progress import progress

#: Most images that pass through the networks together. More would need more memory and save little time.
BATCH = 16
#: Software that changes pixels.
LIBRARIES = ("numpy", "pillow", "scipy", "onnxruntime", "torch", "pydicom", "python-gdcm")


@dataclass(frozen=True)
class Options:
    """How images are predicted, and what is written."""

    engine: EngineName = "onnx"
    """onnx runs the networks with ONNX Runtime on the CPU, torch with torch on the GPU if there is one."""
    ensemble: bool = False
    """Also run the networks of further seeds, and report how much they differ."""
    probabilities: bool = False
    """Also write probabilities, as 16-bit PNG files."""
    pseudonyms: Path | None = None
    """The file with the key of pseudonyms, which replace all file names."""
    overwrite: bool = False
    """Replace the results of an earlier run in the same folder."""


@dataclass(frozen=True)
class Summary:
    """What a run did."""

    predicted: int
    """Images with results, including those of an earlier run that this one continued."""
    unusual: int
    """Predicted images with a warning."""
    failed: list[Failure]
    records: list[Record]
    """The predicted images."""


def predict(inputs: Sequence[str], model: Path, out: Path, options: Options) -> Summary:
    """Predict masks of X-rays, and write them with the other files of `tasks.prediction.folder`.

    Images that an earlier run in the same folder has finished are not predicted again.

    Args:
        inputs: files, folders, patterns such as `xrays/*.png`, zip archives, or prefixes on S3.
        model: the folder of a bundle.
        out: the folder to write.

    Raises:
        InputError: there is no image or no bundle, or the folder holds something else.
    """
    items = find_items(inputs)
    if options.pseudonyms:
        items = with_pseudonyms(items, options.pseudonyms)
    return predict_items(items, model, out, options)


def predict_items(items: Sequence[Item], model: Path, out: Path, options: Options) -> Summary:
    """Predict masks of X-rays that were found before, as `predict` does.

    Raises:
        InputError: there is no bundle, or the folder holds something else.
    """
    started = time.time()
    bundle = open_bundle(model)
    run = _Run(model, bundle, out, options, len(items))
    try:
        run.predict(items)
        run.write(items, started)
    finally:
        run.close()
    return run.summary()


class _Read(NamedTuple):
    """An input file that was read: its picture, or why there is none. Both are None if it was finished."""

    item: Item
    sha256: str
    picture: Picture | None
    reason: str | None
    small: Floats | None
    """The picture as the networks see it, (S, S)."""


class _Run:
    """One call of `predict`."""

    def __init__(self, model: Path, bundle: Bundle, out: Path, options: Options, images: int) -> None:
        self._bundle, self._options = bundle, options
        self._digest = hashlib.sha256((model / BUNDLE_FILE).read_bytes()).hexdigest()
        changing = {name: asdict(options)[name] for name in ("engine", "ensemble", "probabilities")}
        header = {"bundle": self._digest, "pseudonyms": options.pseudonyms is not None, **changing}
        self._fingerprint = Fingerprint.read(model / FINGERPRINT_FILE)
        # Every thread takes a batch from its files to its files. With ONNX Runtime the networks run in these
        # threads too, which is faster than one batch after another in all of them. torch takes turns.
        cores = available_cores()
        self._batch = max(1, min(BATCH, math.ceil(images / cores)))
        self._turn = nullcontext() if options.engine == "onnx" else threading.Lock()
        workers = min(cores, MOST_THREADS, max(1, math.ceil(images / self._batch)))
        self._predictor = Predictor(model, bundle, options.engine, options.ensemble, cores // workers)
        self._folder = Folder(out, header, options.overwrite)
        self._decoders = Decoders()
        self._failed: list[Failure] = []
        self._records: list[Record] = []

    def predict(self, items: Sequence[Item]) -> None:
        batches = [items[start : start + self._batch] for start in range(0, len(items), self._batch)]
        processed = itertools.chain.from_iterable(in_threads(self._process, batches, 1))
        for result in progress(processed, len(items), "predict"):
            if isinstance(result, Failure):
                self._failed.append(result)
                print(f"not predicted: {result.source}: {result.reason}", file=sys.stderr, flush=True)
            elif isinstance(result, Record):
                if result.image not in self._folder.finished or result != self._folder.finished[result.image]:
                    self._folder.finish(result)
                self._records.append(result)

    def close(self) -> None:
        self._decoders.close()
        self._folder.close()

    def _process(self, batch: Sequence[Item]) -> list[Record | Failure]:
        """Read images, pass them through the networks together, and write their files."""
        read = [self._read(item) for item in batch]
        images = [one.small for one in read if one.small is not None]
        with self._turn:
            raws = iter(self._predictor.forward(np.stack(images)[:, None]) if images else ())
        return [self._write(one, None if one.small is None else next(raws)) for one in read]

    def _read(self, item: Item) -> _Read:
        """Read and decode a file, unless its results are there."""
        try:
            content = item.read()
        except InputError as error:
            reason = "cannot be read from its archive" if self._options.pseudonyms else str(error)
            return _Read(item, "", None, reason, None)
        except OSError as error:
            error.filename = None
            return _Read(item, "", None, f"cannot be read: {describe_os_error(error)}", None)
        digest = hashlib.sha256(content).hexdigest()
        if self._folder.is_finished(item.name, digest):
            return _Read(item, digest, None, None, None)
        try:
            picture = read_picture(content, self._decoders)
            return _Read(item, digest, picture, None, picture.network_input(self._bundle.input.image_size))
        except UnreadableError as error:
            return _Read(item, digest, None, str(error), None)
        except MemoryError:
            return _Read(item, digest, None, "is too large for the memory", None)

    def _write(self, read: _Read, raw: Raw | None) -> Record | Failure:
        """Write the files of an image."""
        item, digest, picture, reason, _ = read
        if reason is not None:
            if digest:
                self._folder.forget(item.name)
            return Failure(item.source, reason, digest)
        if picture is None or raw is None:
            return self._folder.finished[item.name]
        prediction = self._predictor.finish(raw, picture.shape)
        files = [
            self._folder.write(name, content()) for name, content in self._files(item, picture, prediction)
        ]
        measures = self._measures(picture, prediction)
        warnings = [*picture.warnings, *self._unusual(measures)]
        row = {"image": item.name, "source": item.source, **measure(picture, prediction)}
        row["warnings"] = "; ".join(warnings)
        return Record(item.name, item.source, digest, row, picture.grey, picture.facts, files, measures)

    def _files(
        self, item: Item, picture: Picture, prediction: Prediction
    ) -> Iterator[tuple[str, Callable[[], bytes]]]:
        for target, mask in prediction.masks.items():
            yield f"masks/{target}/{item.name}.png", lambda mask=mask: encode_mask(mask)  # type: ignore[misc]
        if self._options.probabilities:
            for target, found in prediction.probabilities.items():
                name = f"probabilities/{target}/{item.name}.png"
                yield name, lambda found=found: _sixteen_bit(found)  # type: ignore[misc]
        if not picture.shows_text:
            lungs: dict[Target, Mask] = {} if prediction.lungs is None else {"lung": prediction.lungs}
            masks = lungs | prediction.masks
            yield f"{OVERLAYS}/{item.name}.jpg", lambda: overlay(picture.eight_bit(), masks)

    def _measures(self, picture: Picture, prediction: Prediction) -> dict[str, float]:
        small = thumbnail(Image.fromarray(picture.eight_bit()))
        lung_area = None if prediction.lungs is None else float(prediction.lungs.mean())
        return self._fingerprint.measures(small, lung_area)

    def _unusual(self, measures: dict[str, float]) -> list[str]:
        words = ", ".join(name.replace("_", " ") for name in self._fingerprint.outside(measures))
        return [f"unlike the training images ({words})"] if words else []

    def write(self, items: Sequence[Item], started: float) -> None:
        """Write the table, the page and run.json."""
        self._folder.write_table(self._records)
        page = render(self._bundle, self._records, self._failed)
        self._folder.write("index.html", page.encode())
        content = json.dumps(self._facts(items, started), indent=1) + "\n"
        self._folder.write("run.json", content.encode())

    def _facts(self, items: Sequence[Item], started: float) -> dict[str, Any]:
        options = asdict(self._options) | {"pseudonyms": self._options.pseudonyms is not None}
        return {
            "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - started, 1),
            "bundle": {"name": self._bundle.name, "sha256": self._digest},
            "options": options,
            "device": _device(self._options.engine),
            "software": _software(self._options.engine),
            "images": len(items),
            "predicted": len(self._records),
            "failed": [{"source": one.source, "reason": one.reason} for one in self._failed],
            "read": {record.image: {"grey_values": record.grey, **record.facts} for record in self._records},
        }

    def summary(self) -> Summary:
        unusual = sum(bool(record.row.get("warnings")) for record in self._records)
        return Summary(len(self._records), unusual, self._failed, self._records)


def _sixteen_bit(probability: Floats) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.rint(probability * 65535).astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def _device(engine: EngineName) -> str:
    if engine == "onnx":
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _software(engine: EngineName) -> dict[str, str]:
    found = {"platform": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
    for name in LIBRARIES:
        if name != ("torch" if engine == "onnx" else "onnxruntime"):
            with suppress(PackageNotFoundError):
                found[name] = version(name)
    return found
