"""Scores of ensembles: handmade masks with known scores."""

import json
import zipfile

import pandas as pd
import pytest

from tasks.comparison.document import PICTURES_FILE, EnsembleScore, EnsembleTarget
from tests.results import IDS, NAMES, Work

#: IoU of a square of 24 pixels a side with itself, shifted down.
IOU = {shift: (24 - shift) / (24 + shift) for shift in (2, 3, 4, 6)}


def found(work: Work) -> EnsembleTarget:
    (ensemble,) = work.compare().ensembles
    assert (ensemble.experiment, ensemble.networks) == ("twice", 2)
    (target,) = ensemble.targets
    return target


def score(target: EnsembleTarget, split: str, image_set: str, metric: str) -> EnsembleScore:
    return next(
        one for one in target.scores if (one.split, one.image_set, one.metric) == (split, image_set, metric)
    )


@pytest.fixture
def ensemble(work: Work) -> Work:
    work.add("twice", shift=2, seeds=2)
    work.add_ensemble("twice", shift=4)
    return work


def test_the_ensemble_is_compared_with_the_mean_of_its_networks(ensemble: Work) -> None:
    iou = score(found(ensemble), "Test", "covid", "iou")
    assert iou.networks.value == pytest.approx((IOU[2] + IOU[3]) / 2)
    assert iou.ensemble.value == pytest.approx(IOU[4])
    assert iou.change and iou.change.value == pytest.approx(IOU[4] - (IOU[2] + IOU[3]) / 2)
    assert iou.change.winner == "networks"
    missed = score(found(ensemble), "Test", "covid", "missed")
    assert (missed.images, missed.networks.value, missed.ensemble.value) == (6, 0, 0)
    marked = score(found(ensemble), "Test", "controls", "false_positive_rate")
    assert (marked.images, marked.ensemble.value, marked.change) == (2, 0, None)
    assert score(found(ensemble), "Val", "all", "balanced").ensemble.value == pytest.approx(
        (1 + 2 * IOU[4] / (1 + IOU[4])) / 2
    )


def test_disagreement_that_follows_the_errors_has_the_ratio_1(ensemble: Work) -> None:
    folder = ensemble.paths["evaluated"] / "ensembles" / "twice"
    table = pd.read_csv(folder / "images.csv")
    table["disagreement"] = 1 - table["dice"]
    table.to_csv(folder / "images.csv", index=False)
    rejection = found(ensemble).rejection
    assert rejection.ratio and rejection.ratio.value == pytest.approx(1)
    assert rejection.risk == rejection.best
    assert (rejection.images, rejection.coverage[-1]) == (8, 1)
    assert rejection.risk[-1] == pytest.approx(rejection.random)


def test_the_images_with_the_largest_disagreement_are_shown(ensemble: Work) -> None:
    ensemble.ensembles.clear()
    folder = ensemble.paths["evaluated"] / "ensembles" / "twice"
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    ensemble.add_ensemble("twice", 4, {NAMES[0]: 0.7, NAMES[1]: 0.9, NAMES[2]: 1.0})
    shown = [image.image_id for image in found(ensemble).shown]
    assert shown == [IDS[NAMES[1]], IDS[NAMES[0]]]  # the third has no picture
    with zipfile.ZipFile(ensemble.comparison / PICTURES_FILE) as archive:
        names = set(archive.namelist())
    assert {f"spread/twice/infection/{image_id}.png" for image_id in shown} <= names
    assert {f"predictions/twice (ensemble)/infection/{image_id}.png" for image_id in shown} <= names


def test_page_summary_table_and_metrics_have_the_ensemble(ensemble: Work) -> None:
    page = ensemble.run()
    assert "the average of the 2 networks of twice reaches an IoU of 0.714" in page
    assert page.count("Spread of the networks</span>") == 2
    assert "the average of the 2 networks of twice" in (ensemble.out / "summary.md").read_text()
    table = pd.read_csv(ensemble.comparison / "ensembles.csv")
    (row,) = table[(table["metric"] == "iou") & (table["split"] == "Test")].to_dict("records")
    assert row["change"] == pytest.approx(row["value"] - row["networks"], abs=1e-6)
    metrics = json.loads(ensemble.metrics.read_text())["twice"]["ensemble"]
    assert metrics["test"]["infection"]["covid"]["iou"] == pytest.approx(IOU[4], abs=1e-6)
    assert metrics["val"]["infection"]["all"].keys() == {"balanced"}


def test_without_ensembles_the_document_does_not_name_them(work: Work) -> None:
    page = work.run()
    assert "ensembles" not in json.loads((work.comparison / "comparison.json").read_text())
    assert not (work.comparison / "ensembles.csv").exists()
    assert "Ensembles" not in page
