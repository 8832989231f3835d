"""A cross-validation of three folds beside an experiment without, from the audit to `cxr predict`."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from models.metrics import confusion_of_masks, dice
from tasks.bundles.schema import open_bundle
from tasks.bundles.trained_on import read_hashes, shortened
from tasks.common.raw import RawDataset
from tasks.comparison.document import COMPARISON_FILE, Document
from tasks.inference.points import THRESHOLDS
from tasks.inference.predict import load_networks, predict_cases
from tasks.networks.device import set_up
from tasks.packed.reader import PackedSplit
from tasks.prediction.run import Options, predict
from tasks.report import report
from tasks.settings.changes import parse_assignment, with_changes
from tasks.settings.params import parse_params
from tests.bundles import Pipeline, run_pipeline
from tests.conftest import TINY
from tests.helpers import ROOT

FOLDS = 3
CHANGES = (
    *TINY,
    "epochs=8",
    "training.precision=fp32",  # as ONNX Runtime, on every machine
    "experiments.report2.folds=3",
    "experiments.report2.prediction.presence=0",
    "experiments.report2_focal.targets=[infection]",
    "export.experiments=[report2]",
    "promotion.experiment=null",
)
NAMES = [f"report2-fold{fold}" for fold in range(FOLDS)]


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    changes = {assignment: parse_assignment(assignment) for assignment in CHANGES}
    params = parse_params(with_changes(text, changes, ("report2", "report2_focal")))
    pipeline = Pipeline(params, tmp_path_factory.mktemp("folded"))
    run_pipeline(pipeline)
    comparison = pipeline.out("comparison")
    report(comparison, pipeline.folder / "reports", pipeline.folder / "metrics.json")
    return pipeline


@pytest.fixture(scope="module")
def document(folded: Pipeline) -> Document:
    return Document.read(folded.out("comparison") / COMPARISON_FILE)


def rows(pipeline: Pipeline, name: str) -> pd.DataFrame:
    return pd.read_csv(pipeline.out("evaluation", name) / "images.csv")


def packed_table(pipeline: Pipeline, *splits: str) -> pd.DataFrame:
    table = pd.read_csv(pipeline.packed / "images.csv")
    return table[(table["half"] == "infection") & table["split"].isin(splits)]


def test_each_train_and_val_image_is_scored_once_by_the_network_that_did_not_see_it(folded: Pipeline) -> None:
    scored: list[str] = []
    for fold, name in enumerate(NAMES):
        found = rows(folded, name)
        own = folded.folds(name)[fold]
        val = found[(found["split"] == "Val") & (found["target"] == "lung")]
        assert set(val["id"]) == own.val and len(val) == len(own.val)
        scored.extend(val["id"])
        described = json.loads((folded.out("train", name) / "network" / "network.json").read_text())
        assert (described["train_images"], described["val_images"]) == (len(own.train), len(own.val))
        assert described["plan"]["fold"] == fold
        test = found[(found["split"] == "Test") & (found["target"] == "lung")]
        assert set(test["id"]) == set(packed_table(folded, "Test")["id"])
    assert sorted(scored) == sorted(packed_table(folded, "Train", "Val")["id"])
    assert folded.folds("report2_focal-seed0") == ()


def test_the_ensemble_has_the_threshold_that_suits_all_images_out_of_fold(folded: Pipeline) -> None:
    plan = folded.params.plans[NAMES[0]]
    compute, raw = set_up(plan.seed, plan.precision, plan.threads), RawDataset(folded.raw)
    networks = load_networks(folded.out("ensembles", NAMES[-1]), compute)
    at_each = []
    for network, fold in zip(networks, folded.folds(NAMES[0]), strict=True):
        split = PackedSplit(folded.packed, plan.half, "Val", plan.targets, fold=fold)
        for case in predict_cases([network], plan, split, raw, compute, False, ""):
            probability, reference = case.probabilities["lung"].numpy(), case.references["lung"].numpy()
            at_each.append([dice(confusion_of_masks(probability >= t, reference)) for t in THRESHOLDS])
    assert len(at_each) == 36
    scores = np.mean(at_each, axis=0)
    best = min(THRESHOLDS[scores >= scores.max() - 1e-12], key=lambda threshold: abs(threshold - 0.5))
    folder = folded.out("evaluation", "ensembles") / "report2"
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["thresholds"]["lung"] == pytest.approx(float(best))
    assert scores.max() > scores.min()
    assert set(pd.read_csv(folder / "images.csv")["split"]) == {"Test"}


def test_the_score_out_of_fold_is_the_mean_over_all_images(folded: Pipeline, document: Document) -> None:
    together = pd.concat(rows(folded, name) for name in NAMES)
    covid = together[(together["split"] == "Val") & (together["class"] == "COVID-19")]
    (of,) = document.cross_validations
    assert (of.experiment, of.folds, of.images) == ("report2", 3, (12, 12, 12))
    for found in of.targets:
        (score,) = (s for s in found.scores if (s.metric, s.image_set) == ("dice", "covid"))
        of_target = covid[covid["target"] == found.target]
        assert score.images == len(of_target) == 18
        assert score.score.value == pytest.approx(of_target["dice"].mean())
        assert score.folds == pytest.approx(of_target.groupby("seed")["dice"].mean().tolist())
        assert score.score.interval
        assert score.score.interval.low <= score.score.value <= score.score.interval.high
    table = pd.read_csv(folded.out("comparison") / "out_of_fold.csv")
    assert len(table) == 2 * 36
    for fold, name in enumerate(NAMES):
        expected = rows(folded, name)
        expected = expected[expected["split"] == "Val"].set_index(["target", "id"])["iou"].sort_index()
        found_iou = table[table["fold"] == fold].set_index(["target", "id"])["iou"].sort_index()
        pd.testing.assert_series_equal(found_iou, expected)
    metrics = json.loads((folded.folder / "metrics.json").read_text())["report2"]
    lung = together[(together["split"] == "Val") & (together["target"] == "lung")]
    assert metrics["val"]["lung"]["all"]["dice"] == pytest.approx(lung["dice"].mean(), abs=1e-6)
    of_covid = lung[lung["class"] == "COVID-19"]["dice"].mean()
    assert metrics["out_of_fold"]["lung"]["covid"]["dice"] == pytest.approx(of_covid, abs=1e-6)


def test_steps_are_changes_over_all_images_out_of_fold(folded: Pipeline, document: Document) -> None:
    """A fold whose threshold is 0.5 has no step, so its images count as unchanged."""
    (lung,) = (section for section in document.predicted if section.target == "lung")
    (chosen,) = (step for step in lung.steps if step.step == "chosen")
    (change,) = (c for c in chosen.changes if (c.split, c.image_set, c.metric) == ("Val", "all", "dice"))
    total = 0.0
    for name in NAMES:
        steps = pd.read_csv(folded.out("evaluation", name) / "steps.csv")
        of_lung = steps[(steps["split"] == "Val") & (steps["target"] == "lung")]
        sums = of_lung.groupby("step")["dice"].sum()
        total += sums["chosen"] - sums["plain"] if len(sums) else 0.0
    assert change.value == pytest.approx(total / 36)
    assert total != 0


def test_experiments_with_and_without_folds_are_compared_on_the_val_images_of_both(
    folded: Pipeline, document: Document
) -> None:
    infection, lung = document.predicted
    assert infection.choice and lung.choice
    assert (infection.target, infection.choice.images) == ("infection", 8)
    assert infection.choice.family.images == 8
    common = set(packed_table(folded, "Val")["id"])
    together = pd.concat(rows(folded, name) for name in NAMES)
    own = together[
        (together["split"] == "Val") & (together["target"] == "infection") & together["id"].isin(common)
    ]
    (of_all,) = (found for found in infection.val if found.name == "all")
    assert of_all.row("report2").images == len(own) == 8
    assert of_all.row("report2").scores["iou"].value == pytest.approx(own["iou"].mean())
    # Only report2 predicts lungs, so its choice has all images, and no trivial predictor knows Train.
    assert lung.choice.images == 36
    assert [row.name for row in lung.val[0].rows] == ["report2"]


def test_the_report_says_what_folds_and_their_ensemble_bring(folded: Pipeline) -> None:
    page = (folded.folder / "reports" / "index.html").read_text()
    assert '<h2 id="folds">Cross-validation</h2>' in page
    assert "fold 2, 12 images" in page
    summary = (folded.folder / "reports" / "summary.md").read_text()
    assert "Lung: over the 3 folds of report2, the IoU on 18 Train and Val images (COVID-19) is " in summary
    assert "Its mean Dice on 36 out-of-fold Train and Val images is " in summary
    assert "Lung: the average of the 3 networks of report2 reaches an IoU of " in summary
    assert "3 folds)" in summary and "3 seeds" not in summary
    checklist = (folded.folder / "reports" / "claim.md").read_text()
    assert "36 Train and Val images in 3 folds (report2)" in checklist


def test_the_bundle_has_all_networks_and_names_all_train_and_val_images(
    folded: Pipeline, tmp_path: Path
) -> None:
    folder = folded.bundle("report2")
    bundle = open_bundle(folder)
    assert [network.training for network in bundle.main.networks] == NAMES
    assert bundle.main.ensemble and bundle.main.ensemble.keys() == {"infection", "lung"}
    trained = packed_table(folded, "Train", "Val")["sha256"]
    assert read_hashes(folder / "trained-on.txt") == {shortened(digest) for digest in trained}
    raw = RawDataset(folded.raw)
    test = packed_table(folded, "Test")["id"].tolist()
    for image_id in test:
        file = tmp_path / "xrays" / f"{image_id}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(raw.read_bytes(image_id, "image") or b"")
    summary = predict([str(tmp_path / "xrays")], folder, tmp_path / "out", Options(engine="torch"))
    assert summary.predicted == len(test)
    archive = folded.out("evaluation", "ensembles") / "report2" / "predictions.zip"
    with zipfile.ZipFile(archive) as masks:
        for name in masks.namelist():
            assert (tmp_path / "out" / "masks" / name).read_bytes() == masks.read(name)
