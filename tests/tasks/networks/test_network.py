import json
from pathlib import Path

import pytest
import torch

from models.networks import NETWORKS
from tasks.networks.device import Compute, set_up
from tasks.networks.network import build_network, load_network, save_network
from tasks.settings.experiments import Plan
from tasks.settings.params import Params
from tests.trainings import altered


@pytest.fixture
def plan(tiny_params: Params) -> Plan:
    return tiny_params.plans["report1_bce_iou-seed0"]


def test_plan_of_an_earlier_version_is_read(plan: Plan, tmp_path: Path) -> None:
    compute = set_up(0, "fp32", 1)
    network = build_network(plan, compute)
    save_network(tmp_path / "network", network.state_dict(), plan)
    path = tmp_path / "network" / "network.json"
    description = json.loads(path.read_text())
    assert description["plan"].pop("selection") == "balanced"
    path.write_text(json.dumps(description))
    load_network(tmp_path / "network", compute)
    assert Plan.model_validate_json(json.dumps(description["plan"])).selection == "all"


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_saved_and_loaded(plan: Plan, tmp_path: Path, name: str, patch: int) -> None:
    plan = altered(plan, network=name, patch=patch, deep_supervision=name == "unet_plus_plus")
    compute: Compute = set_up(0, "fp32", 1)
    network, images = build_network(plan, compute), torch.rand(2, 1, 32, 32)
    network(images)  # also updates the statistics of batch normalisation
    save_network(tmp_path / "network", network.state_dict(), plan)
    set_up(1, "fp32", 1)
    assert torch.equal(load_network(tmp_path / "network", compute)(images), network.eval()(images))
