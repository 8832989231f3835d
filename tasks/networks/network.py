"""Networks on disk: safetensors weights beside a JSON that is enough to rebuild the network."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from models.networks import NETWORKS
from models.patches import Patchwise
from tasks.networks.device import Compute
from tasks.settings.schema import Plan


def build_network(plan: Plan, compute: Compute) -> nn.Module:
    """A fresh network of the plan on the device; its weights come from torch's global seed."""
    supervision = {"deep_supervision": True} if plan.deep_supervision else {}
    make = partial(NETWORKS[plan.network], width=plan.width, depth=plan.depth, **supervision)
    channels = {"in_channels": 1, "out_channels": len(plan.targets)}
    network = Patchwise(make, patch=plan.patch, **channels) if plan.patch > 1 else make(**channels)
    return network.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def write_description(path: Path, plan: Plan, **facts: Any) -> None:
    """Write the plan and what the training found as JSON."""
    description = {"plan": json.loads(plan.to_json()), **facts}
    path.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def trained_seeds(trained: Path) -> list[int]:
    """The seeds of the networks in `artifacts/train/NAME`, in order."""
    return sorted(int(path.stem) for path in (trained / "networks").glob("*.safetensors"))


def load_network(trained: Path, seed: int, compute: Compute) -> nn.Module:
    """The network of `artifacts/train/NAME` that was trained from a seed, ready to predict on the device."""
    path = trained / "networks" / f"{seed}.safetensors"
    description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    plan = Plan.from_json(json.dumps(description["plan"]))
    network = build_network(plan, compute)
    network.load_state_dict(load_file(path))
    return network.eval()
