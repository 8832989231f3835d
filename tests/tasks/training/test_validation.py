from pathlib import Path

import pytest
import torch
from torch import nn

from models.losses import make_loss
from tasks.networks.device import set_up
from tasks.packed.reader import PackedSplit
from tasks.settings.params import Params
from tasks.training.batches import Batches
from tasks.training.validation import validate


def test_scores_of_a_network_that_predicts_exactly_the_lungs(tiny_params: Params, tiny_packed: Path) -> None:
    """A third of the images have infection."""
    classes = ("COVID-19", "Non-COVID", "Normal")
    both = {"targets": ("infection", "lung"), "train_classes": classes}
    plan = tiny_params.plans["report1_bce_iou-seed0"].model_copy(update=both)

    class Lungs(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            lungs = (split.masks()[:, 1] >= 127.5) * 18.0 - 9
            return torch.stack([torch.full_like(lungs, -9.0), lungs], dim=1)

    split = PackedSplit(tiny_packed, plan.half, "Val", plan.targets, plan.train_classes)
    assert len(split) <= 32  # one batch
    compute = set_up(0, "fp32", 1)
    scores = validate(Lungs(), Batches(split, compute), plan, make_loss("bce"), compute)
    controls = (split.table["class"] != "COVID-19").mean()
    assert 0 < controls < 1
    assert scores["val_dice_lung"] == scores["val_iou_lung"] == 1
    assert scores["val_dice_infection"] == pytest.approx(controls)
    assert scores["val_dice"] == pytest.approx((1 + controls) / 2)
    assert scores["val_lesions_infection"] == 0
    assert scores["val_unmarked_infection"] == 1
    assert scores["val_score_infection"] == 0.5
    for selection, infection in (("all", controls), ("lesions", 0.0)):
        by = plan.model_copy(update={"selection": selection})
        scores = validate(Lungs(), Batches(split, compute), by, make_loss("bce"), compute)
        assert scores["val_score_infection"] == pytest.approx(infection)
        assert scores["val_score"] == pytest.approx((1 + infection) / 2)
    assert scores["val_marked_infection"] == 0
    assert scores["val_marked_lung"] == pytest.approx((split.masks()[:, 1] >= 127.5).double().mean().item())
