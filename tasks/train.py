"""Stage `train`: trains one network according to its plan."""

import argparse
import math
import signal
import sys
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from tasks.common.environment import versions
from tasks.common.files import replacing
from tasks.common.raw import Split
from tasks.networks.device import Compute, is_memory_short, set_up
from tasks.networks.network import build_network, load_start, save_network
from tasks.packed.reader import (
    Fold,
    PackedSplit,
    add_dropped_argument,
    add_folds_argument,
    dropped_ids,
    read_folds,
    require_scores,
)
from tasks.settings.experiments import Plan
from tasks.support.checkpoints import Checkpoint, key_of
from tasks.support.cli import InputError, stage_main
from tasks.support.events import part, report
from tasks.support.slots import own_slot
from tasks.support.symptoms import new_symptoms
from tasks.training.batches import Batches
from tasks.training.fitting import DivergenceError, Fitted, Fitter
from tasks.training.output import opened, write_history
from tasks.training.processes import MEMORY_SHORT, Group, is_member, joined, launch
from tasks.training.validation import VALIDATION_BATCH, validate


def train(
    plan: Plan,
    packed: Path,
    out: Path,
    dropped: Set[str] = frozenset(),
    parts: int = 1,
    folds: Sequence[Fold] = (),
) -> None:
    """Train the plan's network and keep the epoch with the best `plan.selection` on the Val split.

    Reads the Train and Val splits under `packed`, or the plan's fold of `folds`, except the ids in `dropped`.
    Writes under `out` the table `history.csv`, which gets a row after each epoch, and at the end the folder
    `network`, from which the network can be rebuilt. An interrupted training continues from its checkpoint.
    If the loss becomes NaN or infinite, training ends with a warning and the best epoch before that, or with
    the untrained network if there is none.

    Args:
        parts: minimum number of parts in which a batch is computed; doubled while memory is insufficient.

    Raises:
        InputError: a split has no image of the plan's classes, no Test image could be scored, or memory is
            insufficient even for single images.
    """
    with joined(plan.processes) as group:
        data = _read(plan, packed, dropped, group, folds[plan.fold] if folds else None)
        training = fit(plan, data, group, max(parts, plan.accumulate), out)
        if group.first:
            training.checkpoint.remove()


class Splits(NamedTuple):
    """The data of a training."""

    train: Batches
    val: Batches
    digests: tuple[str, ...]


def _read(plan: Plan, packed: Path, dropped: Set[str], group: Group, fold: Fold | None) -> Splits:
    compute = set_up(plan.seed, plan.precision, plan.threads, group.size)
    names: tuple[Split, Split] = ("Train", "Val")
    train_split, val_split = (
        PackedSplit(packed, plan.half, name, plan.targets, plan.train_classes, dropped, fold)
        for name in names
    )
    require_scores(packed, plan.half, plan.targets)
    # For the checkpoint's key, which only the first process computes.
    digests = (train_split.digest(), val_split.digest()) if group.first else ()
    return Splits(Batches(train_split, compute), Batches(val_split, compute), digests)


def fit(plan: Plan, data: Splits, group: Group, parts: int, out: Path) -> "Training":
    """Run one training, with results in `out`; while memory is insufficient, use twice as many parts."""
    while True:
        training = None
        try:
            training = Training(plan, data, group, parts, out)
            training.run()
            return training
        except (RuntimeError, MemoryError) as error:
            if not is_memory_short(error):
                raise
        if group.size > 1:
            sys.exit(MEMORY_SHORT)
        parts = double_parts(plan, training.parts if training else parts)
        # The failed attempt's memory is only released here, after the exception is handled.
        del training
        torch.cuda.empty_cache()


