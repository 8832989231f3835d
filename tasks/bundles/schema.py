"""The schema of `bundle.json`, and how a bundle is opened.

    bundle.json                          this schema: what the networks expect, how masks are made, the scores
    card.md                              the same for people
    fingerprint.npz                      statistics of the training images, see `tasks.bundles.fingerprint`
    trained-on.txt                       hashes of the training images, see `tasks.bundles.trained_on`
    networks/TRAINING/network.onnx       from images to probabilities, float32, for ONNX Runtime
    networks/TRAINING/weights.safetensors, network.json    the same network for torch

Opening a bundle executes nothing of it: the files hold JSON, arrays and a graph of ONNX operators.
"""

import hashlib
import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.bundles.files import BUNDLE_FILE, FINGERPRINT_FILE, GRAPH, NETWORKS, TRAINED_ON_FILE
from tasks.common.raw import Half, ImageClass
from tasks.inference.masks import OperatingPoint, OperatingPoints
from tasks.settings.prediction import Prediction
from tasks.settings.training import LARGEST_INPUT, Target
from tasks.support.cli import InputError

#: Increment this with every change that an older `cxr predict` could not read.
SCHEMA_VERSION = 2
#: Versions that this code reads. Bundles of version 1 do not say which images they were trained on.
READABLE = (1, 2)

#: A larger bundle.json is not one of ours.
LARGEST_FILE = 16 << 20

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Point(Model):
    """An operating point, see `tasks.inference.masks.OperatingPoint`."""

    threshold: float
    presence: float


def _as_points(points: Mapping[Target, Point]) -> OperatingPoints:
    return {target: OperatingPoint(p.threshold, p.presence) for target, p in points.items()}


class ParityRecord(Model):
    """How much predictions differ over all Test images, see `tasks.bundles.parity.Parity`."""

    images: int
    pixels: int
    probability: float
    onnx_pixels: int
    evaluated_pixels: int
    same_setup: bool


class NetworkRecord(Model):
    """One trained network."""

    training: Name
    seed: int
    parameters: int
    precision: Literal["fp32", "bf16"]
    """The number format in which the stage evaluate ran it with torch."""
    points: dict[Target, Point]
    parity: ParityRecord
    files: dict[Literal["network.onnx", "weights.safetensors", "network.json"], Digest]
    """SHA-256 of each file."""

    @property
    def operating_points(self) -> OperatingPoints:
        return _as_points(self.points)


class Step(Model):
    """Networks that see the same images, and how their probabilities become masks."""

    experiment: Name
    targets: Annotated[tuple[Target, ...], Field(min_length=1)]
    prediction: Prediction
    classes: tuple[ImageClass, ...]
    """Classes of the training images."""
    networks: Annotated[tuple[NetworkRecord, ...], Field(min_length=1)]
    """One for each seed."""
    ensemble: dict[Target, Point] | None = None
    """The operating points of the average of all networks, of which masks are made. None: masks are those of
    the first network, and the others show how much they vary."""

    @property
    def operating_points(self) -> OperatingPoints:
        """Those of which masks are made."""
        return self.networks[0].operating_points if self.ensemble is None else _as_points(self.ensemble)


class Input(Model):
    """What the networks expect."""

    image_size: Annotated[int, Field(ge=16, le=LARGEST_INPUT)]
    """S: images are float32 (N, 1, S, S)."""
    lowest: Literal[0] = 0
    """The value of black."""
    highest: Literal[1] = 1
    """The value of white."""
    resampling: Literal["pillow_bilinear"] = "pillow_bilinear"
    """How an image is resized to S x S, whatever its aspect ratio, and probabilities back."""


class DatasetRecord(Model):
    source: str
    half: Half
    images: dict[str, int]
    """Split -> usable images."""
    fingerprint: Digest
    """SHA-256 of the table of images."""
    phantoms: bool


class TrainedOn(Model):
    """Which images the networks of all steps were trained on."""

    images: int
    """Number of different images."""
    complete: bool
    """False if a network started from other weights, whose training images are unknown."""
    sha256: Digest
    """Of trained-on.txt."""


class ScoreRecord(Model):
    """A score on Test images: the mean over seeds, with a 95% confidence interval where one is known."""

    target: Target
    image_set: str
    images: int
    metric: str
    value: float
    low: float | None
    high: float | None


class Licence(Model):
    code: str
    data: str


class Bundle(Model):
    schema_version: Literal[1, 2]
    name: Name
    intended_use: str
    limitations: tuple[str, ...]
    input: Input
    lungs: Step | None
    """Predicts the lungs outside which images are blank for `main`; None if it sees whole images."""
    main: Step
    dataset: DatasetRecord
    scores: tuple[ScoreRecord, ...]
    plans: Digest
    """SHA-256 of the plans of all trainings that the scores were compared with."""
    versions: dict[str, str]
    """Of the software that scored the networks."""
    fingerprint: Digest
    """SHA-256 of fingerprint.npz."""
    licence: Licence
    trained_on: TrainedOn | None = None
    """None in bundles of version 1."""

    @model_validator(mode="after")
    def _has_lungs_to_see(self) -> Self:
        if self.lungs and "lung" not in self.lungs.targets:
            raise ValueError("its step lungs predicts no lungs")
        return self

    def to_json(self) -> str:
        return self.model_dump_json(indent=1) + "\n"

    @property
    def steps(self) -> tuple[Step, ...]:
        return (self.lungs, self.main) if self.lungs else (self.main,)

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """Parse the text of a bundle.json.

        Raises:
            InputError: it is invalid, or has a version that this code does not know.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):  # ValueError: also a number with thousands of digits
            raise InputError(f"{where}: not valid JSON") from None
        found = content.get("schema_version") if isinstance(content, dict) else None
        if type(found) is not int or found not in READABLE:
            raise InputError(
                f"{where}: schema_version is {reprlib.repr(found)}, but this version of cxr reads "
                f"{' and '.join(map(str, READABLE))}"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise InputError(": ".join(filter(None, (where, place, first["msg"])))) from None


def network_folder(root: Path, network: NetworkRecord) -> Path:
    return root / NETWORKS / network.training


def open_bundle(root: Path) -> Bundle:
    """Read the bundle in a folder, and check the digests of its files.

    Raises:
        InputError: a file is missing, invalid, or not the one that bundle.json describes.
    """
    file = root / BUNDLE_FILE
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise InputError(f"{file}: larger than {LARGEST_FILE} bytes; this is not a bundle")
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{root}: not a bundle, it has no {BUNDLE_FILE}; `dvc repro` writes bundles to artifacts/bundles"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: not UTF-8 text") from None
    bundle = Bundle.parse(text, str(file))
    _check(root / FINGERPRINT_FILE, bundle.fingerprint)
    if bundle.trained_on:
        _check(root / TRAINED_ON_FILE, bundle.trained_on.sha256)
    for step in bundle.steps:
        for network in step.networks:
            points = (network.points, network.points if step.ensemble is None else step.ensemble)
            if any(set(of) != set(step.targets) for of in points) or GRAPH not in network.files:
                raise InputError(f"{file}: {network.training}: incomplete")
            for name, digest in network.files.items():
                _check(network_folder(root, network) / name, digest)
    return bundle


def _check(file: Path, digest: str) -> None:
    try:
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
    except FileNotFoundError:
        raise InputError(f"{file}: this file of the bundle is missing; copy the whole folder") from None
    if found != digest:
        raise InputError(f"{file}: not the file that {BUNDLE_FILE} describes; copy the bundle again")
