"""Stage `train`: fit one network as its plan says."""

import argparse
import copy
import math
import time
from collections.abc import Sequence, Set
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from models.augmentation import Augmentation, Strength
from models.losses import Loss, make_loss
from models.metrics import confusion, dice, iou
from tasks.cli import InputError, stage_main
from tasks.compute import Compute, set_up
from tasks.files import replacing, write_table
from tasks.network import build_network, write_description
from tasks.packed import PackedSplit, add_dropped_argument, dropped_ids, scaled
from tasks.params import Plan
from tasks.progress import progress

#: Images a forward pass takes in validation, where no gradient fills the memory.
VALIDATION_BATCH = 32


def train(plan: Plan, packed: Path, out: Path, left_out: Set[str] = frozenset()) -> None:
    """Fit the plan's network once a seed, and keep of each the epoch with the best validation Dice.

    Reads the Train and Val splits under `packed`, but for the ids that are `left_out`. Writes under `out`,
    for each seed, `networks/SEED.safetensors` and `networks/SEED.json`, enough to rebuild the network;
    `history.csv`, one row a seed and epoch.

    Raises:
        InputError: a split holds no image of the plan's classes, or the loss stopped being a number.
    """
    train_split = PackedSplit(packed, plan.half, "Train", plan.targets, plan.train_classes, left_out)
    val_split = PackedSplit(packed, plan.half, "Val", plan.targets, plan.train_classes, left_out)
    with replacing(out) as partial:
        (partial / "networks").mkdir(parents=True)
        histories = [
            fit(plan, seed, train_split, val_split, partial / "networks")
            for seed in range(plan.seed, plan.seed + plan.seeds)
        ]
        write_table(pd.concat(histories), partial / "history.csv")


def fit(plan: Plan, seed: int, train_split: PackedSplit, val_split: PackedSplit, out: Path) -> pd.DataFrame:
    """One training: writes `SEED.safetensors` and `SEED.json` under `out`, and returns a row an epoch."""
    compute = set_up(seed, plan.precision, plan.threads)
    network = build_network(plan, compute)
    fitter = Fitter(plan, seed, network, compute, train_split)
    parameters = sum(p.numel() for p in network.parameters())
    name = plan.name if plan.seeds == 1 else f"{plan.name} seed {seed - plan.seed + 1} of {plan.seeds}"
    print(
        f"{name}: {plan.network} of {parameters:,} parameters on {compute.device.type} in "
        f"{compute.precision}, {len(train_split)} Train and {len(val_split)} Val images",
        flush=True,
    )

    history: list[dict[str, Any]] = []
    best_dice, best_weights = -1.0, {}
    for epoch in range(1, plan.epochs + 1):
        fitted = fitter.run_epoch(f"{name} epoch {epoch} of {plan.epochs}")
        if not math.isfinite(fitted.loss):
            fault = f"the loss became {fitted.loss} in epoch {epoch}; lower learning_rate"
            raise InputError(f"{name}: {fault}")
        validated = validate(fitter.network, val_split, plan.targets, fitter.loss, compute)
        row = {"seed": seed, "epoch": epoch, "train_loss": fitted.loss, **validated}
        row |= {"learning_rate": fitted.learning_rate, "images_per_second": fitted.images_per_second}
        history.append(row)
        print(
            f"{name} epoch {epoch}/{plan.epochs}: train loss {fitted.loss:.4f}, "
            f"val loss {validated['val_loss']:.4f}, val Dice {validated['val_dice']:.4f}, "
            f"val IoU {validated['val_iou']:.4f}, {fitted.images_per_second:.1f} images/s",
            flush=True,
        )
        if validated["val_dice"] > best_dice:
            best_dice, best_epoch = validated["val_dice"], epoch
            best_weights = {k: v.detach().clone() for k, v in fitter.network.state_dict().items()}

    weights = safetensors.torch.save({k: v.contiguous().cpu() for k, v in best_weights.items()})
    (out / f"{seed}.safetensors").write_bytes(weights)
    write_description(
        out / f"{seed}.json",
        plan,
        seed=seed,
        precision=compute.precision,
        parameters=parameters,
        train_images=len(train_split),
        val_images=len(val_split),
        best_epoch=best_epoch,
        val_dice=round(best_dice, 6),
        torch=torch.__version__,
    )
    return pd.DataFrame(history)


class Fitted(NamedTuple):
    """One pass over the training images: mean loss, the learning rate it began with, its speed."""

    loss: float
    learning_rate: float
    images_per_second: float


