import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.common.raw import RawDataset, write_member
from tasks.download import download
from tasks.sources.open import open_source
from tasks.support.cli import InputError


@pytest.fixture
def raw(kaggle_folder: Path, tmp_path: Path) -> Path:
    download(open_source(str(kaggle_folder), Path()), tmp_path / "raw", "here")
    return tmp_path / "raw"


def truncate(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-100])


def empty(shard: Path) -> None:
    shard.write_bytes(b"")


def flip_a_pixel(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[200] ^= 0xFF
    shard.write_bytes(content)


def break_a_header(shard: Path) -> None:
    content = shard.read_bytes()
    shard.write_bytes(b"\0" * 4 + content[4:])


def say_encrypted(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    shard.write_bytes(content)


def lose_the_members(shard: Path) -> None:
    with zipfile.ZipFile(shard, "w") as archive:
        write_member(archive, "other.png", b"")


@pytest.mark.parametrize(
    "damage", [truncate, empty, flip_a_pixel, break_a_header, say_encrypted, lose_the_members]
)
def test_damaged_shard_is_an_error_that_names_the_file(raw: Path, damage: Callable[[Path], None]) -> None:
    damage(raw / "infection-train.zip")
    dataset = RawDataset(raw)
    first = dataset.manifest["id"][dataset.manifest["split"] == "Train"].iloc[0]
    said = r"raw/infection-train\.zip: this file is damaged \(.+\); to create it again, run: dvc repro"
    for read in (dataset.read, dataset.read_bytes):
        with pytest.raises(InputError, match=said):
            read(first, "image")
    other = dataset.manifest["id"][dataset.manifest["split"] == "Test"].iloc[0]
    assert dataset.read(other, "image").shape == (64, 64)


@pytest.mark.parametrize("content", [b"", b"id,half\n1,2\n", b"\xff\xfe\0", b'id\n"'])
def test_damaged_manifest_is_an_error_that_names_the_file(raw: Path, content: bytes) -> None:
    (raw / "manifest.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"raw/manifest\.csv: this file is damaged \(.+\); to create"):
        RawDataset(raw)


def test_missing_shard_is_an_error_that_names_the_file(raw: Path) -> None:
    (raw / "infection-train.zip").unlink()
    dataset = RawDataset(raw)
    with pytest.raises(FileNotFoundError) as error:
        dataset.read(dataset.manifest["id"].iloc[0], "image")
    assert str(error.value.filename) == str(raw / "infection-train.zip")
