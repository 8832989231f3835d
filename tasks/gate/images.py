"""The images on which the networks are judged, and the scores of a bundle on them.

Images and masks have their own size. Each bundle resizes images to the size that it expects, and its
probabilities back, so that bundles of different sizes compare.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.metrics import confusion_of_masks
from tasks.bundles.files import TRAINED_ON_FILE
from tasks.bundles.schema import Bundle
from tasks.bundles.trained_on import read_hashes, shortened
from tasks.common.cores import MOST_THREADS, in_threads
from tasks.common.raw import RawDataset
from tasks.gate.rules import DECIDES, REPORTED
from tasks.gate.verdict import LeftOut
from tasks.prediction.pictures import Picture
from tasks.prediction.predictor import Predictor, Raw
from tasks.scoring.images import overlaps
from tasks.settings.params import Params
from tasks.settings.training import Target
from tasks.support.cli import InputError
from tasks.support.cpus import available_cores
from tasks.support.progress import progress

#: Most images that pass through the networks together.
BATCH = 16
#: Columns of an image: its set, and those of data/packed/SIZE/images.csv.
COLUMNS = ["set", "id", "class", "sha256"]


class Images(NamedTuple):
    """Images with reference masks, of the dataset and of external datasets."""

    table: pd.DataFrame
    """One row per image, with `COLUMNS`."""
    datasets: Mapping[str, RawDataset]
    """By set: Val, Test or the name of an external dataset."""

    @property
    def classes(self) -> dict[str, list[str]]:
        """The classes of each set."""
        return {str(name): list(of["class"].unique()) for name, of in self.table.groupby("set", sort=False)}

    def without(self, left_out: "pd.Series[bool]") -> "Images":
        return self._replace(table=self.table[~left_out].reset_index(drop=True))


def judged_images(checkout: Path, params: Params, half: str, target: Target) -> Images:
    """The Val and Test images of a half, and those of external datasets that have masks of the target.

    Reads the outputs of the stages download, preprocess and audit. Val images that the audit dropped, and
    external images that are also in the dataset, are not among them.

    Raises:
        InputError: a stage has not run, or the half has no Val images.
    """
    packed = checkout / "data" / "packed" / str(params.stages.preprocess[0])
    dropped = _read(checkout / "artifacts" / "audit" / "dropped.csv")
    table = _read(packed / "images.csv")
    wanted = (table["half"] == half) & table["split"].isin([DECIDES, REPORTED])
    table = table[wanted & ~table["id"].isin(dropped["id"])]
    if DECIDES not in set(table["split"]):
        raise InputError(f"{packed}: the {half} half has no {DECIDES} image to judge on")
    raw = _dataset(checkout / "data" / "raw")
    tables, datasets = [table.assign(set=table["split"])], {DECIDES: raw, REPORTED: raw}
    for name, stage in params.stages.external.items():
        folder = checkout / "data" / "external" / name
        dataset = _dataset(folder / "raw")
        found = _read(folder / "packed" / str(stage.image_size) / "images.csv")
        if target in dataset.kinds(str(found["half"].iloc[0])):
            overlap = _read(
                checkout / "artifacts" / "evaluation" / "external" / name / "audit" / "overlap.csv"
            )
            tables.append(found[~found["id"].isin(overlap["id"])].assign(set=name))
            datasets[name] = dataset
    return Images(pd.concat(tables, ignore_index=True)[COLUMNS], datasets)


def _read(file: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(file)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; run `dvc repro` or `dvc pull` first") from None


def _dataset(folder: Path) -> RawDataset:
    if not (folder / "manifest.csv").exists():
        raise InputError(f"{folder}: no images; run `dvc repro` or `dvc pull` first")
    return RawDataset(folder)


# --- images that a network was trained on -------------------------------------------------------------------


def trained_on(images: Images, folder: Path, bundle: Bundle) -> NDArray[np.bool_]:
    """Which of the images the networks of a bundle were trained on, (N,), by the hashes of their pixels.

    None of them, if the bundle does not say; see `what_is_unknown`.
    """
    known = read_hashes(folder / TRAINED_ON_FILE) if bundle.trained_on else frozenset()
    found: NDArray[np.bool_] = images.table["sha256"].map(shortened).isin(known).to_numpy()
    return found


def what_is_unknown(bundle: Bundle, role: str) -> list[str]:
    """What is not known of the training images of a bundle, as sentences."""
    if bundle.trained_on is None:
        return [f"The {role} does not say which images it was trained on: none are left out for it."]
    if not bundle.trained_on.complete:
        return [f"The {role} started from other weights, whose training images are unknown."]
    return []


def count_left_out(
    images: Images, challenger: NDArray[np.bool_], champion: NDArray[np.bool_]
) -> tuple[LeftOut, ...]:
    """How many images of each set are left out."""
    counts = []
    for name in images.classes:
        own = (images.table["set"] == name).to_numpy()
        either = int((own & (challenger | champion)).sum())
        counts.append(
            LeftOut(
                images=name,
                challenger=int((own & challenger).sum()),
                champion=int((own & champion).sum()),
                either=either,
                judged=int(own.sum()) - either,
            )
        )
    return tuple(counts)


# --- scores -------------------------------------------------------------------------------------------------


def score_bundle(images: Images, folder: Path, bundle: Bundle, target: Target, what: str) -> pd.DataFrame:
    """The scores of a bundle's masks on each image; see `tasks.gate.rules` for the columns.

    Runs the networks that `cxr predict` runs, with ONNX Runtime on the CPU, and shows the progress as `what`.
    """
    rows = list(images.table.itertuples(index=False))
    cores = available_cores()
    workers = min(cores, MOST_THREADS, max(1, math.ceil(len(rows) / BATCH)))
    predictor = Predictor(folder, bundle, "onnx", ensemble=False, threads=cores // workers)

    def process(batch: Sequence[tuple[str, ...]]) -> list[dict[str, object]]:
        pictures = [Picture(images.datasets[row[0]].read(row[1], "image"), "PNG", "8 bits") for row in batch]
        inputs = np.stack([picture.network_input(bundle.input.image_size) for picture in pictures])
        raws = predictor.forward(inputs[:, None])
        return [score(row, raw) for row, raw in zip(batch, raws, strict=True)]

    def score(row: tuple[str, ...], raw: Raw) -> dict[str, object]:
        name, image_id, image_class, _ = row
        reference = images.datasets[name].read(image_id, target) > 0
        height, width = reference.shape
        counts = confusion_of_masks(predictor.finish(raw, (height, width)).masks[target], reference)
        facts = {"set": name, "seed": 0, "id": image_id, "class": image_class}
        return facts | counts._asdict() | overlaps(counts)

    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    scored = progress(chain.from_iterable(in_threads(process, batches, 1)), len(rows), what)
    return pd.DataFrame(list(scored), columns=["set", "seed", "id", "class", "tp", "fp", "fn", "tn", "dice"])
