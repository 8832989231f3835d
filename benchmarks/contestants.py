"""The contestants of benchmarks/time_to_dice.py, except nnU-Net: ours, a plain PyTorch loop, and MONAI."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from apart import Pairs
from experiment import HALF
from rates import plan_words
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from models.losses import make_loss
from models.networks import UNet
from tasks.networks.device import Compute, set_up
from tasks.networks.network import build_network
from tasks.packed.reader import PackedSplit, scaled
from tasks.settings.experiments import Plan
from tasks.training.batches import Batches
from tasks.training.fitting import Fitter


class Setting(NamedTuple):
    """What all runs share."""

    plan: Plan
    packed: Path
    """The images, packed at the plan's image size."""
    threads: int
    target: float
    """Mean Val Dice at which a run ends."""
    every: float
    """Most seconds of training between validations, but for the step in which they end."""
    limit: float
    """Seconds of training after which a run ends."""

    def split(self, name: str) -> PackedSplit:
        return PackedSplit(self.packed, HALF, name, self.plan.targets, self.plan.train_classes)

    def to_json(self) -> dict[str, Any]:
        plan = json.loads(self.plan.to_json())
        return self._asdict() | {"plan": plan, "packed": str(self.packed.resolve())}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Setting":
        plan = Plan.from_json(json.dumps(fields["plan"]))
        return cls(**{**fields, "plan": plan, "packed": Path(fields["packed"])})


class Contestant:
    """A training that can be interrupted after each step to score its masks."""

    #: Facts for the table: network, parameters, precision, loss, optimiser, batch_size.
    facts: dict[str, Any]

    @property
    def network(self) -> nn.Module:
        """The network that is scored."""
        raise NotImplementedError

    def train(self, after_step: Callable[[], None]) -> None:
        """Train until `after_step` raises an exception, or to the end."""
        raise NotImplementedError

    def marked(self, rows: slice) -> Tensor:
        """Predicted masks of some Val images, bool (n, 1, S, S)."""
        raise NotImplementedError

    def close(self) -> None:
        """End the processes of the training."""


class Ours(Contestant):
    """Our engine."""

    def __init__(self, setting: Setting, seed: int) -> None:
        plan = setting.plan.model_copy(update={"seed": seed, "threads": setting.threads})
        self._compute = compute = set_up(plan.seed, plan.precision, plan.threads)
        network, self._epochs = build_network(plan, compute), plan.epochs
        self._fitter = Fitter(plan, network, compute, Batches(setting.split("Train"), compute))
        self._val = setting.split("Val")
        self.facts = {
            "network": plan_words(plan),
            "parameters": parameters_of(network),
            "precision": compute.precision,
            "loss": plan.loss,
            "optimiser": f"{plan.optimiser}, {plan.schedule}, {plan.learning_rate}, {plan.epochs} epochs",
            "batch_size": plan.batch_size,
        }

    @property
    def network(self) -> nn.Module:
        return self._fitter.network

    def train(self, after_step: Callable[[], None]) -> None:
        for _ in range(self._epochs):
            self._fitter.run_epoch("ours", after_step)
            self._fitter.end_epoch()

    def marked(self, rows: slice) -> Tensor:
        x = self._compute.place(scaled(self._val.images(rows)))
        with self._compute.autocast():
            logits: Tensor = self.network(x)
        return logits > 0


class Loop(Contestant):
    """The loop of most tutorials, over any loader, network and loss."""

    def __init__(self, setting: Setting, network: nn.Module, what: str) -> None:
        torch.set_num_threads(setting.threads)
        self._network, self._optimiser = network, torch.optim.Adam(network.parameters(), lr=1e-3)
        self.facts = {
            "network": what,
            "parameters": parameters_of(network),
            "precision": "fp32",
            "optimiser": "adam, 0.001",
            "batch_size": setting.plan.batch_size,
        }
        self.batches: Iterable[Sequence[Tensor]] = ()
        self.loss: Callable[[Tensor, Tensor], Tensor]
        #: Val images as the network takes them, (N, 1, S, S).
        self.val: Tensor

    @property
    def network(self) -> nn.Module:
        return self._network

    def train(self, after_step: Callable[[], None]) -> None:
        self._network.train()
        total = 0.0
        while True:
            for x, y in self.batches:
                self._optimiser.zero_grad()
                loss = self.loss(self._network(x), y)
                loss.backward()
                self._optimiser.step()
                total += loss.item()
                after_step()

    def marked(self, rows: slice) -> Tensor:
        logits: Tensor = self._network(self.val[rows])
        return logits > 0


