"""Folders as people have them: linked, unreadable, and with other files in between."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.download import download
from tasks.sources.folder import FolderSource
from tasks.sources.listing import find_images, find_left_out
from tasks.sources.look import look
from tasks.sources.open import open_source
from tasks.support.cli import InputError
from tests.helpers import as_nobody, zipped

HALF = "Infection Segmentation Data"
INNER = f"{HALF}/{HALF}"
IMAGES = f"{INNER}/Train/COVID-19/images"


def downloaded(source: Path, out: Path) -> dict[str, bytes]:
    download(open_source(str(source), Path()), out, "here")
    return {path.name: path.read_bytes() for path in out.iterdir()}


def output_of(source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    downloaded(source, out)
    return [line for line in capsys.readouterr().out.splitlines() if "below" in line]


@pytest.fixture
def public_folder(kaggle_folder: Path) -> Iterator[Path]:
    """A copy that every user can read, unlike pytest's own folders."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        copy = Path(folder) / "archive"
        shutil.copytree(kaggle_folder, copy)
        yield copy
        for path in copy.rglob("*"):
            path.chmod(0o755)


def test_other_spellings_give_identical_bytes(kaggle_folder: Path, tmp_path: Path) -> None:
    expected = downloaded(kaggle_folder, tmp_path / "before")
    for path in list(kaggle_folder.rglob("Train/COVID-19/*/*.png")):
        path.rename(path.with_suffix(".PNG"))
    (kaggle_folder / INNER / "Val" / "Normal").rename(kaggle_folder / INNER / "Val" / "normal")
    (kaggle_folder / INNER / "Test" / "COVID-19").rename(kaggle_folder / INNER / "Test" / "Covid-19")
    assert downloaded(kaggle_folder, tmp_path / "after") == expected
    assert downloaded(zipped(kaggle_folder, tmp_path / "a.zip"), tmp_path / "zip") == expected


def test_two_endings_of_one_image_are_an_error(kaggle_folder: Path) -> None:
    image = kaggle_folder / IMAGES / "covid_1.png"
    shutil.copyfile(image, image.with_suffix(".PNG"))
    with pytest.raises(InputError, match="are the same file of the dataset"):
        find_images(FolderSource(kaggle_folder), "here")


