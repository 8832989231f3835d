"""Saves and loads networks: weights as safetensors, and a JSON file from which the network can be rebuilt."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from models.networks import NETWORKS
from models.patches import Patchwise
from tasks.networks.device import Compute
from tasks.settings.schema import Plan

#: Files in a network's folder.
WEIGHTS, DESCRIPTION = "weights.safetensors", "network.json"


def build_network(plan: Plan, compute: Compute) -> nn.Module:
    """Build the plan's network on the device; torch's global seed determines its weights."""
    supervision = {"deep_supervision": True} if plan.deep_supervision else {}
    make = partial(NETWORKS[plan.network], width=plan.width, depth=plan.depth, **supervision)
    channels = {"in_channels": 1, "out_channels": len(plan.targets)}
    network = Patchwise(make, patch=plan.patch, **channels) if plan.patch > 1 else make(**channels)
    return network.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def save_network(folder: Path, weights: Mapping[str, Tensor], plan: Plan, **facts: Any) -> None:
    """Create the folder with the weights, and a JSON file with the plan and the given facts."""
    folder.mkdir(parents=True)
    on_cpu = {name: tensor.contiguous().cpu() for name, tensor in weights.items()}
    (folder / WEIGHTS).write_bytes(save(on_cpu))
    description = {"plan": json.loads(plan.to_json()), **facts}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load_network(folder: Path, compute: Compute) -> nn.Module:
    """Load a network that `save_network` wrote, in evaluation mode on the device."""
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    plan = Plan.from_json(json.dumps(description["plan"]))
    network = build_network(plan, compute)
    network.load_state_dict(load_file(folder / WEIGHTS))
    return network.eval()
