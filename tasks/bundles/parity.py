"""Checks that the exported network predicts what the trained one predicts, over all Test images.

ONNX Runtime is compared with torch, both in fp32. torch is compared with the masks that the stage evaluate
wrote.
"""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tasks.bundles.engines import BATCH, Engine, mirror_averaged
from tasks.common.environment import versions
from tasks.inference.masks import Floats, Mask, OperatingPoints, operating_points, resized, to_masks
from tasks.packed.reader import PackedSplit, scaled
from tasks.settings.experiments import Plan
from tasks.settings.prediction import Prediction
from tasks.settings.training import Target
from tasks.support.cli import InputError
from tasks.support.progress import progress

#: Maximum difference of a probability between ONNX Runtime and torch.
MOST_PROBABILITY = 1e-4
#: Maximum share of mask pixels that differ between ONNX Runtime and torch, or between torch and evaluate. On
#: the same machine, torch and evaluate do not differ; another number of cores changes the last digits.
MOST_PIXELS = 1e-5
#: The same for torch and evaluate, if evaluate ran on another kind of device, in another number format or
#: with other versions.
MOST_ELSEWHERE = 1e-3

Evaluated = dict[str, Any]


class Parity(NamedTuple):
    """How much predictions differ, over all Test images and targets of a network."""

    images: int
    pixels: int
    """Number of mask pixels compared."""
    probability: float
    """Largest difference between ONNX Runtime and torch."""
    onnx_pixels: int
    """Mask pixels that differ between ONNX Runtime and torch."""
    evaluated_pixels: int
    """Mask pixels that differ between torch and the stage evaluate."""
    same_setup: bool
    """Whether evaluate ran with the same versions and number format, on the same kind of device."""


class Networks(NamedTuple):
    """The same network three times."""

    graph: Engine
    plain: Engine
    """torch in fp32."""
    native: Engine
    """torch as evaluate uses it; the same object if that is fp32 on the CPU."""


def read_settings(folder: Path) -> Evaluated:
    """The settings.json that the stage evaluate wrote under `folder`."""
    settings: Evaluated = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return settings


def compare_engines(
    networks: Networks,
    plan: Plan,
    prediction: Prediction,
    split: PackedSplit,
    evaluated: Path,
    setup: tuple[str, str],
) -> Parity:
    """Predict every image of the split with each engine, and count the differences.

    Args:
        split: the Test images that evaluate read.
        evaluated: the folder that evaluate wrote.
        setup: number format and kind of device of `networks.native`.
    """
    settings = read_settings(evaluated)
    points = operating_points(settings)
    probability, pixels, onnx_pixels, evaluated_pixels = 0.0, 0, 0, 0
    with zipfile.ZipFile(evaluated / "predictions.zip") as archive:
        for predicted in _predicted(networks, plan, prediction, split):
            probability = max(probability, float(np.abs(predicted.graph - predicted.plain).max()))
            graph, plain, native = (
                _masks(plan, prediction, points, found, predicted) for found in predicted[:3]
            )
            for target, mask in native.items():
                with archive.open(f"{target}/{predicted.image_id}.png") as png:
                    reference = np.asarray(Image.open(io.BytesIO(png.read())))
                pixels += mask.size
                onnx_pixels += int(np.count_nonzero(graph[target] != plain[target]))
                evaluated_pixels += int(np.count_nonzero(mask != reference))
    same = (settings["precision"], settings["device"], settings["versions"]) == (*setup, versions())
    return Parity(len(split), pixels, probability, onnx_pixels, evaluated_pixels, same)


class _Predicted(NamedTuple):
    """The probabilities (C, S, S) of an image from each of `Networks`."""

    graph: Floats
    plain: Floats
    native: Floats
    image_id: str
    shape: tuple[int, int]
    region: Mask | None


def _predicted(
    networks: Networks, plan: Plan, prediction: Prediction, split: PackedSplit
) -> Iterator[_Predicted]:
    starts = range(0, len(split), BATCH)
    for start in progress(starts, len(starts), f"{plan.name} parity, batches"):
        rows = slice(start, start + BATCH)
        images = scaled(split.images(rows)).numpy()
        graph = _probabilities(networks.graph, images, prediction)
        plain = _probabilities(networks.plain, images, prediction)
        same = networks.native is networks.plain
        native = plain if same else _probabilities(networks.native, images, prediction)
        regions = split.regions(rows)
        table = split.table[rows]
        sizes = zip(table["height"], table["width"], strict=True)
        for index, (image_id, (height, width)) in enumerate(zip(table["id"], sizes, strict=True)):
            shape = (int(height), int(width))
            region = None if regions is None else resized(regions[index].float().numpy(), shape) >= 0.5
            yield _Predicted(graph[index], plain[index], native[index], image_id, shape, region)


def _probabilities(engine: Engine, images: Floats, prediction: Prediction) -> Floats:
    return mirror_averaged(engine, images) if prediction.flip_average else engine(images)


def _masks(
    plan: Plan, prediction: Prediction, points: OperatingPoints, found: Floats, of: _Predicted
) -> dict[Target, Mask]:
    own = {target: resized(one, of.shape) for target, one in zip(plan.targets, found, strict=True)}
    if of.region is not None:
        own = {target: one * of.region for target, one in own.items()}
    return to_masks(own, points, prediction)


def require_parity(name: str, parity: Parity) -> None:
    """Check the differences against their limits.

    Raises:
        InputError: a difference is too large.
    """
    if not parity.probability <= MOST_PROBABILITY:  # NaN fails too
        raise InputError(
            f"{name}: probabilities of ONNX Runtime and torch differ by up to {parity.probability:.2g}, "
            f"more than {MOST_PROBABILITY:g}"
        )
    if parity.onnx_pixels > MOST_PIXELS * parity.pixels:
        raise InputError(
            f"{name}: the masks of ONNX Runtime and torch differ in {parity.onnx_pixels} of {parity.pixels} "
            f"pixels, more than the share {MOST_PIXELS:g}"
        )
    most = MOST_PIXELS if parity.same_setup else MOST_ELSEWHERE
    if parity.evaluated_pixels > most * parity.pixels:
        raise InputError(
            f"{name}: {parity.evaluated_pixels} of {parity.pixels} mask pixels differ from those of the "
            f"stage evaluate, more than the share {most:g}"
        )
