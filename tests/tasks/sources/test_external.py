"""What the documented layouts of external datasets find in folders like the published ones."""

from pathlib import Path

import pytest

from tasks.settings.layout import ExternalLayout
from tasks.sources.open import open_source
from tasks.sources.own import describe, find
from tasks.support.cli import InputError
from tests.external import LAYOUTS, documented, write_external

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