def double_parts(plan: Plan, parts: int) -> int:
    """Double the number of parts.

    Raises:
        InputError: a part is a single image already.
    """
    images = -(-plan.batch_size // (plan.processes * parts))
    at_once = f"{plan.name}: not enough memory for {images} image{'s' if images > 1 else ''} at a time"
    if images == 1:
        raise InputError(f"{at_once}; lower image_size, width or depth")
    print(f"{at_once}; computing each batch in {2 * parts} parts", flush=True)
    return 2 * parts


@dataclass
class Record:
    """The history of a training and its best weights so far."""

    history: list[dict[str, Any]] = field(default_factory=list)
    best_score: float = -1.0
    best_epoch: int = 0
    """0: no epoch has ended, and the weights are the initial ones."""
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    diverged: bool = False
    """Whether the loss became NaN or infinite in the last epoch of the history."""

    def add(self, row: dict[str, Any], network: nn.Module) -> None:
        """Add an epoch; keep its weights if it is the best so far."""
        self.history.append(row)
        if row["val_score"] > self.best_score:
            self.best_score, self.best_epoch = row["val_score"], row["epoch"]
            self.keep(network)

    def keep(self, network: nn.Module) -> None:
        self.best_weights = {k: v.detach().clone() for k, v in network.state_dict().items()}

    def is_stale(self, patience: int) -> bool:
        """Whether the last `patience` epochs brought no improvement; never true for a patience of 0."""
        return 0 < patience <= len(self.history) - self.best_epoch


def _facts(plan: Plan, compute: Compute, data: Splits) -> list[str]:
    """Everything that determines a training except its code: plan, data, versions and kind of device."""
    numbers = (*data.digests, torch.__version__, device_name(compute), compute, torch.get_num_threads())
    return [plan.to_json(), *map(str, numbers)]


def device_name(compute: Compute) -> str:
    """The model of the GPU, or "cpu"."""
    return torch.cuda.get_device_name(compute.device) if compute.device.type == "cuda" else "cpu"


class Training:
    """The epochs of one training, from its checkpoint on. Only the group's first process prints and saves."""

    def __init__(self, plan: Plan, data: Splits, group: Group, parts: int, out: Path) -> None:
        self._plan, self._val, self._group, self._out = plan, data.val, group, out
        self._compute = set_up(plan.seed, plan.precision, plan.threads, group.size)
        network = build_network(plan, self._compute)
        if plan.start_from:
            load_start(network, plan.start_from)
        self._fitter = Fitter(plan, network, self._compute, data.train, group, parts)
        self._stop = Stop()
        self._name = plan.name
        self.record = Record()
        self.record.keep(network)
        key = group.shared(key_of(_facts(plan, self._compute, data)))
        self.checkpoint = Checkpoint(plan.name, key)
        self._facts = {
            "precision": self._compute.precision,
            "device": device_name(self._compute),
            "parameters": sum(p.numel() for p in network.parameters()),
            "train_images": len(data.train),
            "val_images": len(data.val),
        }

    @property
    def parts(self) -> int:
        """Number of parts in which a batch is computed."""
        return self._fitter.parts

    def run(self) -> None:
        """Train to the last epoch, or until `patience` epochs bring no improvement or the loss diverges."""
        self._print_summary()
        with opened(self._out) if self._group.first else nullcontext():
            self._resume()
            with stopping(self._stop, self._group):
                while not self._is_finished():
                    try:
                        self._run_epoch()
                    except DivergenceError as error:
                        self._end_diverged(error)
            if self._group.first:
                self._write()

    def _is_finished(self) -> bool:
        record, plan = self.record, self._plan
        return record.diverged or self._fitter.epoch >= plan.epochs or record.is_stale(plan.patience)

    def _end_diverged(self, error: DivergenceError) -> None:
        """Add the epoch to the history without validation scores."""
        epoch, best = self._fitter.epoch + 1, self.record.best_epoch
        row = {"seed": self._plan.seed, "epoch": epoch, "train_loss": error.train_loss}
        self.record.history.append(row)
        self.record.diverged = True
        kept = f"epoch {best} is kept" if best else "no epoch ended before, so the untrained network is kept"
        self._say(f"warning: {self._name}: {error}; {kept}; lower learning_rate")

    def _write(self) -> None:
        """Write the table of all epochs and the network of the best one. The network is written last."""
        write_history(self._out, self.record.history)
        with replacing(self._out / "network") as partial:
            save_network(
                partial,
                self.record.best_weights,
                self._plan,
                **self._facts,
                parts=self.parts,
                best_epoch=self.record.best_epoch,
                val_score=round(self.record.best_score, 6) if self.record.best_epoch else None,
                diverged=self.record.diverged,
                versions=versions(),
            )

    def _show_history(self) -> None:
        """Write the epochs so far, for people and programs that watch the training."""
        if self._group.first and self.record.history:
            with suppress(OSError):  # such as a full disk, which need not be full at the end
                write_history(self._out, self.record.history)

    def _say(self, text: str) -> None:
        if self._group.first:
            print(text, flush=True)

    def _print_summary(self) -> None:
        facts, size = self._facts, self._group.size
        processes = f", {size} processes" if size > 1 else ""
        self._say(
            f"{self._name}: {self._plan.network} with {facts['parameters']:,} parameters on "
            f"{self._compute.device.type} in {facts['precision']}{processes}, "
            f"{facts['train_images']} Train and {facts['val_images']} Val images"
        )

    def _resume(self) -> None:
        if state := self.checkpoint.load():
            self._fitter.restore(state["fitter"])
            self.record = Record(**state["record"])
            epoch, step = self._fitter.epoch, self._fitter.step
            self._say(f"{self._name}: resuming after epoch {epoch}, step {step} of the next")
            self._show_history()

    def _run_epoch(self) -> None:
        fitter, of_all = self._fitter, self._plan.epochs
        epoch = fitter.epoch + 1
        with part(fitter.epoch, of_all):
            fitted = fitter.run_epoch(f"{self._name} epoch {epoch} of {of_all}", self._between_steps)
        validated = validate(
            fitter.network,
            self._val,
            self._plan,
            fitter.loss,
            self._compute,
            self._group,
            max(1, VALIDATION_BATCH // self.parts),
            self._between_steps,
        )
        if not math.isfinite(validated["val_loss"]):
            message = f"the validation loss became {validated['val_loss']} in epoch {epoch}"
            raise DivergenceError(message, fitted.loss)
        row = {"seed": self._plan.seed, "epoch": epoch, "train_loss": fitted.loss, **validated}
        self.record.add(row | {"learning_rate": fitted.learning_rate}, fitter.network)
        fitter.end_epoch()
        self._show_history()
        self._say(f"{self._name} epoch {epoch}/{of_all}: {_epoch_words(fitted, validated)}")
        if self._group.first:
            report(f"epochs of {self._name}", epoch, of_all, {"train_loss": fitted.loss, **validated})
        for sentence in new_symptoms(pd.DataFrame(self.record.history)):
            self._say(f"warning: {self._name}: {sentence}")
        self._between_steps(epoch_ended=True)

    def _between_steps(self, epoch_ended: bool = False) -> None:
        """Save the state if it is due; exit if a signal asked for it."""
        due = self._group.first and (self._stop.asked or self.checkpoint.due(epoch_ended))
        saved = due and self._save()
        if self._stop.asked:
            then = "continues from here" if saved else "continues from the last checkpoint, or from the start"
            self._say(f"{self._name}: stopped; the same command {then}")
            sys.exit(128 + self._stop.asked)

    def _save(self) -> bool:
        """Save the state unless it contains NaN or infinity; return whether it was saved."""
        state = {"fitter": self._fitter.state(), "record": vars(self.record)}
        return self._fitter.is_sound() and self.checkpoint.save(state)


def _epoch_words(fitted: Fitted, validated: dict[str, float]) -> str:
    share = fitted.waited / fitted.seconds
    waited = f", {share:.0%} of the time waiting for images" if share > 0.05 else ""
    return (
        f"train loss {fitted.loss:.4f}, val loss {validated['val_loss']:.4f}, "
        f"val score {validated['val_score']:.4f}, val Dice {validated['val_dice']:.4f}, "
        f"val IoU {validated['val_iou']:.4f}, {fitted.images / fitted.seconds:.1f} images/s{waited}"
    )


class Stop:
    """The signal that asked this process to exit, or 0."""

    asked = 0


@contextmanager
def stopping(stop: Stop, group: Group) -> Iterator[None]:
    """Make SIGTERM and Ctrl-C only set `stop`; the first process then exits by itself and ends the others."""

    def ask(number: int, _: object) -> None:
        if group.first:
            stop.asked = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path, help="artifacts/plans/TRAINING.json")
    parser.add_argument("packed", type=Path, help="data/packed/SIZE or data/lungs/EXPERIMENT")
    parser.add_argument("out", type=Path, help="folder to create")
    parser.add_argument("--parts", type=int, default=1, help="minimum number of parts per batch")
    add_dropped_argument(parser)
    add_folds_argument(parser)
    args = parser.parse_args()
    plan = Plan.from_json(args.plan.read_text(encoding="utf-8"))
    with own_slot(args.out.name, plan):
        if plan.processes == 1 or is_member():
            train(plan, args.packed, args.out, dropped_ids(args.dropped), args.parts, read_folds(args.folds))
        else:
            _launch_in_memory(plan, args.parts)


def _launch_in_memory(plan: Plan, parts: int) -> None:
    """Run this command in the plan's processes; like `fit`, double the parts while memory is insufficient."""
    parts = max(parts, plan.accumulate)
    while True:
        try:
            return launch(plan.processes, "-m", "tasks.train", *sys.argv[1:], "--parts", str(parts))
        except torch.OutOfMemoryError:
            parts = double_parts(plan, parts)


if __name__ == "__main__":
    stage_main(main)
