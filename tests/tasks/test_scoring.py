from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tasks.evaluate import resized
from tasks.raw import encode_mask
from tasks.scoring import Prediction, score, summarise

HALF = torch.tensor([[1, 1], [0, 0]]).bool()
NONE = torch.zeros(2, 2).bool()


def row(image_class: str, probability: list[list[float]], truth: torch.Tensor) -> dict[str, object]:
    return score(Prediction("infection", "id", image_class, torch.tensor(probability), truth), threshold=0.5)


def test_a_row_by_hand() -> None:
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
        "mae": pytest.approx((0.5 + 0.6 + 0.9 + 0.0) / 4),
    }


def test_image_sets_by_hand() -> None:
    images = pd.DataFrame(
        [
            row("COVID-19", [[1, 1], [0, 0]], HALF),  # exact: 1
            row("COVID-19", [[1, 0], [0, 0]], HALF),  # IoU 1/2, Dice 2/3
            row("Normal", [[0, 0], [0, 0]], NONE),  # both empty: 1
            row("Non-COVID", [[0, 0], [0, 1]], NONE),  # a false alarm: 0
        ]
    )
    assert summarise(images) == {
        "infection": {
            "covid": {
                "images": 2,
                "iou": 0.75,
                "dice": round((1 + 2 / 3) / 2, 6),
                "iou_pooled": 0.75,
                "dice_pooled": round(6 / 7, 6),
                "mae": 0.125,
                "mae_255": 31.875,
            },
            "all": {
                "images": 4,
                "iou": 0.625,
                "dice": round((2 + 2 / 3) / 4, 6),
                "iou_pooled": 0.6,
                "dice_pooled": 0.75,
                "mae": 0.125,
                "mae_255": 31.875,
            },
        }
    }


def test_a_set_without_images_is_left_out() -> None:
    assert list(summarise(pd.DataFrame([row("Normal", [[0, 0], [0, 0]], NONE)]))["infection"]) == ["all"]


def test_probabilities_are_resized_to_the_mask_and_kept_where_they_fit() -> None:
    probability = torch.rand(8, 8)
    assert resized(probability, torch.Size([8, 8])) is probability
    larger = resized(probability, torch.Size([20, 12]))
    assert larger.shape == (20, 12)
    assert larger.min() >= probability.min()
    assert larger.max() <= probability.max()
    assert resized(torch.full((4, 4), 0.3), torch.Size([9, 9])).allclose(torch.tensor(0.3))


def test_masks_survive_their_png(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((13, 7)) > 0.5
    (tmp_path / "m.png").write_bytes(encode_mask(mask))
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "1"
        np.testing.assert_array_equal(np.asarray(image), mask)
