"""Networks on disk: safetensors weights beside a JSON that is enough to rebuild the network."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from models.networks import NETWORKS
from tasks.compute import Compute
from tasks.params import Plan


def build_network(plan: Plan, compute: Compute) -> nn.Module:
    """A fresh network of the plan on the device; its weights come from torch's global seed."""
    network = NETWORKS[plan.network](
        in_channels=1, out_channels=len(plan.targets), width=plan.width, depth=plan.depth
    )
    return network.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def write_description(path: Path, plan: Plan, **facts: Any) -> None:
    """Write the plan and what the training found as JSON."""
    description = {"plan": json.loads(plan.to_json()), **facts}
    path.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load_network(folder: Path, compute: Compute) -> nn.Module:
    """The trained network of `folder`, ready to predict on the device."""
    description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    plan = Plan.from_json(json.dumps(description["plan"]))
    network = build_network(plan, compute)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network.eval()
