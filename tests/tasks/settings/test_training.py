"""The words of the schema are those of the code."""

from typing import get_args

from models.augmentation import Strength
from models.losses import LOSS_OPTIONS, LOSSES
from models.metrics import Selection as ComputedSelection
from models.networks import NETWORKS
from tasks.baselines import PREDICTORS
from tasks.settings.schema import BASELINES
from tasks.settings.training import LOSSES_WITH_ALPHA, Augment, Loss, Losses, Network, Selection
from tests.params import changed


def test_literals_match_the_registries() -> None:
    assert get_args(Network) == tuple(NETWORKS)
    assert get_args(Loss) == tuple(LOSSES)
    assert set(PREDICTORS) == BASELINES


def test_loss_options_match_the_loss_functions() -> None:
    assert {name for name, options in LOSS_OPTIONS.items() if "alpha" in options} == LOSSES_WITH_ALPHA
    losses = changed().losses
    constants = {name: tuple(getattr(losses, name).model_dump()) for name in Losses.model_fields}
    assert constants == {n: o for n, o in LOSS_OPTIONS.items() if o and n not in LOSSES_WITH_ALPHA}
    plans = changed(*(f"experiments.{n}={{network: unet, loss: {n}}}" for n in LOSSES)).plans
    assert {name: tuple(plans[f"{name}-seed0"].loss_options) for name in LOSSES} == LOSS_OPTIONS


def test_every_augmentation_can_be_configured() -> None:
    assert tuple(Augment.model_fields) == Strength._fields


def test_selections_are_those_that_are_computed() -> None:
    """The schema names them without importing NumPy."""
    assert set(get_args(Selection)) == set(get_args(ComputedSelection))
