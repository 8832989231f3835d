"""Datasets of one's own from their files to the report, with DVC commands in a real repository."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers import Repository
from tests.own import PAIRS, TABLE, patient, write_pairs, write_table

Make = Callable[[Path], Repository]


def configured(make: Make, folder: Path, source: Path, layout: dict[str, Any], target: str) -> Repository:
    """A repository with one experiment on these images."""
    repository = make(folder)
    half = "infection" if target == "infection" else "lung"
    settings = (
        f"data.source={source}",
        f"data.layout={json.dumps(layout)}",
        f"training.half={half}",
        f"training.targets=[{target}]",
        f"training.train_classes={json.dumps(['COVID-19', 'Normal'])}",
        "experiments.mine={network: unet, loss: dice}",
    )
    options = [word for setting in settings for word in ("--set", setting)]
    repository.run("cxr", "params", *options, "--keep", "mine")
    return repository


@pytest.mark.soak
def test_a_folder_of_pairs_trains_to_a_report(make_repository: Make, tmp_path: Path) -> None:
    source = write_pairs(tmp_path / "pairs")
    repository = configured(make_repository, tmp_path / "repository", source, PAIRS, "lung")
    said = repository.run("cxr", "data", "look")
    assert "27 images with lung mask, as the lung half:" in said
    output = repository.run("dvc", "repro")
    assert "lung half: the lung masks mark with 1 instead of 255" in output
    metrics = json.loads(repository.read("metrics.json"))
    scores = metrics["mine"]["test"]["lung"]["normal"]
    assert 0 < scores["iou"] < scores["dice"] < 1
    assert metrics["baselines"].keys() == {"all_background", "all_foreground"}
    assert metrics["dataset"]["images"] == 27
    assert "covid_without_infection" not in metrics["dataset"]
    with zipfile.ZipFile(repository.folder / "artifacts/comparison/pictures.zip") as archive:
        pictures = {name: Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()}
    assert {picture.format for picture in pictures.values()} == {"PNG"}
    masks = [np.asarray(picture.convert("L")) for name, picture in pictures.items() if "references/" in name]
    assert masks and all(0.1 < (pixels == 255).mean() < 0.6 for pixels in masks)
    page = repository.read("reports/index.html")
    assert "COVID-QU-Ex" not in page
    assert "Normal Test images" in page
    assert "There are no infection masks: nothing is known of infection." in page
    assert "There are no patient identifiers." in page
    assert "up to date" in repository.run("dvc", "status")


@pytest.mark.soak
def test_a_table_of_splits_and_patients_trains_to_a_report(make_repository: Make, tmp_path: Path) -> None:
    source = write_table(tmp_path / "table")
    repository = configured(make_repository, tmp_path / "repository", source, TABLE, "infection")
    output = repository.run("dvc", "repro")
    assert "groups: each has all of its images in one split" in output
    metrics = json.loads(repository.read("metrics.json"))
    assert {"covid", "normal", "all"} <= metrics["mine"]["test"]["infection"].keys()
    assert metrics["baselines"].keys() == {"all_background", "all_foreground"}
    assert "empty_lung_masks" not in metrics["dataset"]
    page = repository.read("reports/index.html")
    assert "All images of a group, such as a patient, are in one split." in page
    assert "There are no lung masks:" in page
    assert "no patient identifiers" not in page
    results = [
        path for root in ("data", "artifacts", "reports") for path in (repository.folder / root).rglob("*")
    ]
    files = [path for path in results if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if patient(4).encode() in path.read_bytes()]
