"""Tests on the real infection half of COVID-QU-Ex, if its zip is available."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.audit import audit
from tasks.auditing.faults import BRIGHT
from tasks.baselines import baselines
from tasks.common.raw import RawDataset
from tasks.download import download
from tasks.packed.reader import PackedSplit
from tasks.preprocess import lung_correlation, preprocess
from tasks.settings.schema import Audit
from tasks.sources.open import open_source
from tests.helpers import REAL_ZIP

pytestmark = pytest.mark.skipif(not REAL_ZIP.is_file(), reason=f"the real dataset is not at {REAL_ZIP}")

COUNTS = {
    "Train": {"COVID-19": 1864, "Non-COVID": 932, "Normal": 932},
    "Val": {"COVID-19": 466, "Non-COVID": 233, "Normal": 233},
    "Test": {"COVID-19": 583, "Non-COVID": 292, "Normal": 291},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    download(open_source(str(REAL_ZIP), Path()), folder / "raw", "the real zip")
    preprocess(folder / "raw", folder / "packed", 64, 0.0)
    baselines(folder / "packed" / "images.csv", folder / "raw", folder / "baselines", "infection")
    return folder


def test_every_image_is_usable_and_counted(data: Path) -> None:
    table = pd.read_csv(data / "packed" / "images.csv")
    counts = table.groupby(["split", "class"]).size().unstack().to_dict("index")
    assert counts == COUNTS
    assert set(table["height"]) == set(table["width"]) == {256}


def test_only_covid_images_have_infections(data: Path) -> None:
    table = pd.read_csv(data / "packed" / "images.csv")
    assert (table["infection_area"] > 0).equals(table["class"] == "COVID-19")
    for split in COUNTS:
        masks = PackedSplit(data / "packed", "infection", split, ("lung", "infection")).masks()
        lung, infection = masks[:, 0].numpy() > 0, masks[:, 1].numpy() > 0
        assert not (infection & ~lung).any()


def test_the_audit_finds_the_duplicate_and_near_duplicates(data: Path) -> None:
    audit(data / "raw", data / "packed", data / "audit", Audit(correlation=0.98, duplicates="drop"), True)
    pairs = pd.read_csv(data / "audit" / "pairs.csv")
    assert pairs[pairs["exact"]][["first", "second"]].to_numpy().tolist() == [
        ["infection/Train/COVID-19/covid_686", "infection/Test/COVID-19/covid_3155"]
    ]
    figures = json.loads((data / "audit" / "audit.json").read_text())["figures"]
    assert figures == {
        "images": 5826,
        "unusable": 0,
        "missing_from_published": 0,
        "controls_with_infection": 0,
        "covid_without_infection": 0,
        "empty_lung_masks": 0,
        "infection_outside_lung": 0,
        "unusual_lung_areas": 1,
        "bright_lungs": 2,
        "exact_pairs_across_splits": 1,
        "near_pairs_across_splits": 16,
        "test_images_touched": 8,
        "pairs_within_splits": 36,
        "pairs_across_halves": 0,
        "dropped": 16,
    }


def test_the_audit_recognises_inverted_images(data: Path) -> None:
    table = pd.read_csv(data / "packed" / "images.csv")
    bright = table["id"][table["lung_correlation"] > BRIGHT]
    # The first is upside down, unlike its mask. The second is inverted.
    assert list(bright) == ["infection/Train/COVID-19/covid_4191", "infection/Train/Normal/Normal (1535)"]
    raw, inverted = RawDataset(data / "raw"), 0
    for image_id in table["id"].sample(500, random_state=0):
        correlation = lung_correlation(255 - raw.read(image_id, "image"), raw.read(image_id, "lung") > 0)
        assert correlation is not None
        inverted += correlation > BRIGHT
    assert inverted >= 495


def test_trivial_predictors_have_the_known_scores(data: Path) -> None:
    images = pd.read_csv(data / "baselines" / "images.csv")
    test = images[(images["split"] == "Test") & (images["target"] == "infection")]
    covid = test[test["class"] == "COVID-19"]
    means = covid.groupby("predictor")[["iou", "dice", "mae"]].mean()
    assert means.loc["all_foreground", "iou"] == pytest.approx(0.139, abs=5e-4)
    assert means.loc["all_background", "mae"] == pytest.approx(0.139, abs=5e-4)
    assert 255 * means.loc["all_background", "mae"] == pytest.approx(35.4, abs=0.05)
    assert means.loc["whole_lung", "iou"] == pytest.approx(0.547, abs=5e-4)
    assert means.loc["whole_lung", "dice"] == pytest.approx(0.646, abs=5e-4)
    np.testing.assert_array_equal(covid.groupby("predictor").size(), 583)
