"""Differences between two revisions of the dataset, with real git and DVC."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from flows.dataset import DatasetDifference, count, dataset_difference
from tasks.common.raw import MANIFEST_COLUMNS
from tests.helpers import Repository, environment


def manifest(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    """Return a manifest of images by id, with the hashes of image, lung mask and infection mask."""
    return pd.DataFrame(
        [[row[0], *row[0].split("/")[:3], *row[1:]] for row in rows], columns=MANIFEST_COLUMNS
    )


def test_images_are_added_removed_moved_or_changed() -> None:
    train, val = "infection/Train/COVID-19", "infection/Val/COVID-19"
    before = manifest(
        (f"{train}/same", "a", "b", "c"),
        (f"{train}/mask", "d", "e", "f"),
        (f"{train}/all", "g", "h", ""),
        (f"{train}/gone", "i", "j", "k"),
        (f"{train}/away", "l", "m", "n"),
        (f"{train}/twin1", "o", "p", "q"),
        (f"{train}/twin2", "o", "p", "q"),
        (f"{train}/bare", "", "r", ""),
    )
    after = manifest(
        (f"{train}/same", "a", "b", "c"),
        (f"{train}/mask", "d", "E", "f"),
        (f"{train}/all", "G", "", "new"),
        (f"{val}/away", "l", "M", "n"),
        (f"{val}/bare", "", "r", ""),
        (f"{val}/came", "s", "t", "u"),
        (f"{val}/twin", "o", "p", "q"),
    )
    difference = dataset_difference(before, after)
    assert difference == DatasetDifference(
        added=[f"{val}/bare", f"{val}/came"],  # without an image, it cannot be recognised as moved
        removed=[f"{train}/bare", f"{train}/gone", f"{train}/twin2"],
        moved=[
            (f"{train}/away", f"{val}/away", ["lung mask"]),
            (f"{train}/twin1", f"{val}/twin", []),
        ],
        changed=[
            (f"{train}/all", ["image", "lung mask removed", "infection mask added"]),
            (f"{train}/mask", ["lung mask"]),
        ],
    )
    assert count(before, after, difference).to_dict("index") == {
        train: dict(zip(COUNTS, (8, 0, 3, 0, 2, 2, 3), strict=True)),
        val: dict(zip(COUNTS, (0, 2, 0, 2, 0, 0, 4), strict=True)),
        "all": dict(zip(COUNTS, (8, 2, 3, 2, 2, 2, 7), strict=True)),
    }


COUNTS = ("before", "added", "removed", "moved in", "moved out", "changed", "after")


@pytest.fixture(scope="module")
def original(
    make_repository: Callable[[Path], Repository], tmp_path_factory: pytest.TempPathFactory
) -> Repository:
    """A repository whose first commit has no data, and whose second has nine images."""
    repository = make_repository(tmp_path_factory.mktemp("original") / "repository")
    repository.set("data.source=phantom://9?size=64")
    repository.run("dvc", "repro", "download")
    repository.commit("nine images")
    return repository


@pytest.fixture
def repository(original: Repository, tmp_path: Path) -> Repository:
    """A copy of the repository for one test."""
    return Repository(Path(shutil.copytree(original.folder, tmp_path / "repository")))


def diff(repository: Repository, *revisions: str, fails: bool = False) -> list[str]:
    return repository.run("cxr", "data", "diff", *revisions, fails=fails).splitlines()


def test_revisions_and_the_workspace(repository: Repository, kaggle_folder: Path) -> None:
    assert diff(repository, "HEAD") == ["data/raw: the same 9 images in HEAD and the workspace"]
    folder = kaggle_folder / "Infection Segmentation Data" / "Infection Segmentation Data"
    one, other = sorted((folder / "Train").glob("*/images/*.png"))[:2]
    shutil.copy(other, one)
    repository.set(f"data.source={kaggle_folder}")
    repository.run("dvc", "repro", "download")
    image_id = f"infection/Train/{one.parent.parent.name}/{one.stem}"
    output = diff(repository, "HEAD")
    assert output[0] == "data/raw: from HEAD to the workspace"
    assert output[-2].split() == ["all", "9", "0", "0", "0", "0", "1", "9"]
    assert output[-1] == f"changed  {image_id}: image"
    repository.commit("replace an image")
    assert diff(repository, "HEAD", "HEAD~1")[1:] == output[1:]

    shutil.rmtree(repository.folder / "data")
    line = diff(repository, "HEAD", fails=True)
    assert line == ["error: data/raw/manifest.csv: not found; run `dvc pull data/raw` or `dvc repro`"]


def test_missing_data_is_reported_in_one_line(repository: Repository) -> None:
    assert diff(repository, "nine", fails=True) == [
        f"error: revision: 'nine': no such branch, tag or commit in {repository.folder}"
    ]
    assert diff(repository, "HEAD~1", fails=True) == [
        "error: revision: 'HEAD~1': its dvc.lock has no data/raw"
    ]
    shutil.rmtree(repository.folder / ".dvc" / "cache")
    missing = "error: revision: 'HEAD': its data/raw/manifest.csv is not in the DVC cache, and "
    assert diff(repository, "HEAD", fails=True) == [f"{missing}no DVC remote is set"]
    repository.run("dvc", "remote", "add", "--default", "store", str(repository.folder.parent / "store"))
    (line,) = diff(repository, "HEAD", fails=True)
    assert line.startswith(f"{missing}could not read it from the DVC remote store: ")


def test_only_the_manifest_is_fetched_from_a_remote_added_after_the_revision(repository: Repository) -> None:
    store = repository.folder.parent / "store"
    repository.run("dvc", "remote", "add", "--default", "store", str(store))
    repository.run("dvc", "push", "download")
    repository.commit("a remote")
    shutil.rmtree(repository.folder / ".dvc" / "cache")
    for path in store.rglob("*"):
        if path.is_file() and path.read_bytes().startswith(b"PK"):
            path.unlink()
    assert diff(repository, "HEAD~1") == ["data/raw: the same 9 images in HEAD~1 and the workspace"]


def test_a_reader_that_closes_the_pipe_early_causes_no_error(repository: Repository, tmp_path: Path) -> None:
    names = [f"infection/Train/COVID-19/covid_{number}" for number in range(20_000)]
    many = manifest(*((name, name, "lung", "infection") for name in names))
    path = repository.folder / "data" / "raw" / "manifest.csv"
    path.unlink()  # a hard link to the cache's
    many.to_csv(path, index=False)
    done = subprocess.run(
        "cxr data diff HEAD | head -1",
        shell=True,
        cwd=repository.folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "data/raw: from HEAD to the workspace\n"
    assert done.stderr == ""
