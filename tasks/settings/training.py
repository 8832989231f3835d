"""The sections `training` and `losses`: how a network is trained. Every experiment may override them."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from tasks.common.raw import Half, ImageClass
from tasks.settings.section import Positive, Section, Share, distinct

Network = Literal["unet", "residual_unet", "attention_unet", "unet_plus_plus"]
Loss = Literal[
    "batch_bce_iou",
    "batch_dice",
    "batch_dice_bce",
    "bce",
    "bce_iou",
    "dice",
    "dice_bce",
    "focal",
    "focal_tversky",
]
Target = Literal["infection", "lung"]
Selection = Literal["balanced", "lesions", "all"]  # models.metrics defines them

#: Losses that use the shared weight `alpha`; changing alpha retrains only their experiments.
LOSSES_WITH_ALPHA: frozenset[Loss] = frozenset({"batch_bce_iou", "batch_dice_bce", "bce_iou", "dice_bce"})

#: Value of an experiment's `images` if it uses whole images.
WHOLE = "whole"

#: Prefix of an experiment's `images` if it uses only the lungs that another experiment predicts.
LUNGS = "lungs/"

#: Largest number of folds of a cross-validation.
MOST_FOLDS = 10

#: Largest side of a network's input in pixels; bundles hold no larger one.
LARGEST_INPUT = 4096


class Augment(Section):
    """Bounds of the random changes to training images, see `models.augmentation.Strength`; 0 is off."""

    flip: Share
    rotation: Annotated[float, Field(ge=0, le=180)]
    scale: Share
    translation: Share
    elastic: Annotated[float, Field(ge=0, le=0.2)]
    brightness: Share
    contrast: Annotated[float, Field(ge=0, le=10)]
    gamma: Annotated[float, Field(ge=0, le=10)]
    noise: Share


class FocalLoss(Section):
    gamma: Annotated[float, Field(ge=0)]
    balance: Share


class FocalTverskyLoss(Section):
    gamma: Annotated[float, Field(ge=1)]
    balance: Share


class Losses(Section):
    """Constants of individual loss functions."""

    focal: FocalLoss
    focal_tversky: FocalTverskyLoss


class StartFrom(Section):
    """Weights of a trained network, from which another training starts instead of random ones."""

    weights: Annotated[str, Field(pattern=r"\.safetensors$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Fit(Section):
    """What determines a training, except network and loss. Every experiment may override it."""

    epochs: Positive
    half: Half
    image_size: Annotated[int, Field(ge=16, le=LARGEST_INPUT)]
    images: Annotated[str, Field(pattern=rf"^({WHOLE}|{LUNGS}[A-Za-z0-9_-]+)$")]
    targets: Annotated[tuple[Target, ...], Field(min_length=1, strict=False), AfterValidator(distinct)]
    train_classes: Annotated[
        tuple[ImageClass, ...], Field(min_length=1, strict=False), AfterValidator(distinct)
    ]
    batch_size: Positive
    width: Positive
    depth: Annotated[int, Field(ge=1, le=6)]
    patch: Annotated[int, Field(ge=1, le=8)]
    deep_supervision: bool
    optimiser: Literal["adam", "adamw"]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["constant", "cosine", "one_cycle"]
    ema: Annotated[float, Field(ge=0, lt=1)]
    augment: Augment
    seed: Annotated[int, Field(ge=0, lt=2**62)]
    selection: Selection
    patience: Annotated[int, Field(ge=0)]
    precision: Literal["auto", "fp32", "bf16"]
    compile: Literal["auto", "none", "fused", "graphs"]
    threads: Annotated[int, Field(ge=0)]
    processes: Positive
    accumulate: Positive
    start_from: StartFrom | None = None
    """None: random weights."""


class TrainingSettings(Fit):
    """The section `training`: settings shared by all experiments; each may override them."""

    alpha: Share | None
    seeds: Annotated[int, Field(ge=1, le=100)]
    folds: Annotated[int, Field(ge=1, le=MOST_FOLDS)] = 1
    """1: the dataset's own Train and Val. Revisions from before this key lack it."""


def uses_alpha(entry: Any) -> bool:
    """Whether the loss that an entry of `experiments` names, which may be invalid, uses alpha."""
    loss = entry.get("loss") if isinstance(entry, dict) else None
    return isinstance(loss, str) and loss in LOSSES_WITH_ALPHA


def lungs_from(images: str) -> str | None:
    """The experiment whose predicted lungs these images are, if any."""
    return images.removeprefix(LUNGS) if images.startswith(LUNGS) else None
