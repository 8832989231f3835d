"""Saves and loads networks: weights as safetensors, and a JSON file from which the network can be rebuilt."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from models.networks import NETWORKS
from models.patches import Patchwise
from tasks.common.weights import read_weights
from tasks.networks.device import Compute
from tasks.settings.experiments import Plan
from tasks.settings.training import StartFrom
from tasks.support.cli import InputError

#: Files in a network's folder.
WEIGHTS, DESCRIPTION = "weights.safetensors", "network.json"


def build_network(plan: Plan, compute: Compute) -> nn.Module:
    """Build the plan's network on the device; torch's global seed determines its weights."""
    supervision = {"deep_supervision": True} if plan.deep_supervision else {}
    make = partial(NETWORKS[plan.network], width=plan.width, depth=plan.depth, **supervision)
    channels = {"in_channels": 1, "out_channels": len(plan.targets)}
    network = Patchwise(make, patch=plan.patch, **channels) if plan.patch > 1 else make(**channels)
    return network.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def load_start(network: nn.Module, start: StartFrom) -> None:
    """Give a network the weights of another one, which must have the same shape.

    Raises:
        InputError: the file does not exist, is another one, is not a safetensors file, or does not fit.
    """
    content = read_weights(start.weights, start.sha256)
    try:
        weights = load(content)
    except SafetensorError as error:
        raise InputError(f"start_from.weights: {start.weights}: not a safetensors file: {error}") from None
    own = network.state_dict()
    for name in (*own, *weights):
        found, needed = (_shape(of.get(name)) for of in (weights, own))
        if found != needed:
            raise InputError(
                f"start_from.weights: {start.weights}: {name} is {found}, but this network has {needed}; "
                "network, width, depth, patch, deep_supervision and targets must be those of the weights"
            )
    network.load_state_dict(weights)


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else "x".join(map(str, tensor.shape)) or "a number"


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
