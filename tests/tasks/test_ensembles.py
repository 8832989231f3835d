"""The networks of two seeds as an ensemble, from training to `cxr predict`."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tasks.bundles.schema import open_bundle
from tasks.common.raw import RawDataset
from tasks.evaluate import evaluate
from tasks.evaluate_external import evaluate_external
from tasks.gather import gather
from tasks.inference.masks import read_points
from tasks.inference.predict import load_networks, predict_images
from tasks.networks.device import set_up
from tasks.packed.reader import PackedSplit
from tasks.prediction.run import Options, predict
from tasks.settings.params import Params
from tests.bundles import Pipeline, compare_and_export


@pytest.fixture(scope="module")
def gathered(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gathered")
    networks = [pipeline.out("train", f"combined-seed{seed}") / "network" for seed in (0, 1)]
    gather(*networks, folder / "two")
    return folder / "two"


@pytest.fixture(scope="module")
def evaluated(pipeline: Pipeline, gathered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ensemble") / "combined"
    plan, experiment = pipeline.params.plans["combined-seed0"], pipeline.params.experiments["combined"]
    evaluate(plan, experiment.prediction, gathered, pipeline.packed, pipeline.raw, out)
    return out


@pytest.fixture(scope="module")
def bundle(pipeline: Pipeline, evaluated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the ensemble. The outputs of the other stages are those of the pipeline."""
    folder = tmp_path_factory.mktemp("bundle")
    own = Pipeline(averaged(pipeline.params), folder)
    (folder / "data").symlink_to(pipeline.folder / "data")
    own.out("evaluation", "ensembles").mkdir(parents=True)
    for stage in ("plans", "train", "baselines", "audit", "converted"):
        own.out(stage).symlink_to(pipeline.out(stage))
    for training in pipeline.params.plans:
        own.out("evaluation", training).symlink_to(pipeline.out("evaluation", training))
    (own.out("evaluation", "ensembles") / "combined").symlink_to(evaluated)
    compare_and_export(own, "combined")
    return own.bundle("combined")


def averaged(params: Params) -> Params:
    """The params with `ensemble: seeds` for combined."""
    combined = params.experiments["combined"]
    prediction = combined.prediction.model_copy(update={"ensemble": "seeds"})
    experiments = params.experiments | {"combined": combined.model_copy(update={"prediction": prediction})}
    return params.model_copy(update={"experiments": experiments})


def test_networks_are_gathered_one_after_another(pipeline: Pipeline, gathered: Path, tmp_path: Path) -> None:
    third = tmp_path / "third"
    (third).mkdir()
    for file in (pipeline.out("train", "combined-seed1") / "network").iterdir():
        (third / file.name).write_bytes(file.read_bytes().replace(b"combined-seed1", b"combined-seed2"))
    gather(gathered, third, tmp_path / "three")
    assert sorted(path.name for path in (tmp_path / "three").iterdir()) == [
        "combined-seed0",
        "combined-seed1",
        "combined-seed2",
    ]
    for file in gathered.rglob("*.*"):
        assert (tmp_path / "three" / file.relative_to(gathered)).read_bytes() == file.read_bytes()


def test_probabilities_are_averaged(pipeline: Pipeline, gathered: Path) -> None:
    plan = pipeline.params.plans["combined-seed0"]
    compute = set_up(plan.seed, plan.precision, plan.threads)
    split = PackedSplit(pipeline.packed, plan.half, "Test")
    networks = load_networks(gathered, compute)
    single = [list(predict_images([network], split, compute, True, "")) for network in networks]
    found = list(predict_images(networks, split, compute, True, ""))
    assert len(found) == len(split)
    for one, first, second in zip(found, *single, strict=True):
        torch.testing.assert_close(one.averaged, (first.averaged + second.averaged) / 2, rtol=0, atol=1e-7)
        torch.testing.assert_close(one.plain, (first.plain + second.plain) / 2, rtol=0, atol=1e-7)
        assert torch.equal(one.members[0], first.averaged) and torch.equal(one.members[1], second.averaged)
        assert first.members == []


