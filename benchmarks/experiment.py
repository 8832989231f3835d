"""The experiment that benchmarks train, and its images."""

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

sys.path.insert(0, str(Path(__file__).parent.parent))
from tasks.common.files import replacing, write_table
from tasks.common.raw import KIND_FOLDERS, RawDataset, Split
from tasks.download import download
from tasks.preprocess import preprocess
from tasks.settings.changes import parse_assignment, with_changes
from tasks.settings.experiments import Plan
from tasks.settings.params import parse_params
from tasks.settings.training import Augment
from tasks.sources.open import open_source

ROOT = Path(__file__).parent.parent
HALF, TARGET, TRAIN_CLASS = "infection", "infection", "COVID-19"

#: The training settings of benchmarks, the same in every checkout. params.yaml is not read. --set changes
#: them.
TRAINING = {
    "images": "whole",
    "batch_size": 16,
    "width": 16,
    "depth": 4,
    "patch": 1,
    "deep_supervision": False,
    "optimiser": "adam",
    "learning_rate": 0.001,
    "weight_decay": 0.0,
    "schedule": "constant",
    "ema": 0.0,
    "augment": dict.fromkeys(Augment.model_fields, 0.0),
    "seed": 0,
    "seeds": 1,
    "folds": 1,
    "selection": "balanced",
    "patience": 0,
    "precision": "auto",
    "compile": "auto",
    "threads": 0,
    "processes": 1,
    "accumulate": 1,
    "start_from": None,
}


def make_plan(data: str, image_size: int, epochs: int, training: Mapping[str, Any], sets: list[str]) -> Plan:
    """Return report 1's experiment with Dice + BCE loss, which MONAI has too. `sets` are KEY=VALUE."""
    experiment = {
        "network": "residual_unet",
        "loss": "dice_bce",
        "targets": [TARGET],
        "train_classes": [TRAIN_CLASS],
    }
    changes = {
        "data": {"source": data},
        "epochs": epochs,
        "alpha": 0.5,
        "training": TRAINING | {"half": HALF, "image_size": image_size} | training,
        "experiments": {"benchmark": experiment},
    }
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    changed = with_changes(
        text, {"benchmark": changes, **{word: parse_assignment(word) for word in sets}}, ["benchmark"]
    )
    return parse_params(changed).plans["benchmark-seed0"]


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options for the images and the size of the network."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", help="a zip, a folder or a URL, as data.source; default: synthetic")
    parser.add_argument("--work", type=Path, help="folder in which prepared images are kept")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="a value of params.yaml"
    )
    return parser


class Images(NamedTuple):
    """The dataset as written by `download` and `preprocess`, of which some images are used."""

    raw: Path
    packed: Path
    table: pd.DataFrame
    """The rows of images.csv that are used."""

    def ids(self, split: Split) -> list[str]:
        return list(self.table["id"][self.table["split"] == split])


def prepare(
    data: str, folder: Path, image_size: int, take: Mapping[Split, int], classes: Sequence[str]
) -> Images:
    """Select a number of images of each split, from some classes, evenly spread over the dataset."""
    raw, whole = packed_dataset(data, folder, image_size)
    table = pd.read_csv(whole / "images.csv")
    table = table[(table["half"] == HALF) & table["class"].isin(classes)]
    parts = [spread(table[table["split"] == split], count) for split, count in take.items()]
    taken = pd.concat(parts)
    view = whole.parent / f"view-{'-'.join(map(str, [image_size, len(classes), *take.values()]))}"
    with replacing(view) as partial:
        (partial / HALF).mkdir(parents=True)
        for split in take:
            (partial / HALF / split).symlink_to(whole.resolve() / HALF / split)
        write_table(taken, partial / "images.csv")
    return Images(raw, view, taken)


def packed_dataset(data: str, folder: Path, image_size: int) -> tuple[Path, Path]:
    """Return the raw and the packed dataset in `folder`, and create them if they do not exist."""
    own = folder / hashlib.sha256(data.encode()).hexdigest()[:8]
    raw, packed = own / "raw", own / f"packed-{image_size}"
    if not raw.exists():
        download(open_source(data, Path.cwd()), raw, data)
    if not packed.exists():
        preprocess(raw, packed, image_size, max_rejected=0.01)
    return raw, packed


def spread(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return `count` rows, evenly spread over the table, or all if it has fewer."""
    count = min(count, len(table))
    return table.iloc[[i * len(table) // count for i in range(count)]]


def unpack(images: Images, split: Split, folder: Path) -> list[tuple[Path, Path]]:
    """Write the images and their masks as PNG files, and return one pair of paths per image."""
    dataset = RawDataset(images.raw)
    pairs = []
    for image_id in images.ids(split):
        place, name = image_id.rsplit("/", 1)
        files = [folder / place / KIND_FOLDERS[kind] / f"{name}.png" for kind in ("image", TARGET)]
        for kind, file in zip(("image", TARGET), files, strict=True):
            if not file.exists():
                content = dataset.read_bytes(image_id, kind)
                assert content
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        pairs.append((files[0], files[1]))
    return pairs
