"""The training loop's state and steps. A training restored from its state ends with identical results."""

import copy
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from inspect import unwrap
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from models.augmentation import Augmentation, Strength
from models.losses import make_loss
from tasks.networks.device import Compute, compiled
from tasks.settings.experiments import Plan
from tasks.support.progress import progress
from tasks.training.batches import Batches
from tasks.training.processes import ALONE, Group


class DivergenceError(Exception):
    """The training or validation loss became NaN or infinite."""

    def __init__(self, message: str, train_loss: float = math.nan) -> None:
        super().__init__(message)
        self.train_loss = train_loss
        """Mean training loss of the epoch; NaN if that is what diverged."""


class Fitted(NamedTuple):
    """One pass over the training images: mean loss, initial learning rate, number of images and seconds."""

    loss: float
    learning_rate: float
    images: int
    seconds: float
    waited: float
    """How many of these seconds were spent waiting for images."""


class Fitter:
    """Network, data, loss, optimiser and schedule of one training.

    `parts` is the number of parts in which a batch is computed, one after another, adding up gradients.
    """

    def __init__(
        self,
        plan: Plan,
        network: nn.Module,
        compute: Compute,
        batches: Batches,
        group: Group = ALONE,
        parts: int = 1,
    ) -> None:
        self._compute, self._batches, self._group = compute, batches, group
        self.parts = parts
        self._batch_size = plan.batch_size
        self.steps = math.ceil(len(batches) / plan.batch_size)
        self._fitted = group.synchronised(network)
        self._optimiser = make_optimiser(plan, self._fitted)
        self._scheduler = make_schedule(plan, self._optimiser, self.steps * plan.epochs)
        self._generator = torch.Generator().manual_seed(plan.seed)
        self._augment = Augmentation(Strength(**plan.augment.model_dump()), plan.seed, compute.device)
        self._average = Average(self._fitted, plan.ema) if plan.ema else None
        self._wrapped = group.wrapped(self._fitted)
        self._compile, self._images_seen = plan.compile, len(batches) * plan.epochs
        self.loss = make_loss(plan.loss, **plan.loss_options)
        self.epoch, self.step = 0, 0
        """Completed epochs, and completed steps of the next epoch."""
        self._order = torch.empty(0, dtype=torch.int64)
        self._learning_rate = plan.learning_rate
        self._losses = torch.zeros(self.steps, device=compute.device)

    @property
    def network(self) -> nn.Module:
        """The network to validate and save: the trained one, or the average of its weights."""
        return self._average.network if self._average else self._fitted

    @cached_property
    def _forward(self) -> nn.Module:
        # The CUDA graph of the next part would reuse the memory of this part's gradients.
        how = "fused" if self._compile == "graphs" and self.parts > 1 else self._compile
        return compiled(self._wrapped, how, self._compute, self._images_seen)

    def run_epoch(self, what: str, after_step: Callable[[], None] = lambda: None) -> Fitted:
        """Pass once over the training images in a new random order, or finish a pass that was interrupted.

        Args:
            what: name of the epoch in the progress display.
            after_step: called after each step, when `state` includes that step.

        Raises:
            DivergenceError: the loss became NaN or infinite.
        """
        started, waited, done = time.perf_counter(), self._batches.waited, self.step
        if not self.step:
            self._learning_rate = self._optimiser.param_groups[0]["lr"]
            self._order = torch.randperm(len(self._batches), generator=self._generator)
            self._losses.zero_()
        self._fitted.train()
        left = torch.split(self._order, self._batch_size)[done:]
        loaded = self._batches([batch[self._group.rows(len(batch))] for batch in left])
        steps = zip(left, loaded, strict=True)
        for batch, (x, y) in progress(steps, len(left), what) if self._group.first else steps:
            self._take_step(*self._changed(x, y, len(batch)), len(batch))
            self.step += 1
            after_step()
        self._require_finite()
        return Fitted(
            loss=self._losses.sum().item() / len(self._batches),
            learning_rate=self._learning_rate,
            images=sum(map(len, left)),
            seconds=time.perf_counter() - started,
            waited=self._batches.waited - waited,
        )

    def end_epoch(self) -> None:
        """Mark the epoch as completed."""
        self.epoch, self.step = self.epoch + 1, 0

    def state(self) -> dict[str, Any]:
        """Everything on which the rest of the training depends."""
        return {
            "network": self._fitted.state_dict(),
            "average": self._average.state() if self._average else None,
            "optimiser": self._optimiser.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "generators": [self._generator.get_state(), self._augment.generator.get_state()],
            "epoch": self.epoch,
            "step": self.step,
            "order": self._order,
            "learning_rate": self._learning_rate,
            "losses": self._losses,
            "parts": self.parts,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state as if the training had not been interrupted."""
        self._fitted.load_state_dict(state["network"])
        if self._average:
            self._average.restore(state["average"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._scheduler.load_state_dict(state["scheduler"])
        for generator, of in zip(
            (self._generator, self._augment.generator), state["generators"], strict=True
        ):
            generator.set_state(of)
        self.epoch, self.step = state["epoch"], state["step"]
        self._order, self._learning_rate = state["order"], state["learning_rate"]
        self._losses.copy_(state["losses"])
        self.parts = max(self.parts, state["parts"])

    def is_sound(self) -> bool:
        """Whether all weights and all losses of the current epoch are finite."""
        numbers = [self._losses[: self.step], *self._fitted.parameters()]
        return all(bool(tensor.isfinite().all()) for tensor in numbers)

    def _require_finite(self) -> None:
        finite = self._losses[: self.step].isfinite()
        if not finite.all():
            step = int((~finite).nonzero()[0])
            what = f"the loss became {self._losses[step].item()} in epoch {self.epoch + 1}, step {step + 1}"
            raise DivergenceError(f"{what} of {self.steps}")

    def _changed(self, x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """This process's share of a batch of `count`, augmented: images (n, 1, S, S), masks (n, C, S, S)."""
        x, y = self._augment(x, y, count, self._group.rows(count))
        return self._compute.place(x), self._compute.place(y)

    def _take_step(self, x: Tensor, y: Tensor, count: int) -> None:
        of_all = max(count, self._group.size)  # small batches: some images are in several processes
        total = torch.zeros((), device=x.device)  # kept on the device; reading it each step would stall
        self._optimiser.zero_grad()
        count_of_parts = min(self.parts, max(1, count // self._group.size))  # equal in each process
        parts = list(zip(x.tensor_split(count_of_parts), y.tensor_split(count_of_parts), strict=True))
        for part, (images, masks) in enumerate(parts, start=1):
            with self._gradients_shared(part == len(parts)):
                with self._compute.autocast():
                    logits = self._forward(images)
                loss = self._loss_of(logits, masks)
                # The group averages gradients over processes; this weight makes it the mean over the batch.
                (loss * (len(images) * self._group.size / of_all)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() * (len(images) * count / of_all)
        self._losses[self.step] = self._group.total(total)
        self._optimiser.step()
        self._scheduler.step()
        if self._average:
            self._average.update()

    def _gradients_shared(self, shared: bool) -> AbstractContextManager[None]:
        """Exchange gradients between processes only with the last part."""
        if shared or not isinstance(self._wrapped, DistributedDataParallel):
            return nullcontext()
        return self._wrapped.no_sync()

    def _loss_of(self, logits: Tensor | tuple[Tensor, ...], y: Tensor) -> Tensor:
        """The loss; under deep supervision, the mean over all outputs of the network."""
        outputs = logits if isinstance(logits, tuple) else (logits,)
        return torch.stack([self.loss(output, y) for output in outputs]).mean()


class Average:
    """A copy of a network whose weights are the exponential moving average of the network's weights.

    The decay is smaller at first, so that the weights of the first steps, which are nearly random, are
    forgotten faster.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay, self._steps = decay, 0
        self.network = copy.deepcopy(network).requires_grad_(False)
        # Looking tensors up by name in each step would take longer than averaging.
        self._own, self._new = _tensors(self.network), _tensors(network)

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages with the network's current weights."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        (own, own_counts), (new, new_counts) = self._own, self._new
        torch._foreach_lerp_(own, new, 1 - decay)
        for own_count, new_count in zip(own_counts, new_counts, strict=True):
            own_count.copy_(new_count)

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "steps": self._steps}

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._steps = state["steps"]


def _tensors(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Floating-point tensors (weights and statistics), and integer tensors such as the batch counts."""
    tensors = [*network.parameters(), *network.buffers()]
    counts = [tensor for tensor in tensors if not tensor.is_floating_point()]
    return [tensor for tensor in tensors if tensor.is_floating_point()], counts


class _Eager(torch.optim.Optimizer):
    """An optimiser that is never compiled.

    torch wraps these methods so that torch.compile skips them, which imports torch._dynamo: two seconds at
    the start of every training. Only networks and losses are compiled here.
    """

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)


class Adam(_Eager, torch.optim.Adam):
    step = torch.no_grad()(unwrap(torch.optim.Adam.step))


class AdamW(_Eager, torch.optim.AdamW):
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


def make_optimiser(plan: Plan, network: nn.Module) -> torch.optim.Optimizer:
    """The optimiser. Weight decay applies to kernels only, not to biases or batch normalisation."""
    make = {"adam": Adam, "adamw": AdamW}[plan.optimiser]
    kernels = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser: torch.optim.Optimizer = make(groups, lr=plan.learning_rate, fused=True)
    return optimiser


def make_schedule(plan: Plan, optimiser: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """The learning rate schedule over `steps` steps; `learning_rate` is its highest value.

    one_cycle rises over three tenths of the steps and then falls to about 0. Adam's beta1 moves the other
    way, from 0.95 to 0.85 and back (Smith and Topin 2018, arXiv 1708.07120).
    """
    match plan.schedule:
        case "constant":
            return torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)
        case "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        case "one_cycle":
            return torch.optim.lr_scheduler.OneCycleLR(optimiser, plan.learning_rate, total_steps=steps)
