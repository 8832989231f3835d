"""The section `experiments`: the trainings of each experiment, and the plan of each training."""

from typing import Self

from pydantic import model_validator

from tasks.settings.prediction import Prediction
from tasks.settings.section import Share
from tasks.settings.training import (
    LOSSES_WITH_ALPHA,
    WHOLE,
    Fit,
    Loss,
    Losses,
    Network,
    Selection,
    TrainingSettings,
    lungs_from,
)


def training_name(experiment: str, seed: int) -> str:
    """Name of an experiment's training with a seed, as used in stages, files and logs."""
    return f"{experiment}-seed{seed}"


def training_names(experiment: str, seed: int, seeds: int, folds: int) -> tuple[str, ...]:
    """Names of all trainings of an experiment: one for each fold, or for each seed from `seed` on."""
    if folds > 1:
        return tuple(f"{experiment}-fold{fold}" for fold in range(folds))
    return tuple(training_name(experiment, seed + more) for more in range(seeds))


class Plan(Fit):
    """One training: an experiment and a seed, with everything that determines the result and nothing else.

    `loss_options` contains only the options of its own loss, so changing alpha affects no other plan.
    """

    name: str
    experiment: str
    network: Network
    loss: Loss
    loss_options: dict[str, float]
    selection: Selection = "all"  # by which earlier versions chose, whose plans do not name it
    folds: int = 1
    fold: int = 0
    """The fold, counted from 0, that is this training's Val; the others are its Train."""

    def to_json(self) -> str:
        # As before these keys existed, so that no finished training runs again.
        without = {"start_from"} if self.start_from is None else set()
        without |= {"folds", "fold"} if self.folds == 1 else set()
        return self.model_dump_json(indent=2, exclude=without) + "\n"


class Experiment(TrainingSettings):
    """An entry under `experiments`, merged with the shared values."""

    network: Network
    loss: Loss
    losses: Losses
    prediction: Prediction
    alpha: Share | None = None

    @property
    def is_ensemble(self) -> bool:
        """Whether the probabilities of its networks are averaged, too: always those of several folds."""
        return self.folds > 1 or (self.prediction.ensemble == "seeds" and self.seeds > 1)

    @property
    def lungs_from(self) -> str | None:
        """The experiment whose predicted lungs are the input of this one, if any."""
        return lungs_from(self.images)

    @property
    def folder(self) -> str:
        """The folder of its images, relative to data/."""
        return self.images if self.lungs_from else f"packed/{self.image_size}"

    @property
    def stride(self) -> int:
        """Side, in pixels, of the square that one pixel of the lowest level covers."""
        return int(self.patch * 2**self.depth)

    def trainings(self, name: str) -> tuple[str, ...]:
        """Names of its trainings, one for each seed or fold, if the experiment is called `name`."""
        return training_names(name, self.seed, self.seeds, self.folds)

    def plans(self, name: str) -> dict[str, Plan]:
        """Training name -> plan, for each of its trainings, if the experiment is called `name`."""
        return {t: self._plan(name, t, number) for number, t in enumerate(self.trainings(name))}

    def _plan(self, name: str, training: str, number: int) -> Plan:
        """The plan of a training, whose seed or fold has this number, counted from 0."""
        shared = self.model_dump(include={*Fit.model_fields, "network", "loss"})
        shared |= {"seed": self.seed + number, "loss_options": self._loss_options()}
        if self.folds > 1:
            shared |= {"folds": self.folds, "fold": number}
        return Plan(name=training, experiment=name, **shared)

    def _loss_options(self) -> dict[str, float]:
        if self.alpha is not None:
            return {"alpha": self.alpha}
        constants = getattr(self.losses, self.loss, None)
        return constants.model_dump() if constants else {}

    @model_validator(mode="after")
    def _has_the_alpha_it_reads(self) -> Self:
        reads = self.loss in LOSSES_WITH_ALPHA
        if reads != (self.alpha is not None):
            raise ValueError(
                f"loss {self.loss} {'needs alpha, which is missing' if reads else 'does not use alpha'}"
            )
        return self

    @model_validator(mode="after")
    def _can_have_folds(self) -> Self:
        if self.folds > 1 and self.seeds > 1:
            raise ValueError(f"folds: {self.folds} and seeds: {self.seeds} exclude each other; set seeds: 1")
        if self.folds > 1 and self.lungs_from:
            raise ValueError(
                f"folds: {self.folds} needs images: {WHOLE}, because the network that predicts the lungs has "
                "seen images of every fold; set folds: 1"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.deep_supervision and self.network != "unet_plus_plus":
            raise ValueError(f"network {self.network} does not support deep_supervision; use unet_plus_plus")
        if self.processes * self.accumulate > self.batch_size:
            shares = f"{self.processes} processes and accumulate: {self.accumulate}"
            raise ValueError(f"batch_size: {self.batch_size} images are not enough for {shares}")
        if self.compile == "graphs" and self.accumulate > 1:
            raise ValueError("compile: graphs cannot split a batch; set accumulate: 1 or compile: fused")
        if self.network == "attention_unet" and self.width < 2:
            raise ValueError("network attention_unet needs a width of at least 2")
        if self.prediction.within_lungs and set(self.targets) != {"infection", "lung"}:
            raise ValueError("prediction.within_lungs needs targets: [infection, lung]")
        if self.lungs_from and self.targets != ("infection",):
            raise ValueError(f"images: {self.images} has only infection masks; set targets: [infection]")
        if "infection" in self.targets and self.half == "lung":
            raise ValueError("the lung half has no infection masks; set targets: [lung]")
        if self.image_size % self.stride or self.image_size == self.stride:
            raise ValueError(
                f"image_size {self.image_size} must be 2, 3, ... times patch * 2^depth = {self.stride}"
            )
        return self