class Plain(Loop):
    """A plain PyTorch loop over tensors."""

    def __init__(self, setting: Setting, seed: int, same: bool = False) -> None:
        plan = setting.plan
        torch.manual_seed(seed)
        if same:
            network, what = build_network(plan, Compute(torch.device("cpu"), "fp32")), plan_words(plan)
            network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        else:
            width = width_like(parameters_of_plan(plan), partial(plain_network, depth=plan.depth))
            network, what = plain_network(width, plan.depth), f"unet, width {width}, depth {plan.depth}"
        super().__init__(setting, network, what)
        self.facts["loss"] = "dice_bce"
        self.loss = make_loss("dice_bce", alpha=0.5)
        images, masks = tensors(setting.split("Train"))
        options = {"batch_size": plan.batch_size, "shuffle": True}
        self.batches = DataLoader(TensorDataset(images, masks), **options)  # type: ignore[arg-type]
        self.val, _ = tensors(setting.split("Val"))


class Monai(Loop):
    """MONAI, used as in its tutorials."""

    def __init__(self, setting: Setting, seed: int) -> None:
        # Imported here, so that the other contestants run without it.
        from monai.data import CacheDataset
        from monai.data import DataLoader as Loader
        from monai.losses import DiceCELoss
        from monai.transforms import Compose, EnsureTyped, RandFlipd, ScaleIntensityd
        from monai.utils import set_determinism

        plan = setting.plan
        set_determinism(seed)
        torch.use_deterministic_algorithms(False)
        width = width_like(parameters_of_plan(plan), partial(monai_network, depth=plan.depth))
        what = f"MONAI's UNet, channels {width} to {width * 2**plan.depth}, 2 residual units"
        super().__init__(setting, monai_network(width, plan.depth), what)
        self.facts["loss"] = "DiceCELoss"
        self.loss = DiceCELoss(sigmoid=True)
        keys = ["image", "label"]
        scale = Compose([EnsureTyped(keys), ScaleIntensityd("image")])
        flip = RandFlipd(keys, prob=0.5, spatial_axis=1)
        rows = [{"image": x, "label": y} for x, y in zip(*tensors(setting.split("Train")), strict=True)]
        cached = CacheDataset(rows, Compose([scale, flip]), num_workers=setting.threads, progress=False)
        self.batches = Pairs(Loader(cached, batch_size=plan.batch_size, shuffle=True))
        val = zip(*tensors(setting.split("Val")), strict=True)
        self.val = torch.stack([scale({"image": x, "label": y})["image"].as_tensor() for x, y in val])


def tensors(split: PackedSplit) -> tuple[Tensor, Tensor]:
    """Return all images in [0, 1] and binary masks, float32 (N, 1, S, S)."""
    return scaled(split.images()), (scaled(split.masks()) >= 0.5).float()


def plain_network(width: int, depth: int) -> nn.Module:
    return UNet(in_channels=1, out_channels=1, width=width, depth=depth)


def monai_network(width: int, depth: int) -> nn.Module:
    from monai.networks.nets import UNet as MonaiUNet

    channels = [width * 2**k for k in range(depth + 1)]
    shape = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1}
    network: nn.Module = MonaiUNet(**shape, channels=channels, strides=[2] * depth, num_res_units=2)
    return network


def parameters_of(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def parameters_of_plan(plan: Plan) -> int:
    with torch.device("meta"):
        return parameters_of(build_network(plan, Compute(torch.device("meta"), "fp32")))


def width_like(parameters: int, make: Callable[[int], nn.Module]) -> int:
    """Return the width at which a network's number of parameters is nearest."""
    before = 0
    for width in count(1):
        with torch.device("meta"):
            found = parameters_of(make(width))
        if found >= parameters:
            return width if width == 1 or found - parameters < parameters - before else width - 1
        before = found
    raise AssertionError
