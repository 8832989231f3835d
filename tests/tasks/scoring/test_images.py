import numpy as np
import pytest
import torch

from tasks.reporting.score_tables import NSD_TOLERANCE
from tasks.scoring.images import TOLERANCE, Calibration, score

HALF = torch.tensor([[1, 1], [0, 0]]).bool()
NONE = torch.zeros(2, 2).bool()


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
        "average_precision": pytest.approx((1 / 2 + 2 / 3) / 2),
        "mean_probability": pytest.approx((0.5 + 0.4 + 0.9) / 4),
    }


CASES = [
    ("COVID-19", [[1.0, 1.0], [0.0, 0.0]], HALF),  # exact: 1
    ("COVID-19", [[1.0, 0.0], [0.0, 0.0]], HALF),  # IoU 1/2, Dice 2/3
    ("COVID-19", [[0.0, 0.0], [0.0, 0.0]], HALF),  # missed: 0
    ("Normal", [[0.0, 0.0], [0.0, 0.0]], NONE),  # both empty: 1
    ("Non-COVID", [[0.0, 0.0], [0.0, 1.0]], NONE),  # a false alarm: 0
]


def test_calibration_by_hand() -> None:
    """Of 20 pixels, 16 have probability 0 (3 in the reference mask) and 4 have probability 1 (3 in it)."""
    table = calibration(CASES).table().set_index(["image_set", "bin"])
    assert list(table.loc["all"]["pixels"]) == [16, 4]
    assert list(table.loc["all"]["true_share"]) == [3 / 16, 3 / 4]


def test_report_states_the_tolerance_of_the_scores() -> None:
    assert NSD_TOLERANCE == TOLERANCE


def test_scores_that_need_a_reference_do_not_exist_on_an_empty_one() -> None:
    for probability in (torch.zeros(2, 2), torch.tensor([[0.0, 0.9], [0.0, 0.0]])):
        found = score(probability >= 0.5, probability, NONE)
        for name in ("precision", "sensitivity", "average_precision", "hd95", "nsd"):
            assert np.isnan(found[name]), name
    missed = score(NONE, torch.zeros(2, 2), HALF)
    assert missed["sensitivity"] == missed["precision"] == missed["nsd"] == 0
    assert np.isnan(missed["hd95"])
