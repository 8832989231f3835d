import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.common.raw import RawDataset
from tasks.download import download
from tasks.sources.archives import ZipSource
from tasks.sources.listing import find_images
from tasks.sources.open import open_source
from tasks.sources.transfer import UnavailableError
from tasks.support.cli import InputError
from tests.helpers import zipped

NAME = "Infection Segmentation Data/Infection Segmentation Data/Train/COVID-19/images/covid_1.png"


def downloaded(source: Path, out: Path) -> dict[str, bytes]:
    download(open_source(str(source), Path()), out, str(source))
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_all_forms_of_the_same_images_give_identical_bytes(kaggle_folder: Path, tmp_path: Path) -> None:
    expected = downloaded(kaggle_folder, tmp_path / "from_folder")
    assert sorted(expected) == [
        "infection-test.zip",
        "infection-train.zip",
        "infection-val.zip",
        "manifest.csv",
    ]
    single = tmp_path / "single"  # without the doubled folder, as in some published copies
    shutil.copytree(
        next(kaggle_folder.iterdir()) / "Infection Segmentation Data", single / "Infection Segmentation Data"
    )
    for n, source in enumerate(
        [
            zipped(kaggle_folder, tmp_path / "deflated.zip"),
            zipped(kaggle_folder, tmp_path / "stored.zip", "covidqu/", zipfile.ZIP_STORED),
            single,
            single / "Infection Segmentation Data",
        ]
    ):
        assert downloaded(source, tmp_path / f"raw{n}") == expected, source


def test_both_halves_are_copied_if_present(kaggle_folder: Path, tmp_path: Path) -> None:
    half = "Lung Segmentation Data"
    shutil.copytree(kaggle_folder / "Infection Segmentation Data", kaggle_folder / half)
    (kaggle_folder / half / "Infection Segmentation Data").rename(kaggle_folder / half / half)
    shards = downloaded(kaggle_folder, tmp_path / "raw")
    assert len([name for name in shards if name.endswith(".zip")]) == 6
    manifest = RawDataset(tmp_path / "raw").manifest
    assert manifest.groupby("half").size().to_dict() == {"infection": 9, "lung": 9}
    assert (manifest["infection_sha256"][manifest["half"] == "lung"] == "").all()


def test_files_are_stored_unchanged(kaggle_folder: Path, tmp_path: Path) -> None:
    downloaded(kaggle_folder, tmp_path / "raw")
    raw = RawDataset(tmp_path / "raw")
    for path in kaggle_folder.rglob("Test/*/infection masks/*.png"):
        image_id = f"infection/Test/{path.parent.parent.name}/{path.stem}"
        assert raw.read_bytes(image_id, "infection") == path.read_bytes()


def test_missing_source_error_lists_the_options() -> None:
    with pytest.raises(InputError, match=r"data/x.zip: does not exist; put Kaggle's .* or to phantom://"):
        open_source("data/x.zip", Path())


@pytest.mark.parametrize("source", ["s4://bucket", "phantom://many"])
def test_unknown_url_is_an_error(source: str) -> None:
    with pytest.raises(InputError, match="phantom://"):
        open_source(source, Path())


def test_truncated_zip_is_an_error(kaggle_folder: Path, tmp_path: Path) -> None:
    archive = zipped(kaggle_folder, tmp_path / "a.zip")
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"a\.zip: not a complete zip archive, it may be truncated"):
        open_source(str(archive), Path())


def test_damaged_member_is_an_error_and_leaves_no_files(kaggle_folder: Path, tmp_path: Path) -> None:
    archive = zipped(kaggle_folder, tmp_path / "a.zip", compression=zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"member 'Infection.*png' cannot be read: Bad CRC-32"):
        downloaded(archive, tmp_path / "out" / "raw")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "C:\\evil.png"]
)
def test_member_outside_the_archive_is_an_error(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(NAME, b"")
        archive.writestr(name, b"")
    with pytest.raises(InputError, match="leads outside the archive"):
        open_source(str(tmp_path / "a.zip"), Path())


@pytest.mark.parametrize("name", [NAME.replace("/", "\\"), "..\\evil.png"])
def test_names_with_backslashes_are_an_error_with_a_remedy(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, b"")
    with pytest.raises(
        InputError,
        match=r"a\.zip: member '.*png' has backslashes in its name, as some Windows programs write them "
        "instead of slashes; unpack the archive and use the folder, or create the archive again",
    ):
        open_source(str(tmp_path / "a.zip"), Path())


def test_link_in_a_zip_is_an_error(tmp_path: Path) -> None:
    info = zipfile.ZipInfo(NAME)
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match="is a link; links are not allowed"):
        open_source(str(tmp_path / "a.zip"), Path())


