"""Experiments with the values that they share, and their plans."""

from typing import Any

import pytest

from tasks.settings.experiments import Plan
from tasks.settings.params import load_params, parse_params
from tasks.settings.training import LOSSES_WITH_ALPHA
from tests.helpers import ROOT
from tests.params import TEXT, changed


def test_experiment_overrides_shared_values() -> None:
    plans = changed(
        "training.epochs=7", "experiments.report1_bce.epochs=3", "experiments.report1_bce.width=8"
    ).experiments
    assert (plans["report1_bce"].epochs, plans["report1_bce_iou"].epochs) == (3, 7)
    assert (plans["report1_bce"].width, plans["report1_bce_iou"].width) == (8, 64)


def test_sections_are_merged_key_by_key() -> None:
    experiments = changed(
        "training.augment.noise=0.1",
        "prediction.min_area=0.001",
        "experiments.report2_attention.augment={flip: 0.5, noise: 0.2}",
        "experiments.report2_attention.prediction={threshold: 0.4}",
    ).experiments
    other, own = experiments["report2"], experiments["report2_attention"]
    assert own.augment == other.augment.model_copy(update={"flip": 0.5, "noise": 0.2})
    assert own.prediction == other.prediction.model_copy(update={"threshold": 0.4})
    assert (other.augment.noise, other.prediction.min_area, other.prediction.threshold) == (0.1, 0.001, "val")


@pytest.mark.parametrize(("key", "value"), [("epochs", 7), ("alpha", 0.3)])
def test_top_level_epochs_and_alpha_override_all_experiments_unless_null(key: str, value: float) -> None:
    own = f"experiments.report2_dice_bce.{key}=1"

    def values(*assignments: str) -> set[Any]:
        experiments = changed(*assignments).experiments.values()
        return {getattr(experiment, key) for experiment in experiments} - {None}

    # The way and the order of setting them do not matter; `dvc exp run --set-param` changes only the top.
    assert values(own, f"{key}={value}") == values(f"{key}={value}", own) == {value}
    assert values(own, f"{key}=null") == values() | {1}
    by_hand = TEXT.replace(f"\n{key}: null", f"\n{key}: {value}")
    assert {getattr(e, key) for e in parse_params(by_hand).experiments.values()} - {None} == {value}


def test_alpha_is_only_in_plans_of_losses_that_use_it() -> None:
    before, after = changed("alpha=0.5").plans, changed("alpha=0.3").plans
    for name, plan in before.items():
        if plan.loss in LOSSES_WITH_ALPHA:
            assert (plan.loss_options, after[name].loss_options) == ({"alpha": 0.5}, {"alpha": 0.3})
        else:
            assert plan == after[name]


def test_loss_constants_are_only_in_plans_of_their_loss() -> None:
    before, after = changed().plans, changed("losses.focal.gamma=3.0").plans
    assert {name for name in before if before[name] != after[name]} == {"report2_focal-seed0"}
    assert after["report2_focal-seed0"].loss_options == {"gamma": 3.0, "balance": 0.75}


def test_plans_do_not_depend_on_prediction_settings() -> None:
    assert changed("prediction.threshold=0.4", "prediction.flip_average=true").plans == changed().plans


def test_plan_survives_a_json_round_trip() -> None:
    for plan in load_params(ROOT / "params.yaml").plans.values():
        assert Plan.from_json(plan.to_json()) == plan


def test_the_scores_of_single_networks_do_not_depend_on_the_ensemble() -> None:
    plain, ensemble = changed(), changed("prediction.ensemble=seeds")
    for name, experiment in plain.experiments.items():
        assert experiment.prediction.to_json() == ensemble.experiments[name].prediction.to_json()
