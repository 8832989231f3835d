import os
import zlib
from pathlib import Path

import pytest

from tasks.download import download
from tasks.sources.listing import (
    Listing,
    PlaceInLayout,
    Stored,
    find_images,
    fingerprint,
    list_files,
    open_earlier,
)
from tasks.sources.open import open_source
from tasks.sources.source import Stamp
from tasks.support.cli import InputError
from tests.helpers import zipped

TRAIN = "Infection Segmentation Data/Infection Segmentation Data/Train/COVID-19/images"


def listed(source: Path | str) -> Listing | None:
    files = open_source(str(source), Path())
    return list_files(files, find_images(files, "here"))


@pytest.fixture
def raw(kaggle_folder: Path, tmp_path: Path) -> Path:
    download(open_source(str(kaggle_folder), Path()), tmp_path / "raw", "here")
    return tmp_path / "raw"


def test_zip_folder_and_resulting_dataset_have_the_same_listing(
    kaggle_folder: Path, tmp_path: Path, raw: Path
) -> None:
    listing = listed(kaggle_folder)
    assert listing is not None
    assert len(listing) == 27
    content = (kaggle_folder / TRAIN / "covid_1.png").read_bytes()
    place = PlaceInLayout("infection-train.zip", "COVID-19/images/covid_1.png")
    assert listing[place] == (len(content), zlib.crc32(content))
    assert listed(zipped(kaggle_folder, tmp_path / "a.zip", "covidqu/")) == listing
    assert Stored(raw).listing == listing


def test_other_files_do_not_change_the_listing(kaggle_folder: Path) -> None:
    before = listed(kaggle_folder)
    (kaggle_folder / "README.txt").write_text("read me")
    (kaggle_folder / TRAIN / "._covid_1.png").write_bytes(b"AppleDouble")
    (kaggle_folder / TRAIN / "Thumbs.db").write_bytes(b"thumbs")
    assert listed(kaggle_folder) == before


def test_file_of_several_blocks_is_hashed_completely(
    kaggle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = listed(kaggle_folder)
    monkeypatch.setattr("tasks.sources.folder.BLOCK", 7)
    assert listed(kaggle_folder) == expected


def test_phantoms_never_change() -> None:
    assert listed("phantom://9?size=64") is None


def test_fingerprint_is_stable() -> None:
    """Users have fingerprints in their params.yaml, so the algorithm must not change."""
    a, b = (
        PlaceInLayout("infection-train.zip", "COVID-19/images/a.png"),
        PlaceInLayout("lung-val.zip", "Normal/images/é.png"),
    )
    listing = {a: Stamp(3, zlib.crc32(b"abc")), b: Stamp(0, 0)}
    assert fingerprint(listing) == "f6ff831f10317af957e628fc17bf2832"
    assert fingerprint(dict(reversed(listing.items()))) == fingerprint(listing)


def test_place_size_and_content_change_the_fingerprint() -> None:
    place = PlaceInLayout("infection-train.zip", "COVID-19/images/a.png")
    moved, renamed = place._replace(shard="infection-val.zip"), place._replace(member="COVID-19/images/b.png")
    rows = [(place, Stamp(3, 7)), (place, Stamp(4, 7)), (place, Stamp(3, 8))]
    rows += [(moved, Stamp(3, 7)), (renamed, Stamp(3, 7))]
    assert len({fingerprint({place: stamp}) for place, stamp in rows}) == 5


def test_link_out_of_a_folder_is_not_listed(kaggle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (kaggle_folder / TRAIN / "covid_9.png").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=r"covid_9\.png: this link points outside"):
        listed(kaggle_folder)


def test_file_name_that_is_not_utf_8_is_an_error(kaggle_folder: Path) -> None:
    (kaggle_folder / TRAIN / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    with pytest.raises(InputError, match=r"caf\\udce9\.png': this file name is not UTF-8; rename the file"):
        listed(kaggle_folder)


@pytest.mark.parametrize(
    "damage", ["missing manifest", "invalid table", "other columns", "missing shard", "truncated shard"]
)
def test_damaged_dataset_is_ignored(raw: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    manifest, shard = raw / "manifest.csv", raw / "infection-val.zip"
    match damage:
        case "missing manifest":
            manifest.unlink()
        case "invalid table":
            manifest.write_bytes(b'\xff\x00\n"')
        case "other columns":
            manifest.write_text("a,b\n1,2\n")
        case "missing shard":
            shard.unlink()
        case "truncated shard":
            shard.write_bytes(shard.read_bytes()[:-300])
    assert open_earlier(raw) is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{raw}: ignored, not a complete dataset: ")


def test_missing_dataset_is_ignored_silently(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert open_earlier(None) is None
    assert open_earlier(tmp_path / "nothing") is None
    assert capsys.readouterr().out == ""