def test_member_with_an_extreme_compression_ratio_is_an_error(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(NAME, bytes(2 << 20))
    with pytest.raises(
        InputError, match=r"covid_1\.png' expands from \d+ to 2097152 bytes, more than 100 times"
    ):
        downloaded(tmp_path / "a.zip", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_member_is_not_read_beyond_its_declared_size(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(NAME, bytes(32 << 20))
    content = bytearray((tmp_path / "a.zip").read_bytes())
    for place in (22, content.index(b"PK\1\2") + 24):
        assert content[place : place + 4] == (32 << 20).to_bytes(4, "little")
        content[place : place + 4] = (1 << 20).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"covid_1\.png' cannot be read: Bad CRC-32"):
        downloaded(tmp_path / "a.zip", tmp_path / "raw")


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_file_larger_than_any_image_is_an_error(
    kaggle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    source = kaggle_folder if form == "folder" else zipped(kaggle_folder, tmp_path / "a.zip")
    monkeypatch.setattr("tasks.sources.source.LARGEST_FILE", (kaggle_folder / NAME).stat().st_size - 1)
    with pytest.raises(InputError, match=r"png' has \d+ bytes, more than the limit of \d+ for an X-ray"):
        downloaded(source, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_overlapping_members_are_an_error(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(NAME, bytes(1000))
        archive.writestr(NAME.replace("covid_1", "covid_2"), bytes(1000))
        archive.filelist[1].header_offset = 0  # two names for the same bytes
    with pytest.raises(InputError, match=r"covid_\d\.png' overlaps another one"):
        open_source(str(tmp_path / "a.zip"), Path())


def test_duplicate_member_is_an_error(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(NAME, b"one")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(NAME, b"two")
    with pytest.raises(InputError, match=r"covid_1\.png' occurs twice"):
        open_source(str(tmp_path / "a.zip"), Path())


def test_pipe_in_a_folder_is_an_error_and_does_not_block(kaggle_folder: Path, tmp_path: Path) -> None:
    os.mkfifo((kaggle_folder / NAME).with_name("covid_2.png"))
    with pytest.raises(InputError, match=r"covid_2\.png: not a regular file"):
        downloaded(kaggle_folder, tmp_path / "raw")


def test_dangling_link_is_an_error(kaggle_folder: Path, tmp_path: Path) -> None:
    (kaggle_folder / NAME).with_name("covid_2.png").symlink_to(kaggle_folder / "nothing")
    with pytest.raises(InputError, match=r"covid_2\.png: this link leads nowhere; is its disk mounted\?"):
        downloaded(kaggle_folder, tmp_path / "raw")


def test_sha256_pin_of_a_folder_is_an_error(kaggle_folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"archive: data\.sha256 pins a zip, but this is a folder; run cxr params --set"
    ):
        open_source(str(kaggle_folder), Path(), 64 * "0")


def test_link_out_of_a_folder_is_an_error(kaggle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (kaggle_folder / NAME).with_name("covid_2.png").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=r"covid_2\.png: this link points outside"):
        downloaded(kaggle_folder, tmp_path / "raw")


def test_unknown_layout_is_an_error_with_an_example(tmp_path: Path) -> None:
    (tmp_path / "photos" / "train").mkdir(parents=True)
    (tmp_path / "photos" / "train" / "cat.png").write_bytes(b"")
    with pytest.raises(InputError, match="no file is in the layout of COVID-QU-Ex, for example 'Infection"):
        downloaded(tmp_path / "photos", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_files_that_macos_adds_to_an_archive_are_ignored(kaggle_folder: Path, tmp_path: Path) -> None:
    expected = downloaded(kaggle_folder, tmp_path / "before")
    for path in list(kaggle_folder.rglob("*.png")):
        beside = kaggle_folder / "__MACOSX" / path.relative_to(kaggle_folder).with_name(f"._{path.name}")
        beside.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(b"AppleDouble")
    assert downloaded(kaggle_folder, tmp_path / "after") == expected


def test_image_in_two_places_is_an_error(kaggle_folder: Path) -> None:
    shutil.copytree(kaggle_folder, kaggle_folder / "copy")
    with pytest.raises(InputError, match="are the same file of the dataset"):
        find_images(open_source(str(kaggle_folder), Path()), "here")


METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def flip_the_middle(content: bytearray) -> None:
    content[len(content) // 2] ^= 0xFF


def break_the_name(content: bytearray) -> None:
    content[content.index("é".encode())] = 0xFF


def move_the_members(content: bytearray) -> None:
    """Let the archive begin 1,000 bytes before the file."""
    content[-6:-2] = (int.from_bytes(content[-6:-2], "little") + 1000).to_bytes(4, "little")


@pytest.mark.parametrize("damage", [flip_the_middle, break_the_name, move_the_members])
@pytest.mark.parametrize("method", METHODS)
def test_damaged_archive_of_any_method_is_an_error_that_names_it(
    kaggle_folder: Path, tmp_path: Path, damage: Callable[[bytearray], None], method: int
) -> None:
    """Damage for which zipfile raises errors of other modules."""
    noise = random.Random(0).randbytes(500)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr(NAME.replace("covid_1", "é"), noise)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    damage(content)
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.zip: member '.*é\.png' cannot be read: .+") as refused:
        downloaded(tmp_path / "a.zip", tmp_path / "raw")
    assert str(refused.value).isprintable()


def test_broken_connection_is_no_damage(kaggle_folder: Path, tmp_path: Path) -> None:
    """It may be tried again."""
    source = ZipSource(zipped(kaggle_folder, tmp_path / "a.zip"))
    with pytest.raises(UnavailableError), source._translated("unreadable"):
        raise UnavailableError("gone")


def test_member_without_a_name_is_left_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(NAME, b"")
        archive.writestr("x", b"")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    header = content.rindex(b"PK\1\2")
    content[header + 28], content[header + 30] = 0, 1  # the lengths of its name and of its extra field
    (tmp_path / "a.zip").write_bytes(content)
    source = ZipSource(tmp_path / "a.zip")
    assert sorted(source.names()) == ["", NAME]
    assert len(find_images(source, "here")) == 1
