"""Steps of trainings in tests: altered plans, epochs and scores without files."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.losses import make_loss
from tasks.networks.device import set_up
from tasks.networks.network import build_network
from tasks.packed.reader import PackedSplit
from tasks.settings.experiments import Plan
from tasks.training.batches import Batches
from tasks.training.fitting import Fitted, Fitter
from tasks.training.validation import validate


def altered(plan: Plan, augment: dict[str, float] | None = None, **values: Any) -> Plan:
    return plan.model_copy(update={"augment": plan.augment.model_copy(update=augment or {}), **values})


def make_fitter(plan: Plan, packed: Path, seed: int = 0) -> Fitter:
    compute = set_up(seed, "fp32", 1)
    split = PackedSplit(packed, plan.half, "Train", plan.targets, plan.train_classes)
    return Fitter(plan, build_network(plan, compute), compute, Batches(split, compute))


def run_epoch(fitter: Fitter) -> Fitted:
    fitted = fitter.run_epoch("test")
    fitter.end_epoch()
    return fitted


def score(network: nn.Module, plan: Plan, packed: Path) -> dict[str, float]:
    split = PackedSplit(packed, plan.half, "Val", plan.targets, plan.train_classes)
    loss = make_loss(plan.loss, **plan.loss_options)
    compute = set_up(99, "fp32", 1)
    return validate(network, Batches(split, compute), plan, loss, compute)


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
