"""What the documented layouts of external datasets find in folders like the published ones."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.settings.layout import ExternalLayout
from tasks.sources.open import open_source
from tasks.sources.own import describe, find
from tasks.support.cli import InputError
from tests.external import LAYOUTS, documented, drawn, scripts, write_external
from tests.own import encoded, write

BOTH = {"images": "{split}/{name}.png", "lung": "{split}/{name}_lung.png", "classes": "Normal"}


def test_the_page_has_an_entry_for_each_dataset() -> None:
    assert documented().keys() == LAYOUTS.keys()


@pytest.mark.parametrize(
    ("name", "said", "left_out"),
    [
        ("montgomery", "Test: 3 Non-COVID, 3 Normal", "fits no pattern of external.montgomery.layout"),
        ("shenzhen", "Test: 3 Non-COVID, 2 Normal", "an image without a lung mask"),
        ("jsrt", "Test: 3 Non-COVID, 3 Normal", ""),
        ("qata", "Test: 6 COVID-19", "in Train, and only Test images are scored"),
    ],
)
def test_a_documented_layout_finds_the_images(name: str, said: str, left_out: str, tmp_path: Path) -> None:
    source = open_source(str(write_external(name, tmp_path)), Path(), own_layout=True)
    layout = ExternalLayout.model_validate(documented()[name]["layout"])
    found = find(source, "here", layout, name)
    assert [line.strip() for line in describe(found, layout)][1:] == [said]
    assert {image.id.split("/")[1] for image in found.images} == {"Test"}
    assert left_out in {group.reason for group in found.left_out} | {""}


def test_without_test_images_the_error_names_the_section(tmp_path: Path) -> None:
    folder = write_external("qata", tmp_path)
    (folder / "Test Set").rename(folder / "Other Set")
    source = open_source(str(folder), Path(), own_layout=True)
    layout = ExternalLayout.model_validate(documented()["qata"]["layout"])
    with pytest.raises(InputError, match=r"no image is in Test \(Test 0\); external.qata.layout.splits"):
        find(source, "here", layout, "qata")


def test_the_folders_of_covid_qu_ex_give_the_test_images_of_the_infection_half() -> None:
    found = find(open_source("phantom://45?size=64", Path()), "here", None, "other")
    assert found.images
    assert all(image.id.startswith("infection/Test/") for image in found.images)
    assert {kind for files in found.images.values() for kind in files} == {"image", "lung", "infection"}


def run_script(number: int, folder: Path) -> None:
    subprocess.run([sys.executable, "-c", scripts()[number]], cwd=folder, check=True)


def test_the_script_for_montgomery_merges_the_lungs(tmp_path: Path) -> None:
    left, right = np.zeros((2, 40, 50), bool)
    left[10:30, 30:45] = right[10:30, 5:20] = True
    masks = {"left": left, "right": right}
    name = "MCUCXR_0001_0.png"
    write(
        {f"data/MontgomerySet/ManualMask/{side}Mask/{name}": encoded(mask) for side, mask in masks.items()},
        tmp_path,
    )
    run_script(0, tmp_path)
    both = np.asarray(Image.open(tmp_path / "data/MontgomerySet/ManualMask/both" / name))
    assert ((both == 255) == (left | right)).all() and set(np.unique(both)) == {0, 255}


def gif(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(255) * mask).save(buffer, "GIF")
    return buffer.getvalue()


def test_the_script_for_jsrt_inverts_the_images_and_merges_the_lungs(tmp_path: Path) -> None:
    (_, _, image, lungs, _) = next(drawn(1, size=1024))
    grey = np.asarray(Image.fromarray(image).resize((2048, 2048), 0)).astype(">u2") * 16
    halves = np.arange(1024) < 512
    files = {"All247images/JPCLN001.IMG": (4095 - grey).astype(">u2").tobytes()}
    for side, half in (("left", ~halves), ("right", halves)):
        files[f"scratch/fold1/masks/{side} lung/JPCLN001.gif"] = gif((lungs > 0) & half)
    write(files, tmp_path)
    run_script(1, tmp_path)
    found = np.asarray(Image.open(tmp_path / "data/JSRT/images/JPCLN001.png")).astype(int)
    assert np.abs(found - image).mean() < 2
    mask = np.asarray(Image.open(tmp_path / "data/JSRT/lung/JPCLN001.png"))
    assert ((mask == 255) == (lungs > 0)).all() and set(np.unique(mask)) == {0, 255}