class Fitter:
    """Network, data, loss, optimiser and schedule of one training; the split lives on the device."""

    def __init__(
        self, plan: Plan, seed: int, network: nn.Module, compute: Compute, split: PackedSplit
    ) -> None:
        self._fitted, self._compute = network, compute
        self._images, self._masks = split.images().to(compute.device), split.masks().to(compute.device)
        self._batch_size = plan.batch_size
        self._steps = math.ceil(len(split) / plan.batch_size)
        self._optimiser = make_optimiser(plan, network)
        self._scheduler = make_schedule(plan, self._optimiser, self._steps * plan.epochs)
        self._generator = torch.Generator().manual_seed(seed)
        self._augment = Augmentation(Strength(**plan.augment.model_dump()), seed, compute.device)
        self._average = Average(network, plan.ema) if plan.ema else None
        self.loss = make_loss(plan.loss, **plan.loss_options)

    @property
    def network(self) -> nn.Module:
        """What the training has come to: the fitted network, or the average of its weights."""
        return self._average.network if self._average else self._fitted

    def run_epoch(self, what: str) -> Fitted:
        """Pass once over the training images in a new random order; `what` names it to the user."""
        started = time.perf_counter()
        learning_rate = self._optimiser.param_groups[0]["lr"]
        total = torch.zeros((), device=self._compute.device)
        count = len(self._images)
        self._fitted.train()
        order = torch.randperm(count, generator=self._generator)
        for batch in progress(torch.split(order, self._batch_size), self._steps, what):
            x, y = self._load(batch)
            with self._compute.autocast():
                logits = self._fitted(x)
            loss = self._loss_of(logits, y)
            self._optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
            self._scheduler.step()
            if self._average:
                self._average.update(self._fitted)
            total += loss.detach() * len(batch)  # summed on the device: reading it each step would stall
        mean_loss = total.item() / count
        return Fitted(mean_loss, learning_rate, round(count / (time.perf_counter() - started), 1))

    def _loss_of(self, logits: Tensor | tuple[Tensor, ...], y: Tensor) -> Tensor:
        """The loss; its mean where a network under deep supervision gives several logits."""
        outputs = logits if isinstance(logits, tuple) else (logits,)
        return torch.stack([self.loss(output, y) for output in outputs]).mean()

    def _load(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, 1, S, S) in [0, 1] and masks (n, C, S, S) of the batch's indices, changed at random."""
        on_device = batch.to(self._compute.device)
        x, y = self._augment(scaled(self._images[on_device]), scaled(self._masks[on_device]))
        return self._compute.place(x), self._compute.place(y)


class Average:
    """A copy of a network whose weights are the exponential moving average of the network's.

    The first steps, whose weights are no better than random, are forgotten faster.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay, self._steps = decay, 0
        self.network = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        for own, new in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if own.is_floating_point():
                own.lerp_(new, 1 - decay)
            else:  # the number of batches that a normalisation has seen
                own.copy_(new)


@torch.no_grad()
def validate(
    network: nn.Module, split: PackedSplit, targets: Sequence[str], loss: Loss, compute: Compute
) -> dict[str, float]:
    """Means over the Val images at the network's size; Dice and IoU per image at probability 0.5.

    Where the network has several targets, `val_dice` and `val_iou` are the means over them, and each has its
    own beside.
    """
    network.eval()
    sums = torch.zeros(1 + 2 * len(targets), dtype=torch.float64, device=compute.device)
    for start in range(0, len(split), VALIDATION_BATCH):
        rows = slice(start, start + VALIDATION_BATCH)
        x, y = compute.place(scaled(split.images(rows))), compute.place(scaled(split.masks(rows)))
        with compute.autocast():
            logits = network(x)
        counts = confusion(logits > 0, y >= 0.5)
        of_targets = torch.cat([dice(counts).mean(dim=0), iou(counts).mean(dim=0)])
        sums += torch.cat([loss(logits, y).double().reshape(1), of_targets]) * len(x)
    mean_loss, *scores = (sums / len(split)).tolist()
    of_dice, of_iou = scores[: len(targets)], scores[len(targets) :]
    means = {"val_loss": mean_loss, "val_dice": fmean(of_dice), "val_iou": fmean(of_iou)}
    if len(targets) > 1:
        means |= {f"val_dice_{target}": value for target, value in zip(targets, of_dice, strict=True)}
        means |= {f"val_iou_{target}": value for target, value in zip(targets, of_iou, strict=True)}
    return means


def make_optimiser(plan: Plan, network: nn.Module) -> torch.optim.Optimizer:
    make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[plan.optimiser]
    optimiser: torch.optim.Optimizer = make(
        network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=True
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
    add_dropped_argument(parser)
    args = parser.parse_args()
    plan = Plan.from_json(args.plan.read_text(encoding="utf-8"))
    train(plan, args.packed, args.out, dropped_ids(args.dropped))


if __name__ == "__main__":
    stage_main(main)