def test_what_is_left_out_is_counted_and_named(
    kaggle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = downloaded(kaggle_folder, tmp_path / "before")
    capsys.readouterr()
    for name in (
        f"{IMAGES}/covid_8.jpg",
        f"{IMAGES}/covid_9.jpeg",
        f"{IMAGES}/.DS_Store",
        f"{INNER}/Train/Normals/images/a.png",
        f"{INNER}/Train/Normal/lung mask/a.png",
        f"$RECYCLE.BIN/S-1-5/{IMAGES}/covid_7.png",
        f".Trash-1000/files/{IMAGES}/covid_7.png",
        f"__MACOSX/{IMAGES}/._covid_1.png",
        f"{INNER}/.snapshot/hourly.0/Train/COVID-19/images/covid_1.png",
    ):
        (kaggle_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (kaggle_folder / name).write_bytes(b"other")
    lines = [
        "5 files and folders below here are not in the layout, the first: '$RECYCLE.BIN/' "
        "(hidden, or made by a system)",
        f"2 files below here are not in the layout, the first: '{IMAGES}/covid_8.jpg' (not named .png)",
        f"1 file below here is not in the layout: '{INNER}/Train/Normals/images/a.png' "
        "('Normals' is none of the classes COVID-19, Non-COVID, Normal)",
        f"1 file below here is not in the layout: '{INNER}/Train/Normal/lung mask/a.png' "
        "('lung mask' is none of the folders images, lung masks, infection masks)",
    ]
    assert output_of(kaggle_folder, tmp_path / "after", capsys) == lines
    archive = zipped(kaggle_folder, tmp_path / "a.zip")
    assert output_of(archive, tmp_path / "zip", capsys) == lines
    for raw in ("after", "zip"):
        assert {path.name: path.read_bytes() for path in (tmp_path / raw).iterdir()} == expected
    news = look(str(kaggle_folder), Path(), tmp_path / "before")
    assert (news.differs, [group.number for group in news.left_out]) == (False, [5, 2, 1, 1])


def test_unknown_layout_is_an_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "photos" / "train").mkdir(parents=True)
    for name in ("cat.png", "dog.png"):
        (tmp_path / "photos" / "train" / name).write_bytes(b"")
    with pytest.raises(
        InputError,
        match=r"unpacked folder\? 2 files below here are not in the layout, the first: 'train/cat.png' \(in "
        "neither 'Infection Segmentation Data' nor 'Lung Segmentation Data'",
    ):
        find_images(FolderSource(tmp_path / "photos"), "here")


@pytest.mark.parametrize("part", [INNER, f"{INNER}/Val", f"{INNER}/Val/Normal", IMAGES])
def test_linked_folder_inside_the_source_is_followed(kaggle_folder: Path, tmp_path: Path, part: str) -> None:
    expected = downloaded(kaggle_folder, tmp_path / "before")
    (kaggle_folder / part).rename(kaggle_folder / "elsewhere")
    (kaggle_folder / part).symlink_to(kaggle_folder / "elsewhere")
    assert downloaded(kaggle_folder, tmp_path / "after") == expected


def test_linked_file_inside_the_source_is_followed(kaggle_folder: Path, tmp_path: Path) -> None:
    expected = downloaded(kaggle_folder, tmp_path / "before")
    (kaggle_folder / IMAGES / "covid_1.png").rename(kaggle_folder / "file")
    (kaggle_folder / IMAGES / "covid_1.png").symlink_to("../../../../../file")
    assert downloaded(kaggle_folder, tmp_path / "after") == expected


@pytest.mark.parametrize(
    "part", [HALF, "Lung Segmentation Data", f"{INNER}/Val", f"{INNER}/Val/Normal", IMAGES]
)
def test_linked_folder_outside_the_source_is_an_error(kaggle_folder: Path, tmp_path: Path, part: str) -> None:
    if (kaggle_folder / part).exists():
        (kaggle_folder / part).rename(tmp_path / "disk")
    else:
        (tmp_path / "disk").mkdir()
    (kaggle_folder / part).symlink_to(tmp_path / "disk")
    with pytest.raises(InputError, match=rf"{part}: this link points outside .*; replace it by the folder"):
        find_images(FolderSource(kaggle_folder), "here")


def test_linked_folder_whose_disk_is_missing_is_an_error(kaggle_folder: Path, tmp_path: Path) -> None:
    (kaggle_folder / "Lung Segmentation Data").symlink_to(tmp_path / "not mounted")
    with pytest.raises(InputError, match=r"Data: this link leads nowhere; is its disk mounted\?"):
        find_images(FolderSource(kaggle_folder), "here")


def test_other_linked_folders_are_named_and_loops_end(kaggle_folder: Path, tmp_path: Path) -> None:
    names = set(FolderSource(kaggle_folder).names())
    (kaggle_folder / "notes").symlink_to(tmp_path)
    (kaggle_folder / "latest").symlink_to(HALF)
    (kaggle_folder / INNER / "Train" / "self").symlink_to("..")
    (kaggle_folder / INNER / "Val" / "Covid").symlink_to("Normal")
    (kaggle_folder / INNER / "Val" / "Normal" / "Train").symlink_to("../../Train")
    (kaggle_folder / INNER / "Val" / "Normal" / ".#lock").symlink_to("user@host.1:2")
    source = FolderSource(kaggle_folder)
    assert {name for name in source.names() if name.endswith("/")} == {
        "archive/notes/",
        "archive/latest/",
        f"archive/{INNER}/Train/self/",
        f"archive/{INNER}/Val/Covid/Train/",
        f"archive/{INNER}/Val/Normal/Train/self/",
    }
    assert names <= set(source.names())


def test_link_to_itself_is_an_error(kaggle_folder: Path) -> None:
    (kaggle_folder / IMAGES / "loop.png").symlink_to("loop.png")
    with pytest.raises(InputError, match=r"loop\.png: this link leads nowhere"):
        find_images(FolderSource(kaggle_folder), "here")


def test_linked_source_keeps_its_own_name(kaggle_folder: Path, tmp_path: Path) -> None:
    expected = downloaded(kaggle_folder, tmp_path / "before")
    (kaggle_folder / INNER).rename(tmp_path / "v7")
    (tmp_path / HALF).symlink_to(tmp_path / "v7")
    assert downloaded(tmp_path / HALF, tmp_path / "after") == expected
    with pytest.raises(InputError, match="no file is in the layout"):
        find_images(FolderSource(tmp_path / "v7"), "here")


def test_source_in_a_hidden_folder_is_read(kaggle_folder: Path, tmp_path: Path) -> None:
    expected = downloaded(kaggle_folder, tmp_path / "before")
    kaggle_folder.rename(tmp_path / ".data")
    assert downloaded(tmp_path / ".data", tmp_path / "after") == expected


@pytest.mark.parametrize("part", [HALF, f"{INNER}/Val", IMAGES])
def test_unreadable_folder_is_an_error_that_names_it(public_folder: Path, part: str) -> None:
    (public_folder / part).chmod(0)
    with as_nobody(), pytest.raises(PermissionError) as refused:
        find_images(FolderSource(public_folder), "here")
    assert refused.value.filename == str(public_folder / part)


def test_unreadable_folder_of_a_system_is_no_error(public_folder: Path) -> None:
    for name in ("lost+found", ".Trash-0"):
        (public_folder / name).mkdir(mode=0)
    with as_nobody():
        source = FolderSource(public_folder)
        assert len(find_images(source, "here")) == 9
    assert [group[1:] for group in find_left_out(source)] == [(2, 2, ".Trash-0/")]


def test_unreadable_file_is_an_error_that_names_it(public_folder: Path, tmp_path: Path) -> None:
    path = public_folder / IMAGES / "covid_1.png"
    path.chmod(0)
    source = FolderSource(public_folder)
    images = find_images(source, "here")
    with as_nobody(), pytest.raises(PermissionError) as refused:
        source.stamps(name for files in images.values() for name in files.values())
    assert refused.value.filename == str(path)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("a\nb", r"contains '\\n'"),
        ("a\\b", r"contains '\\\\'"),
        ("a\x7fb", r"contains '\\x7f'"),
        ("a\x9bb", r"contains '\\x9b'"),
        (os.fsdecode(b"caf\xe9"), "is not UTF-8"),
    ],
)
def test_file_name_that_cannot_be_stored_is_an_error(kaggle_folder: Path, name: str, what: str) -> None:
    (kaggle_folder / IMAGES / f"{name}.png").write_bytes(b"")
    with pytest.raises(InputError, match=f"png': this file name {what}; rename the file") as refused:
        find_images(FolderSource(kaggle_folder), "here")
    assert "\n" not in str(refused.value)
