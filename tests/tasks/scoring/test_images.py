import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score

from tasks.reporting.score_tables import NSD_TOLERANCE
from tasks.scoring.images import TOLERANCE, Calibration, score, score_within, summarise

HALF = torch.tensor([[1, 1], [0, 0]]).bool()
NONE = torch.zeros(2, 2).bool()
DIAGONAL = math.hypot(2, 2)


def row(image_class: str, probability: list[list[float]], reference: torch.Tensor) -> dict[str, object]:
    p = torch.tensor(probability, dtype=torch.float32)
    return {"target": "infection", "id": "id", "class": image_class, **score(p >= 0.5, p, reference)}


def calibration(rows: list[tuple[str, list[list[float]], torch.Tensor]]) -> Calibration:
    counted = Calibration()
    for image_class, probability, reference in rows:
        counted.add("infection", image_class, torch.tensor(probability, dtype=torch.float32), reference)
    return counted


def test_row_by_hand() -> None:
    assert row("COVID-19", [[0.5, 0.4], [0.9, 0.0]], HALF) == {
        "target": "infection",
        "id": "id",
        "class": "COVID-19",
        "tp": 1,
        "fp": 1,
        "fn": 1,
        "tn": 1,
        "iou": pytest.approx(1 / 3),
        "dice": pytest.approx(1 / 2),
        "precision": 0.5,
        "sensitivity": 0.5,
        "specificity": 0.5,
        "mae": pytest.approx((0.5 + 0.6 + 0.9 + 0.0) / 4),
        "hd95": pytest.approx(0.95),
        "nsd": 1.0,
    }


CASES = [
    ("COVID-19", [[1.0, 1.0], [0.0, 0.0]], HALF),  # exact: 1
    ("COVID-19", [[1.0, 0.0], [0.0, 0.0]], HALF),  # IoU 1/2, Dice 2/3
    ("COVID-19", [[0.0, 0.0], [0.0, 0.0]], HALF),  # missed: 0
    ("Normal", [[0.0, 0.0], [0.0, 0.0]], NONE),  # both empty: 1
    ("Non-COVID", [[0.0, 0.0], [0.0, 1.0]], NONE),  # a false alarm: 0
]


def test_image_sets_by_hand() -> None:
    found = summarise(pd.DataFrame([row(*case) for case in CASES]), calibration(CASES))["infection"]
    covid = found["covid"]
    assert covid["images"] == 3
    assert covid["iou"] == 0.5
    assert covid["dice"] == round((1 + 2 / 3) / 3, 6)
    assert covid["iou_pooled"] == 0.5
    assert covid["dice_pooled"] == round(6 / 9, 6)
    assert covid["sensitivity"] == 0.5
    assert covid["mae"] == 0.25 and covid["mae_255"] == 63.75
    assert covid["missed"] == round(1 / 3, 6)
    assert covid["hd95"] == pytest.approx((0 + 0.95 + DIAGONAL) / 3, abs=1e-6)
    assert "false_positive_rate" not in covid and "iou_nonempty" not in covid
    controls = found["controls"]
    assert controls["iou"] == controls["dice"] == controls["false_positive_rate"] == 0.5
    assert "missed" not in controls
    everything = found["all"]
    assert everything["iou"] == 0.5 and everything["iou_nonempty"] == 0.5
    assert everything["dice"] == round((2 + 2 / 3) / 5, 6)
    assert everything["dice_nonempty"] == covid["dice"]


def test_calibration_by_hand() -> None:
    """Of 20 pixels, 16 have probability 0 (3 in the reference mask) and 4 have probability 1 (3 in it)."""
    found = summarise(pd.DataFrame([row(*case) for case in CASES]), calibration(CASES))
    assert found["infection"]["all"]["ece"] == pytest.approx((3 + 1) / 20)
    table = calibration(CASES).table().set_index(["image_set", "bin"])
    assert list(table.loc["all"]["pixels"]) == [16, 4]
    assert list(table.loc["all"]["true_share"]) == [3 / 16, 3 / 4]


def test_pooled_scores_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    masks = [(rng.random((2, 8, 8)) > 0.6) for _ in range(5)]
    images = pd.DataFrame([row("COVID-19", p.astype(float).tolist(), torch.from_numpy(t)) for p, t in masks])
    counted = calibration([("COVID-19", p.astype(float).tolist(), torch.from_numpy(t)) for p, t in masks])
    found = summarise(images, counted)["infection"]["covid"]
    predicted, reference = (np.concatenate([pair[i].ravel() for pair in masks]) for i in (0, 1))
    assert found["iou_pooled"] == pytest.approx(jaccard_score(reference, predicted), abs=1e-6)
    assert found["dice_pooled"] == pytest.approx(f1_score(reference, predicted), abs=1e-6)
    assert found["iou"] == pytest.approx(
        np.mean([jaccard_score(t.ravel(), p.ravel()) for p, t in masks]), abs=1e-6
    )


def test_infected_shares_by_hand() -> None:
    images = pd.DataFrame([row(*case) for case in CASES[:3]])
    images["true_share"], images["predicted_share"] = [0.1, 0.2, 0.3], [0.2, 0.4, 0.6]
    found = summarise(images, calibration(CASES))["infection"]["covid"]
    assert found["share_error"] == pytest.approx(0.2)
    assert found["share_correlation"] == pytest.approx(1.0)
    images["true_share"] = 0.0
    assert "share_correlation" not in summarise(images, calibration(CASES))["infection"]["covid"]


def test_image_set_without_images_is_omitted() -> None:
    normal = ("Normal", [[0.0, 0.0], [0.0, 0.0]], NONE)
    found = summarise(pd.DataFrame([row(*normal)]), calibration([normal]))
    assert list(found["infection"]) == ["controls", "all"]


def test_pixels_outside_the_region_are_ignored() -> None:
    region = torch.tensor([[1, 0], [1, 0]]).bool()
    probability = torch.tensor([[0.8, 0.9], [0.6, 0.9]])
    inside = score_within(region, probability >= 0.5, probability, HALF)
    column = score(probability[:, :1] >= 0.5, probability[:, :1], HALF[:, :1])
    for name in ("tp", "fp", "fn", "tn", "iou", "dice", "precision", "sensitivity", "specificity", "mae"):
        assert inside[name] == pytest.approx(column[name]), name
    nothing = score_within(NONE, probability >= 0.5, probability, HALF)
    assert nothing["iou"] == 1 and nothing["mae"] == 0 and nothing["tn"] == 0


def test_report_states_the_tolerance_of_the_scores() -> None:
    assert NSD_TOLERANCE == TOLERANCE
