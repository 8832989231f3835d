"""Scores on external datasets: handmade masks with known scores."""

import json
import re

import pandas as pd
import pytest

from tasks.comparison.document import ExternalRow
from tests.results import Work


def rows(work: Work, dataset: str = "elsewhere") -> dict[str, ExternalRow]:
    (found,) = [one for one in work.compare().external if one.name == dataset]
    (target,) = found.targets
    return {row.experiment: row for row in target.rows}


#: IoU of a square of 24 pixels a side with itself, shifted down.
IOU = {shift: (24 - shift) / (24 + shift) for shift in (2, 3, 4, 6, 12)}


def test_the_change_is_the_external_score_minus_the_test_score(work: Work) -> None:
    work.add_external("elsewhere", "infection", {"bce-seed0": 12, "bce_iou-seed0": 2})
    found = rows(work)
    bce = found["bce"]
    assert bce.scores["iou"].value == pytest.approx(IOU[12])
    assert bce.test["iou"].value == pytest.approx(IOU[6])
    assert (bce.test_images, bce.test_classes) == (6, ("COVID-19",))
    change = bce.changes["iou"]
    assert (change.first, change.second, change.winner) == ("elsewhere", "Test", "Test")
    assert change.value == pytest.approx(IOU[12] - IOU[6])
    assert found["bce_iou"].changes["iou"].winner is None
    assert found["bce_iou"].changes["iou"].value == pytest.approx(0)
    assert bce.scores["missed"].value == 0
    assert bce.scores["false_positive_rate"].value == 0  # of the control


def test_images_that_are_also_in_the_dataset_are_left_out(work: Work) -> None:
    shifts = {"bce-seed0": 4, "bce_iou-seed0": 4}
    work.add_external("elsewhere", "infection", shifts, images=6, overlap=2)
    work.add_external("nowhere", "infection", shifts, images=6)
    found, whole = work.compare().external
    assert (found.images, found.unusable, found.overlapping, found.identical) == (8, 1, 2, 2)
    assert found.targets[0].images == 4 and whole.targets[0].images == 6
    assert found.targets[0].rows[0].scores["iou"].value == pytest.approx(IOU[4])


def test_several_seeds_widen_the_interval_of_the_change(work: Work) -> None:
    work.add("twice", shift=2, seeds=2)
    others = {"bce-seed0": 6, "bce_iou-seed0": 2}
    work.add_external("elsewhere", "infection", {"twice-seed0": 4, "twice-seed1": 12, **others})
    (found,) = work.compare().external
    assert found.targets[0].covers_training
    change = rows(work)["twice"].changes["iou"]
    assert change.value == pytest.approx((IOU[4] + IOU[12] - IOU[2] - IOU[3]) / 2)
    assert change.interval and change.interval.high - change.interval.low > 0.5
    assert change.winner is None


def test_an_ensemble_is_scored_beside_its_networks(work: Work) -> None:
    work.add("twice", shift=2, seeds=2)
    work.add_ensemble("twice", shift=3)
    others = {"bce-seed0": 6, "bce_iou-seed0": 2}
    shifts = {"twice-seed0": 4, "twice-seed1": 12, "ensembles/twice": 6, **others}
    work.add_external("elsewhere", "infection", shifts, overlap=1)
    page = work.run().replace("\N{NON-BREAKING HYPHEN}", "-")
    (found,) = work.compare().external
    (row,) = found.targets[0].ensembles
    assert row.experiment == "twice"
    assert row.scores["iou"].value == pytest.approx(IOU[6])
    assert row.test["iou"].value == pytest.approx(IOU[3])
    change = row.changes["iou"]
    assert change.value == pytest.approx(IOU[6] - IOU[3]) and change.winner == "Test"
    table = pd.read_csv(work.comparison / "external.csv").set_index(["name", "metric"])
    assert table.loc[("twice (ensemble)", "iou"), "images"] == 5  # one image is also in the dataset
    metrics = json.loads(work.metrics.read_text())["twice"]
    assert metrics["ensemble"]["external"]["elsewhere"]["infection"]["iou"] == pytest.approx(IOU[6], abs=1e-6)
    assert metrics["external"]["elsewhere"]["infection"]["iou"] == pytest.approx(
        (IOU[4] + IOU[12]) / 2, abs=1e-6
    )
    (shown,) = re.findall(r'caption-external-elsewhere-infection">\n(<table.*?</table>)', page, re.DOTALL)
    assert "twice (ensemble)" in re.sub(r"<wbr>", "", shown) and shown.count('class="whisker"') == 4


def test_without_external_datasets_nothing_is_written(work: Work) -> None:
    work.run()
    assert "external" not in json.loads((work.comparison / "comparison.json").read_text())
    assert not (work.comparison / "external.csv").exists()
    assert "other hospitals" not in work.page()
    assert "external" not in json.loads(work.metrics.read_text())["bce"]


def test_the_table_has_a_row_for_each_metric(work: Work) -> None:
    work.add_external("elsewhere", "infection", {"bce-seed0": 12, "bce_iou-seed0": 2})
    work.compare()
    table = pd.read_csv(work.comparison / "external.csv").set_index(["name", "metric"])
    assert set(table.index.get_level_values("metric")) == {"iou", "dice", "missed", "false_positive_rate"}
    row = table.loc[("bce", "iou")]
    assert row["change"] == pytest.approx(row["value"] - row["test_value"])
    assert row["change_low"] <= row["change"] <= row["change_high"]
    assert table.loc[("bce", "false_positive_rate"), "images"] == 1
    assert pd.isna(table.loc[("bce", "missed"), "change"])
    assert table.loc[("bce", "false_positive_rate"), "test_value"] == 0


def test_the_report_says_how_much_is_lost(work: Work) -> None:
    work.add_external("elsewhere", "infection", {"bce-seed0": 12, "bce_iou-seed0": 12}, overlap=1)
    page = work.run().replace("\N{NON-BREAKING HYPHEN}", "-")
    loss = IOU[2] - IOU[12]
    assert f"For infection, bce_iou reaches an IoU of {IOU[12]:.3f}" in page
    assert f"it loses {loss:.3f} (95% CI {loss:.3f}" in page
    assert "elsewhere: 1 of 7 usable images are also in the dataset, 1 of them with identical pixels." in page
    (table,) = re.findall(r'caption-external-elsewhere-infection">\n(<table.*?</table>)', page, re.DOTALL)
    assert table.count('class="whisker"') == 2
    assert 'class="level"' not in table  # both lose
    assert "Scores on elsewhere say how networks do on these images." in page
    assert "No network was tested on images of another hospital" not in page
    assert "it loses" in (work.out / "summary.md").read_text(encoding="utf-8")
    metrics = json.loads(work.metrics.read_text())["bce_iou"]["external"]["elsewhere"]["infection"]
    assert metrics["iou"] == pytest.approx(IOU[12], abs=1e-6)
