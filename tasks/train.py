"""Stage `train`: fit one network as its plan says."""

import argparse
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from models.losses import Loss, make_loss
from models.metrics import confusion, dice, iou
from tasks.cli import InputError, stage_main
from tasks.compute import Compute, set_up
from tasks.files import replacing, write_table
from tasks.network import build_network, write_description
from tasks.packed import PackedSplit, scaled
from tasks.params import Plan
from tasks.progress import progress

#: Images a forward pass takes in validation, where no gradient fills the memory.
VALIDATION_BATCH = 32


def train(plan: Plan, packed: Path, out: Path) -> None:
    """Fit one network and keep the epoch with the best validation Dice.

    Reads the Train and Val splits under `packed`. Writes under `out`: `model.safetensors` and
    `model.json`, enough to rebuild the network; `history.csv`, one row an epoch.

    Raises:
        InputError: a split holds no image of the plan's classes, or the loss stopped being a number.
    """
    compute = set_up(plan.seed, plan.precision, plan.threads)
    train_split = PackedSplit(packed, plan.half, "Train", plan.targets, plan.train_classes)
    val_split = PackedSplit(packed, plan.half, "Val", plan.targets, plan.train_classes)
    network = build_network(plan, compute)
    fitter = Fitter(plan, network, compute, train_split)
    parameters = sum(p.numel() for p in network.parameters())
    print(
        f"{plan.name}: {plan.network} of {parameters:,} parameters on {compute.device.type} in "
        f"{compute.precision}, {len(train_split)} Train and {len(val_split)} Val images",
        flush=True,
    )

    history: list[dict[str, Any]] = []
    best_dice, best_weights = -1.0, {}
    for epoch in range(1, plan.epochs + 1):
        fitted = fitter.run_epoch(f"{plan.name} epoch {epoch} of {plan.epochs}")
        if not math.isfinite(fitted.loss):
            fault = f"the loss became {fitted.loss} in epoch {epoch}; lower learning_rate"
            raise InputError(f"{plan.name}: {fault}")
        validated = validate(network, val_split, fitter.loss, compute)
        row = {"epoch": epoch, "train_loss": fitted.loss, **validated._asdict()}
        row |= {"learning_rate": fitted.learning_rate, "images_per_second": fitted.images_per_second}
        history.append(row)
        print(
            f"{plan.name} epoch {epoch}/{plan.epochs}: train loss {fitted.loss:.4f}, "
            f"val loss {validated.val_loss:.4f}, val Dice {validated.val_dice:.4f}, "
            f"val IoU {validated.val_iou:.4f}, {fitted.images_per_second:.1f} images/s",
            flush=True,
        )
        if validated.val_dice > best_dice:
            best_dice, best_epoch = validated.val_dice, epoch
            best_weights = {k: v.detach().clone() for k, v in network.state_dict().items()}

    with replacing(out) as partial:
        partial.mkdir()
        weights = safetensors.torch.save({k: v.contiguous().cpu() for k, v in best_weights.items()})
        (partial / "model.safetensors").write_bytes(weights)
        table = pd.DataFrame(history)
        write_table(table, partial / "history.csv")
        write_description(
            partial / "model.json",
            plan,
            precision=compute.precision,
            parameters=parameters,
            train_images=len(train_split),
            val_images=len(val_split),
            best_epoch=best_epoch,
            val_dice=round(best_dice, 6),
            torch=torch.__version__,
        )


class Fitted(NamedTuple):
    """One pass over the training images: mean loss, the learning rate it began with, its speed."""

    loss: float
    learning_rate: float
    images_per_second: float


