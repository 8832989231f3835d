import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest

from tasks.common.raw import GROUP_OF, GROUPS, RawDataset
from tasks.download import download
from tasks.settings.changes import parse_assignment, with_changes
from tasks.settings.layout import Layout
from tasks.sources.folder import FolderSource
from tasks.sources.listing import Listing, find_images, fingerprint, list_files
from tasks.sources.open import open_source
from tasks.sources.source import Stamp
from tasks.support.cli import InputError
from tests.helpers import ROOT, made, zipped
from tests.own import PAIRS, TABLE, write_pairs, write_table

DATA = "Infection Segmentation Data/Infection Segmentation Data"
ONE = f"{DATA}/Train/COVID-19/images/covid_1.png"


class CountingSource(FolderSource):
    """A folder that records which files are read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.was_read: list[str] = []

    def read(self, name: str) -> bytes:
        self.was_read.append(name)
        return super().read(name)


class RestlessSource(FolderSource):
    """A folder in which a file changes after it was listed."""

    def stamps(self, names: Iterable[str], /) -> dict[str, Stamp]:
        stamps = super().stamps(names)
        (self._root / ONE).write_bytes(b"another image")
        return stamps


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def listing_of(folder: Path) -> Listing:
    source = FolderSource(folder)
    listing = list_files(source, find_images(source, "here"))
    assert listing is not None
    return listing


@pytest.fixture
def earlier(kaggle_folder: Path, tmp_path: Path) -> Path:
    """A downloaded dataset; afterwards one file of the folder was changed, one removed and one added."""
    download(FolderSource(kaggle_folder), tmp_path / "earlier", "here")
    (kaggle_folder / ONE).write_bytes(b"another image")
    (kaggle_folder / DATA / "Val/Normal/lung masks/Normal (2).png").unlink()
    (kaggle_folder / DATA / "Test/COVID-19/images/covid_99.png").write_bytes(b"new")
    return tmp_path / "earlier"


@pytest.fixture
def fresh(earlier: Path, kaggle_folder: Path, tmp_path: Path) -> dict[str, bytes]:
    """The result of downloading the folder without an earlier dataset."""
    download(FolderSource(kaggle_folder), tmp_path / "fresh", "here")
    return contents(tmp_path / "fresh")


def test_only_changed_files_are_fetched_and_the_bytes_are_identical(
    earlier: Path,
    fresh: dict[str, bytes],
    kaggle_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = CountingSource(kaggle_folder)
    download(source, tmp_path / "raw", "here", previous=earlier)
    assert sorted(Path(name).name for name in source.was_read) == ["covid_1.png", "covid_99.png"]
    assert contents(tmp_path / "raw") == fresh
    assert "2 of 27 files fetched, 25 unchanged" in capsys.readouterr().out.splitlines()


def test_zip_reuses_the_files_of_its_folder(
    earlier: Path,
    fresh: dict[str, bytes],
    kaggle_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    archive = zipped(kaggle_folder, tmp_path / "a.zip")
    download(open_source(str(archive), Path()), tmp_path / "raw", "here", previous=earlier)
    assert contents(tmp_path / "raw") == fresh
    assert "2 of 27 files fetched, 25 unchanged" in capsys.readouterr().out.splitlines()


def test_earlier_dataset_may_be_the_one_to_replace(
    earlier: Path, fresh: dict[str, bytes], kaggle_folder: Path
) -> None:
    download(FolderSource(kaggle_folder), earlier, "here", previous=earlier)
    assert contents(earlier) == fresh


@pytest.mark.parametrize(
    ("damage", "said"), [("missing", ""), ("missing shard", "ignored, not a complete dataset: ")]
)
def test_everything_is_fetched_without_a_complete_earlier_dataset(
    earlier: Path,
    fresh: dict[str, bytes],
    kaggle_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: str,
    said: str,
) -> None:
    if damage == "missing shard":
        (earlier / "infection-test.zip").unlink()
    else:
        earlier = tmp_path / "nothing"
    download(FolderSource(kaggle_folder), tmp_path / "raw", "here", previous=earlier)
    assert contents(tmp_path / "raw") == fresh
    output = capsys.readouterr().out
    assert said in output
    assert "27 of 27 files fetched, 0 unchanged" in output


def test_everything_is_fetched_if_an_earlier_file_is_damaged(
    earlier: Path,
    fresh: dict[str, bytes],
    kaggle_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shard = earlier / "infection-train.zip"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    download(FolderSource(kaggle_folder), tmp_path / "raw", "here", previous=earlier)
    assert contents(tmp_path / "raw") == fresh
    output = capsys.readouterr().out
    assert "Bad CRC-32" in output
    assert "; the earlier dataset is ignored\n" in output
    assert "27 of 27 files fetched, 0 unchanged" in output


def test_phantoms_are_drawn_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_source("phantom://9?size=32", Path())
    download(source, tmp_path / "a", "here")
    download(source, tmp_path / "b", "here", previous=tmp_path / "a")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert "27 of 27 files fetched, 0 unchanged" in capsys.readouterr().out


def test_fingerprint_mismatch_fails_before_anything_is_read(kaggle_folder: Path, tmp_path: Path) -> None:
    found, pinned = fingerprint(listing_of(kaggle_folder)), "f" + 31 * "0"
    source = CountingSource(kaggle_folder)
    with pytest.raises(InputError, match=rf"^here: .*found {found}, pinned {pinned}; .*fingerprint={found}$"):
        download(source, tmp_path / "out" / "raw", "here", pinned)
    assert source.was_read == []
    assert not (tmp_path / "out").exists()
    download(source, tmp_path / "raw", "here", found)


def test_source_that_changes_during_the_download_is_an_error(kaggle_folder: Path, tmp_path: Path) -> None:
    pinned = fingerprint(listing_of(kaggle_folder))
    with pytest.raises(InputError, match=r"^here: files changed during the download"):
        download(RestlessSource(kaggle_folder), tmp_path / "out" / "raw", "here", pinned)
    assert list((tmp_path / "out").iterdir()) == []


def test_command_reads_fingerprint_and_earlier_dataset(
    earlier: Path, fresh: dict[str, bytes], kaggle_folder: Path, tmp_path: Path
) -> None:
    def run(pinned: str) -> "subprocess.CompletedProcess[str]":
        changes = {a: parse_assignment(a) for a in ("data.source=archive", f"data.fingerprint={pinned}")}
        text = with_changes((ROOT / "params.yaml").read_text(encoding="utf-8"), changes)
        (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
        return subprocess.run(
            [sys.executable, "-m", "tasks.download", "params.yaml", "raw"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "RETRAIN_PREVIOUS_RAW": str(earlier)},
            capture_output=True,
            text=True,
            check=False,
        )

    found, pinned = fingerprint(listing_of(kaggle_folder)), "f" + 31 * "0"
    refused = run(pinned)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"error: archive: the files do not match data.fingerprint: found {found}, pinned {pinned}; "
        f"to accept the current files, run: cxr params --set data.fingerprint={found}\n"
    )
    accepted = run(found)
    assert accepted.returncode == 0, accepted.stderr
    assert accepted.stdout.splitlines()[-1] == "2 of 27 files fetched, 25 unchanged"
    assert contents(tmp_path / "raw") == fresh


OWN = Layout.model_validate(PAIRS)


def test_images_of_ones_own_are_copied_verbatim_and_only_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pairs(tmp_path / "pairs", each=1)

    def run(out: str, previous: str | None = None) -> dict[str, bytes]:
        source = open_source(str(folder), Path(), own_layout=True)
        earlier = tmp_path / previous if previous else None
        download(source, tmp_path / out, "here", previous=earlier, layout=OWN)
        return made(tmp_path / out)

    first = run("a")
    raw = RawDataset(tmp_path / "a")
    for image_id in raw.manifest["id"]:
        name = image_id.rpartition("/")[2]
        assert raw.read_bytes(image_id, "image") == (folder / f"{name}.jpg").read_bytes()
        assert raw.read_bytes(image_id, "lung") == (folder / f"{name}_mask.png").read_bytes()
    assert raw.kinds("lung") == ("image", "lung")
    assert run("b", previous="a") == first
    assert "0 of 18 files fetched, 18 unchanged" in capsys.readouterr().out


def test_groups_are_counted_without_their_names(tmp_path: Path) -> None:
    source = open_source(str(write_table(tmp_path / "table", each=4)), Path(), own_layout=True)
    download(source, tmp_path / "raw", "here", layout=Layout.model_validate(TABLE))
    assert json.loads((tmp_path / "raw" / GROUPS).read_text()) == {"number": 18, "split": 0}
    assert RawDataset(tmp_path / "raw").kinds("infection") == ("image", "infection")
    table = pd.read_csv(tmp_path / "raw" / GROUP_OF)
    assert set(table["id"]) == set(RawDataset(tmp_path / "raw").manifest["id"])
    assert list(table["group"].unique()) == list(range(18))
    assert (table.groupby("group").size() == 2).all()
