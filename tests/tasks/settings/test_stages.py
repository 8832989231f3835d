"""The section `stages`, as it follows from the experiments."""

import pytest

from tasks.settings.changes import with_changes
from tasks.settings.params import parse_params
from tasks.support.cli import InputError
from tests.params import TEXT, changed


def test_stages_are_derived_from_the_experiments() -> None:
    stages = changed(
        "experiments.report2.seeds=2",
        "training.seed=5",
        "experiments.report2_dice_bce.image_size=512",
        "experiments.lungs={network: unet, loss: dice, half: lung, targets: [lung]}",
    ).stages
    assert stages.preprocess == (256, 512)
    assert stages.baselines == ("infection", "lung")
    assert stages.lungs["two_step_lungs"].model_dump() == {
        "training": "two_step_lungs-seed5",
        "images": "packed/256",
    }
    assert {name: stages.train[name].images for name in stages.train if name.startswith("report2")} == {
        "report2-seed5": "packed/256",
        "report2-seed6": "packed/256",
        "report2_dice_bce-seed5": "packed/512",
        **{
            f"report2_{name}-seed5": "packed/256"
            for name in ("focal", "focal_tversky", "augmented", "attention", "plus_plus")
        },
    }
    assert stages.train["two_step_infection-seed5"].images == "lungs/two_step_lungs"
    assert stages.train["lungs-seed5"].experiment == "lungs"


def test_a_bundle_needs_the_trainings_of_all_seeds_and_the_first_one_of_its_lungs() -> None:
    params = changed(
        "export.experiments=[two_step_infection]",
        "promotion.experiment=two_step_infection",
        "experiments.two_step_infection.seeds=2",
        "experiments.two_step_lungs.seeds=2",
    )
    assert params.stages.export == ("two_step_infection",)
    assert list(params.stages.convert) == [
        "two_step_lungs-seed0",
        "two_step_infection-seed0",
        "two_step_infection-seed1",
    ]
    everything = changed("export.experiments=all")
    assert everything.stages.export == tuple(everything.experiments)
    assert everything.stages.convert == everything.stages.train


def test_an_ensemble_gathers_the_networks_of_its_seeds() -> None:
    params = changed(
        "experiments.combined.seeds=3",
        "experiments.combined.seed=5",
        "experiments.combined.prediction.ensemble=seeds",
    )
    assert {name: stage.before for name, stage in params.stages.gather.items()} == {
        "combined-seed6": "train/combined-seed5/network",
        "combined-seed7": "ensembles/combined-seed6",
    }
    (ensemble,) = params.stages.ensemble.items()
    assert ensemble[0] == "combined"
    assert (ensemble[1].first, ensemble[1].last, ensemble[1].images) == (
        "combined-seed5",
        "combined-seed7",
        "packed/256",
    )


def test_folds_are_trainings_whose_networks_are_an_ensemble() -> None:
    params = changed("experiments.combined.folds=3", "experiments.combined.seed=5")
    plans = {name: plan for name, plan in params.plans.items() if plan.experiment == "combined"}
    assert {name: (plan.seed, plan.folds, plan.fold) for name, plan in plans.items()} == {
        "combined-fold0": (5, 3, 0),
        "combined-fold1": (6, 3, 1),
        "combined-fold2": (7, 3, 2),
    }
    assert '"fold": 1' in plans["combined-fold1"].to_json()
    assert {name: stage.before for name, stage in params.stages.gather.items()} == {
        "combined-fold1": "train/combined-fold0/network",
        "combined-fold2": "ensembles/combined-fold1",
    }
    assert params.stages.ensemble["combined"].model_dump() == {
        "first": "combined-fold0",
        "last": "combined-fold2",
        "images": "packed/256",
    }
    assert list(params.stages.convert) == list(plans)


def test_one_fold_changes_no_plan_and_no_list_of_stages() -> None:
    """Also of a params.yaml from before this key."""
    text = "".join(line for line in TEXT.splitlines(keepends=True) if not line.startswith("  folds:"))
    assert text != TEXT
    before, now = parse_params(text), changed("training.folds=1")
    assert before.stages == now.stages
    plans = {name: plan.to_json() for name, plan in now.plans.items()}
    assert plans == {name: plan.to_json() for name, plan in before.plans.items()}
    assert not any('"fold' in plan for plan in plans.values())


def test_one_seed_is_no_ensemble() -> None:
    stages = changed("prediction.ensemble=seeds").stages
    assert stages.gather == stages.ensemble == {}


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("preprocess: [256]", "preprocess: [128]", "preprocess: expected [256]"),
        ("baselines: [infection]", "baselines: []", "baselines: expected [infection]"),
        (
            "    report2-seed0: {experiment: report2, images: packed/256}\n",
            "",
            "train: expected report2-seed0: {experiment: report2, images: packed/256}",
        ),
        (
            "report2-seed0: {experiment: report2, images: packed/256}",
            "report2-seed0: {experiment: report2, images: packed/128}",
            "train: expected report2-seed0: {experiment: report2, images: packed/256}",
        ),
        (
            "    two_step_lungs: {training: two_step_lungs-seed0, images: packed/256}",
            "    two_step_lungs: {training: two_step_lungs-seed0, images: packed/256}\n"
            "    report2: {training: report2-seed0, images: packed/256}",
            "lungs: no experiment needs report2",
        ),
        (
            "  seeds: 1 ",
            "  seeds: 2 ",
            "train: expected report1_bce-seed1: {experiment: report1_bce, images: packed/256}",
        ),
    ],
)
def test_wrong_stage_lists_are_errors_and_a_change_rewrites_them(before: str, after: str, line: str) -> None:
    assert TEXT.count(before) == 1
    edited = TEXT.replace(before, after)
    with pytest.raises(InputError) as error:
        parse_params(edited)
    assert str(error.value) == f"params.yaml: stages.{line}; `cxr params` writes this section"
    assert parse_params(with_changes(edited, {}))