class Fitter:
    """Network, data, loss, optimiser and schedule of one training; the split lives on the device."""

    def __init__(self, plan: Plan, network: nn.Module, compute: Compute, split: PackedSplit) -> None:
        self._network, self._compute = network, compute
        self._images, self._masks = split.images().to(compute.device), split.masks().to(compute.device)
        self._batch_size, self._flip = plan.batch_size, plan.flip
        self._steps = math.ceil(len(split) / plan.batch_size)
        self._optimiser = make_optimiser(plan, network)
        self._scheduler = make_schedule(plan, self._optimiser, self._steps * plan.epochs)
        self._generator = torch.Generator().manual_seed(plan.seed)
        self.loss = make_loss(plan.loss, plan.alpha)

    def run_epoch(self, what: str) -> Fitted:
        """Pass once over the training images in a new random order; `what` names it to the user."""
        started = time.perf_counter()
        learning_rate = self._optimiser.param_groups[0]["lr"]
        total = torch.zeros((), device=self._compute.device)
        count = len(self._images)
        self._network.train()
        order = torch.randperm(count, generator=self._generator)
        for batch in progress(torch.split(order, self._batch_size), self._steps, what):
            x, y = self._load(batch)
            with self._compute.autocast():
                logits = self._network(x)
            loss = self.loss(logits, y)
            self._optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
            self._scheduler.step()
            total += loss.detach() * len(batch)  # summed on the device: reading it each step would stall
        mean_loss = total.item() / count
        return Fitted(mean_loss, learning_rate, round(count / (time.perf_counter() - started), 1))

    def _load(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, 1, S, S) in [0, 1] and masks (n, C, S, S) of the batch's indices, some mirrored."""
        on_device = batch.to(self._compute.device)
        x, y = scaled(self._images[on_device]), self._masks[on_device]
        if self._flip:
            mirrored = (torch.rand(len(batch), generator=self._generator) < 0.5).to(self._compute.device)
            mirrored = mirrored[:, None, None, None]
            x, y = torch.where(mirrored, x.flip(-1), x), torch.where(mirrored, y.flip(-1), y)
        return self._compute.place(x), self._compute.place(y)


class Validated(NamedTuple):
    """Means over the Val images at the network's size; Dice and IoU per image at probability 0.5."""

    val_loss: float
    val_dice: float
    val_iou: float


@torch.no_grad()
def validate(network: nn.Module, split: PackedSplit, loss: Loss, compute: Compute) -> Validated:
    """Score the network on a split; where it has several targets, the mean over them."""
    network.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=compute.device)
    for start in range(0, len(split), VALIDATION_BATCH):
        rows = slice(start, start + VALIDATION_BATCH)
        x, y = compute.place(scaled(split.images(rows))), compute.place(split.masks(rows))
        with compute.autocast():
            logits = network(x)
        counts = confusion(logits > 0, y > 0)
        scores = [loss(logits, y), dice(counts).mean(), iou(counts).mean()]
        sums += torch.stack([score.double() for score in scores]) * len(x)
    return Validated(*(sums / len(split)).tolist())


def make_optimiser(plan: Plan, network: nn.Module) -> torch.optim.Optimizer:
    make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[plan.optimiser]
    optimiser: torch.optim.Optimizer = make(
        network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay
    )
    return optimiser


def make_schedule(plan: Plan, optimiser: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """The learning rate of each of `steps` steps; `learning_rate` is its highest value.

    one_cycle rises for three tenths of the steps and falls to nought, Adam's beta1 the other way, from
    0.95 to 0.85 and back (Smith and Topin 2018, arXiv 1708.07120).
    """
    match plan.schedule:
        case "constant":
            return torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)
        case "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        case "one_cycle":
            return torch.optim.lr_scheduler.OneCycleLR(optimiser, plan.learning_rate, total_steps=steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path, help="artifacts/plans/NAME.json")
    parser.add_argument("packed", type=Path, help="data/packed")
    parser.add_argument("out", type=Path, help="the folder to make")
    args = parser.parse_args()
    train(Plan.from_json(args.plan.read_text(encoding="utf-8")), args.packed, args.out)


if __name__ == "__main__":
    stage_main(main)