def test_two_equal_networks_score_as_one_and_never_disagree(
    pipeline: Pipeline, gathered: Path, tmp_path: Path
) -> None:
    plan, experiment = pipeline.params.plans["combined-seed0"], pipeline.params.experiments["combined"]
    for name in ("a", "b"):
        (tmp_path / "twice" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "twice" / name).symlink_to(gathered / "combined-seed0")
    evaluate(plan, experiment.prediction, tmp_path / "twice", pipeline.packed, pipeline.raw, tmp_path / "out")
    found = pd.read_csv(tmp_path / "out" / "images.csv")
    assert (found.pop("disagreement") == 0).all()
    single = pipeline.out("evaluation", "combined-seed0")
    pd.testing.assert_frame_equal(found, pd.read_csv(single / "images.csv"))
    assert (tmp_path / "out" / "predictions.zip").read_bytes() == (single / "predictions.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "out" / "spread.zip") as archive:
        assert archive.namelist() == []


def test_on_images_as_external_ones_it_has_the_scores_of_evaluate(
    pipeline: Pipeline, gathered: Path, evaluated: Path, tmp_path: Path
) -> None:
    plan, experiment = pipeline.params.plans["combined-seed0"], pipeline.params.experiments["combined"]
    points = read_points(evaluated / "settings.json")
    out = tmp_path / "out"
    evaluate_external(plan, experiment.prediction, gathered, points, pipeline.packed, pipeline.raw, out)
    found, every = pd.read_csv(out / "images.csv"), pd.read_csv(evaluated / "images.csv")
    test = every[every["split"] == "Test"].reset_index(drop=True)
    assert "disagreement" in found
    pd.testing.assert_frame_equal(found, test[found.columns], check_exact=True)


def test_disagreement_is_between_0_and_1_and_the_spread_is_a_picture(
    evaluated: Path, pipeline: Pipeline
) -> None:
    found = pd.read_csv(evaluated / "images.csv")
    assert found["disagreement"].between(0, 1).all() and found["disagreement"].max() > 0
    test = found[found["split"] == "Test"].sort_values(["disagreement", "id"], ascending=[False, True])
    with zipfile.ZipFile(evaluated / "spread.zip") as archive:
        names = archive.namelist()
        for target, rows in test[test["disagreement"] > 0].groupby("target"):
            assert f"{target}/{rows['id'].iloc[0]}.png" in names
        picture = np.asarray(Image.open(io.BytesIO(archive.read(names[0]))))
    _, _, image_id = names[0].removesuffix(".png").partition("/")
    assert picture.shape == RawDataset(pipeline.raw).read(image_id, "image").shape
    assert picture.dtype == np.uint8 and picture.max() > 0


def test_predict_makes_the_masks_of_the_average(
    pipeline: Pipeline, bundle: Path, evaluated: Path, tmp_path: Path
) -> None:
    opened = open_bundle(bundle)
    settings = json.loads((evaluated / "settings.json").read_text())
    assert {name: point.threshold for name, point in (opened.main.ensemble or {}).items()} == settings[
        "thresholds"
    ]
    raw = RawDataset(pipeline.raw)
    for image_id in raw.manifest["id"][raw.manifest["split"] == "Test"]:
        file = tmp_path / "xrays" / f"{image_id}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(raw.read_bytes(image_id, "image") or b"")
    summary = predict([str(tmp_path / "xrays")], bundle, tmp_path / "out", Options(engine="torch"))
    with zipfile.ZipFile(evaluated / "predictions.zip") as archive:
        names = archive.namelist()
        assert summary.predicted == len(names) / 2
        for name in names:
            expected = np.asarray(Image.open(io.BytesIO(archive.read(name))))
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "masks" / name)), expected)
    table = pd.read_csv(tmp_path / "out" / "images.csv")
    assert (table["uncertainty"] > 0).all()


def test_the_card_says_that_masks_are_those_of_the_average(bundle: Path, evaluated: Path) -> None:
    card = (bundle / "card.md").read_text()
    assert "Scores of the average of the networks" in card
    assert "| average of all, which makes the masks | |" in card
    rows = pd.read_csv(evaluated / "images.csv")
    covid = rows[(rows["split"] == "Test") & (rows["class"] == "COVID-19") & (rows["target"] == "lung")]
    (score,) = (
        one
        for one in open_bundle(bundle).scores
        if (one.target, one.metric, one.image_set) == ("lung", "iou", "covid")
    )
    assert score.value == pytest.approx(covid["iou"].mean(), abs=1e-6)
