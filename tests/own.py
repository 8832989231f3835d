"""Datasets of one's own, made from phantoms: other names, folders, formats and words than COVID-QU-Ex."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tasks.sources.phantom import CLASSES, SPLITS, draw_phantom


class Case(NamedTuple):
    number: int
    split: str
    image_class: str
    image: np.ndarray
    lung: np.ndarray
    infection: np.ndarray


def cases(each: int, size: int = 64) -> Iterator[Case]:
    """As many phantoms of each split and class, with a running number."""
    number = 0
    for split, split_name in enumerate(SPLITS):
        for group, class_name in enumerate(CLASSES):
            for index in range(each):
                number += 1
                drawn = draw_phantom(split, group, index, seed=0, size=size)
                yield Case(number, split_name, class_name, drawn.image, drawn.lungs, drawn.infection)


def encoded(pixels: np.ndarray, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=file_format)
    return buffer.getvalue()


def write(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


PAIRS = {
    "images": "{name}.jpg",
    "lung": "{name}_mask.png",
    "splits": {"seed": 0, "val": 0.2, "test": 0.3},
    "classes": "Normal",
}


def write_pairs(folder: Path, each: int = 3, file_format: str = "JPEG", ending: str = "jpg") -> Path:
    """One folder with X-rays, by default as JPEG, and a lung mask of 0 and 1 beside each."""
    files = {}
    for case in cases(each):
        files[f"chest{case.number}.{ending}"] = encoded(case.image, file_format)
        files[f"chest{case.number}_mask.png"] = encoded((case.lung > 0).astype(np.uint8))
    return write(files, folder)


TABLE = {
    "images": "xrays/{name}.tif",
    "infection": "lesions/{name}.bmp",
    "table": {"file": "list.csv", "name": "file", "split": "fold", "class": "label", "group": "patient"},
    "splits": {"names": {"training": "Train", "testing": "Test"}, "val": 0.3},
    "classes": {"1": "COVID-19", "0": "Normal"},
}


def patient(number: int) -> str:
    """Two images of each patient."""
    return f"Doe-{(number + 1) // 2}"


def write_table(folder: Path, each: int = 4) -> Path:
    """X-rays as TIFF, infection masks as BMP, and a table of their splits, labels and patients.

    Half of the controls have no infection mask.
    """
    files, rows = {}, ["file;fold;label;patient"]
    for case in cases(each):
        files[f"xrays/{case.number}.tif"] = encoded(case.image, "TIFF")
        if case.image_class == "COVID-19" or case.number % 2:
            files[f"lesions/{case.number}.bmp"] = encoded(case.infection, "BMP")
        fold = "testing" if case.split == "Test" else "training"
        rows.append(f"{case.number}.tif;{fold};{int(case.image_class == 'COVID-19')};{patient(case.number)}")
    return write({**files, "list.csv": "\n".join(rows).encode()}, folder)
