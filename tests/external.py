"""Datasets of other hospitals, made from phantoms, in the layouts that docs/how-to/external.md describes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from tasks.sources.phantom import CLASSES, draw_phantom
from tests.helpers import ROOT
from tests.own import encoded, write

PAGE = ROOT / "docs" / "how-to" / "external.md"

#: Seed of the phantoms, which makes them others than those of phantom://N.
SEED = 1


def documented() -> dict[str, dict[str, Any]]:
    """The entries of `external` in the blocks of the page, by name."""
    blocks = PAGE.read_text(encoding="utf-8").split("```yaml\n")[1:]
    entries: dict[str, dict[str, Any]] = {}
    for block in blocks:
        entries |= YAML(typ="safe").load(block.partition("```")[0])["external"]
    return entries


def scripts() -> list[str]:
    """The Python scripts of the page, in order: Montgomery County, JSRT."""
    parts = PAGE.read_text(encoding="utf-8").split("```python\n")[1:]
    return [part.partition("```")[0] for part in parts]


def drawn(images: int, size: int = 64) -> Iterator[tuple[int, bool, np.ndarray, np.ndarray, np.ndarray]]:
    """Number, whether it is a COVID-19 image, image, lungs and infection."""
    for number in range(1, images + 1):
        ill = bool(number % 2)
        image_class = CLASSES.index("COVID-19" if ill else "Normal")
        phantom = draw_phantom(2, image_class, number, seed=SEED, size=size)
        yield number, ill, phantom.image, phantom.lungs, phantom.infection


def montgomery(images: int) -> dict[str, bytes]:
    files = {}
    for number, ill, image, lungs, _ in drawn(images):
        name = f"MCUCXR_{number:04}_{int(ill)}.png"
        files[f"CXR_png/{name}"] = encoded(image)
        files[f"ManualMask/both/{name}"] = encoded(lungs > 0)
        files[f"ManualMask/leftMask/{name}"] = encoded(lungs > 0)
        files[f"ClinicalReadings/{name[:-4]}.txt"] = b"male 40 years"
    return files


def shenzhen(images: int) -> dict[str, bytes]:
    """The last image has no mask."""
    files = {}
    for number, ill, image, lungs, _ in drawn(images):
        name = f"CHNCXR_{number:04}_{int(ill)}"
        files[f"CXR_png/{name}.png"] = encoded(image)
        if number < images:
            files[f"mask/{name}_mask.png"] = encoded(lungs)
    return files


def jsrt(images: int) -> dict[str, bytes]:
    files = {}
    for number, ill, image, lungs, _ in drawn(images):
        name = f"JPC{'L' if ill else 'N'}N{number:03}.png"
        files |= {f"images/{name}": encoded(image), f"lung/{name}": encoded(lungs)}
    return files


def qata(images: int) -> dict[str, bytes]:
    """As many Train images again. All images are COVID-19 images."""
    files = {}
    for number, ill, image, _, infection in drawn(4 * images):
        if ill:
            folder = "Test Set" if number < 2 * images else "Train Set"
            name = f"covid_{number}.png"
            files[f"{folder}/Images/{name}"] = encoded(image)
            files[f"{folder}/Ground-truths/mask_{name}"] = encoded(infection)
    return files


#: Files of each documented dataset: its number of Test images -> name -> content.
LAYOUTS: dict[str, Callable[[int], dict[str, bytes]]] = {
    "montgomery": montgomery,
    "shenzhen": shenzhen,
    "jsrt": jsrt,
    "qata": qata,
}


def write_external(name: str, folder: Path, images: int = 6) -> Path:
    return write(LAYOUTS[name](images), folder)
