from pathlib import Path

import pytest
import torch
from torch import nn

from tasks.common.raw import RawDataset
from tasks.inference.predict import Case
from tasks.networks.device import set_up
from tasks.packed.reader import PackedSplit
from tasks.settings.params import Params
from tasks.settings.training import Target

COMPUTE = set_up(0, "fp32", 1)


class Darkness(nn.Module):
    """Predicts infection on dark pixels, with higher probability on the left."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ramp = torch.linspace(1, -1, x.shape[-1])
        return (4 * (0.5 - x) + ramp).repeat(1, 2, 1, 1)


@pytest.fixture
def val(tiny_params: Params, tiny_packed: Path) -> PackedSplit:
    return PackedSplit(tiny_packed, "infection", "Val", ("infection", "lung"))


@pytest.fixture
def raw(tiny_packed: Path) -> RawDataset:
    return RawDataset(tiny_packed.parent / "raw")


def case() -> Case:
    """A lung, an infection with a hole that extends beyond the lung, and a speck."""
    lung, infection = torch.zeros(20, 20), torch.zeros(20, 20)
    lung[2:18, 2:10] = 0.9
    infection[4:12, 4:12] = 0.8
    infection[7, 6] = 0.1
    infection[16, 5] = 0.6
    probabilities: dict[Target, torch.Tensor] = {"infection": infection, "lung": lung}
    return Case("id", "COVID-19", probabilities, probabilities, {}, None)
