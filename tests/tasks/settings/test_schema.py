from pathlib import Path
from typing import Any, get_args

import pytest

from models.augmentation import Strength
from models.losses import LOSS_OPTIONS, LOSSES
from models.metrics import Selection
from models.networks import NETWORKS
from tasks.baselines import PREDICTORS
from tasks.settings import schema as params
from tasks.settings.changes import parse_assignment, parse_preset, read_preset, with_changes
from tasks.settings.schema import load_params, parse_params
from tasks.support.cli import InputError
from tests.helpers import ROOT

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")

ENTRY = "{network: unet, loss: bce, targets: [lung], train_classes: [Normal]}"


def changed(*assignments: str) -> params.Params:
    return parse_params(with_changes(TEXT, {a: parse_assignment(a) for a in assignments}))


def test_changes_are_validated_together_in_any_order() -> None:
    assignments = ["training.image_size=24", "training.depth=2"]
    assert changed(*assignments) == changed(*reversed(assignments))


def test_errors_before_a_change_do_not_name_the_change(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^params.yaml: not valid YAML"):
        with_changes("alpha: [", {"x": {"alpha": 1}})
    with pytest.raises(InputError, match=r"^params.yaml: expected keys and values"):
        with_changes("", {"x": {"alpha": 1}})
    (tmp_path / "latin.yaml").write_bytes("# caf\xe9".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.yaml: not UTF-8 text"):
        read_preset(tmp_path / "latin.yaml")


def test_literals_match_the_registries() -> None:
    assert get_args(params.Network) == tuple(NETWORKS)
    assert get_args(params.Loss) == tuple(LOSSES)
    assert set(PREDICTORS) == params.BASELINES


def test_loss_options_match_the_loss_functions() -> None:
    assert {name for name, options in LOSS_OPTIONS.items() if "alpha" in options} == params.LOSSES_WITH_ALPHA
    constants = {
        name: tuple(getattr(load_params(ROOT / "params.yaml").losses, name).model_dump())
        for name in params.Losses.model_fields
    }
    assert constants == {n: o for n, o in LOSS_OPTIONS.items() if o and n not in params.LOSSES_WITH_ALPHA}
    plans = changed(*(f"experiments.{n}={{network: unet, loss: {n}}}" for n in LOSSES)).plans
    assert {name: tuple(plans[f"{name}-seed0"].loss_options) for name in LOSSES} == LOSS_OPTIONS


def test_every_augmentation_can_be_configured() -> None:
    assert tuple(params.Augment.model_fields) == Strength._fields


def test_params_contain_report_1_with_its_settings() -> None:
    plans = load_params(ROOT / "params.yaml").plans
    both = [plans[f"{name}-seed0"] for name in ("report1_bce", "report1_bce_iou")]
    assert [plan.loss for plan in both] == ["bce", "bce_iou"]
    for plan in both:
        assert (plan.network, plan.targets, plan.image_size, plan.epochs) == (
            "residual_unet",
            ("infection",),
            256,
            100,
        )
        assert (plan.train_classes, plan.augment.model_dump()) == (("COVID-19",), Strength()._asdict())


def test_params_contain_report_2_and_variants_that_differ_in_one_setting() -> None:
    plans = {plan.experiment: plan for plan in load_params(ROOT / "params.yaml").plans.values()}
    report2 = plans["report2"]
    assert (report2.network, report2.loss, report2.epochs) == ("unet", "bce", 30)
    assert (report2.targets, report2.train_classes) == (
        ("infection", "lung"),
        ("COVID-19", "Non-COVID", "Normal"),
    )
    steps = {name: differing(report2, plan) for name, plan in plans.items() if name.startswith("report2_")}
    assert steps == {
        "report2_dice_bce": {"loss"},
        "report2_focal": {"loss"},
        "report2_focal_tversky": {"loss"},
        "report2_augmented": {"augment"},
        "report2_attention": {"network"},
        "report2_plus_plus": {"network", "deep_supervision"},
    }


def differing(one: params.Plan, other: params.Plan) -> set[str]:
    names = set(params.Plan.model_fields) - {"name", "experiment", "loss_options"}
    return {name for name in names if getattr(one, name) != getattr(other, name)}


def test_second_step_uses_the_lungs_of_the_first() -> None:
    experiments = load_params(ROOT / "params.yaml").experiments
    assert experiments["two_step_lungs"].targets == ("lung",)
    assert experiments["two_step_infection"].lungs_from == "two_step_lungs"
    assert experiments["two_step_lungs"].lungs_from is None


PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_valid_and_keeps_comments(preset: Path) -> None:
    text = with_changes(TEXT, {str(preset): read_preset(preset)})
    parse_params(text)
    assert comments(text) == comments(TEXT)


def test_preset_ignores_missing_experiments() -> None:
    laptop = {"laptop": read_preset(ROOT / "presets" / "laptop.yaml")}
    kept = parse_params(with_changes(with_changes(TEXT, {}, ["report2"]), laptop))
    assert list(kept.experiments) == ["report2"]
    every = parse_params(with_changes(TEXT, laptop)).experiments
    assert every["combined"].epochs > every["report2"].epochs


def test_preset_selects_experiments_without_deleting_others() -> None:
    demo = read_preset(ROOT / "presets" / "demo.yaml")
    assert demo.only == ("report1_bce", "report1_bce_iou", "report2", "combined")
    assert "only" not in demo
    assert (
        parse_params(with_changes(TEXT, {"demo": demo})).experiments.keys()
        == parse_params(TEXT).experiments.keys()
    )
    with pytest.raises(InputError, match=r"^here: only: 'combined' is not a list of experiments"):
        parse_preset("only: combined", "here")


def comments(text: str) -> list[str]:
    return [
        comment.strip()
        for _, hash_sign, comment in (s.partition("#") for s in text.splitlines())
        if hash_sign
    ]


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


def test_alpha_is_only_in_plans_of_losses_that_use_it() -> None:
    before, after = changed("alpha=0.5").plans, changed("alpha=0.3").plans
    for name, plan in before.items():
        if plan.loss in params.LOSSES_WITH_ALPHA:
            assert (plan.loss_options, after[name].loss_options) == ({"alpha": 0.5}, {"alpha": 0.3})
        else:
            assert plan == after[name]


def test_loss_constants_are_only_in_plans_of_their_loss() -> None:
    before, after = changed().plans, changed("losses.focal.gamma=3.0").plans
    assert {name for name in before if before[name] != after[name]} == {"report2_focal-seed0"}
    assert after["report2_focal-seed0"].loss_options == {"gamma": 3.0, "balance": 0.75}


def test_plans_do_not_depend_on_prediction_settings() -> None:
    assert changed("prediction.threshold=0.4", "prediction.flip_average=true").plans == changed().plans


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


def test_kept_experiments_include_those_that_they_build_on() -> None:
    kept = parse_params(with_changes(TEXT, {}, ["report2", "two_step_infection"]))
    assert list(kept.experiments) == ["report2", "two_step_lungs", "two_step_infection"]
    assert list(kept.stages.lungs) == ["two_step_lungs"]
    assert kept.experiments["two_step_infection"].lungs_from == "two_step_lungs"

    text = with_changes(TEXT, {}, ["combined"])
    assert list(parse_params(text).experiments) == ["combined"]
    assert parse_params(text).stages.lungs == {}
    with pytest.raises(InputError, match=r"^experiments: 'bset' is not one of report1_bce, "):
        with_changes(TEXT, {}, ["bset"])


def test_keeping_experiments_changes_only_groups_and_stages() -> None:
    """Lines of experiments are removed; those of groups and stages are rewritten."""
    kept = with_changes(TEXT, {}, ["combined"])
    middle = TEXT[TEXT.index("\nreport:") : TEXT.index("  groups:\n")]
    export = TEXT[TEXT.index("export:\n") : TEXT.index("# Lists for")]
    assert kept.endswith(
        f"""{middle}  groups:
    "Combination": [combined]

{export}# Lists for the stages of dvc.yaml, derived from the experiments: `cxr params` writes them.
stages:
  preprocess: [256]
  baselines: [infection]
  lungs: {{}}
  train:
    combined-seed0: {{experiment: combined, images: packed/256}}
  gather: {{}}
  ensemble: {{}}
  convert:
    combined-seed0: {{experiment: combined, images: packed/256}}
  export: [combined]
  external: {{}}
  preprocess_external: {{}}
  lungs_external: {{}}
  evaluate_external: {{}}
"""
    )


def test_experiments_that_are_not_kept_are_not_exported() -> None:
    params = parse_params(with_changes(TEXT, {}, ["report2"]))
    assert params.export.experiments == params.stages.export == ()
    assert params.stages.convert == {}


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


def test_the_scores_of_single_networks_do_not_depend_on_the_ensemble() -> None:
    plain, ensemble = changed(), changed("prediction.ensemble=seeds")
    for name, experiment in plain.experiments.items():
        assert experiment.prediction.to_json() == ensemble.experiments[name].prediction.to_json()


def test_a_missing_ensemble_is_named_with_the_value_that_changes_nothing() -> None:
    text = "".join(line for line in TEXT.splitlines(keepends=True) if not line.startswith("  ensemble: none"))
    with pytest.raises(
        InputError, match=r"^params.yaml: prediction.ensemble: .* --set prediction.ensemble=none"
    ):
        parse_params(text)


def test_exported_experiments_exist() -> None:
    for value, message in (
        ("[bset]", r"export\.experiments: 'bset' is not one of report1_bce, "),
        ("everything", r"export\.experiments: 'everything' is neither all nor a list of experiments"),
        ("[combined, combined]", r"export\.experiments: a value is listed twice"),
    ):
        with pytest.raises(InputError, match=message):
            changed(f"export.experiments={value}")


def test_the_promoted_experiment_is_exported_and_predicts_the_judged_target() -> None:
    for changes, message in (
        (["promotion.experiment=report2"], r"promotion\.experiment: 'report2' is not one of .* \(combined\)"),
        (["export.experiments=[]"], r"promotion\.experiment: 'combined' is not one of .* \(there are none\)"),
        (
            ["export.experiments=all", "promotion.experiment=report1_bce", "promotion.target=lung"],
            r"promotion\.target: report1_bce predicts only infection",
        ),
    ):
        with pytest.raises(InputError, match=message):
            changed(*changes)
    assert parse_params(with_changes(TEXT, {}, ["report2"])).promotion.experiment is None


def test_params_without_a_promotion_have_its_limits_and_promote_nothing() -> None:
    before, _, rest = TEXT.partition("\npromotion:\n")
    promotion = parse_params(before + "\n# Lists" + rest.partition("\n# Lists")[2]).promotion
    assert promotion == changed("promotion.experiment=null").promotion


def test_groups_name_experiments_once() -> None:
    for value, fault in (
        ("{A: [bset]}", r"report\.groups\.A: 'bset' is not one of report1_bce, "),
        ("{A: [combined]}", r"report\.groups\.A: combined is in 'Combination' already"),
        ("{A: []}", r"report\.groups\.A: "),
    ):
        with pytest.raises(InputError, match=fault):
            changed(f"report.groups={value}")


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


def test_valid_text_is_not_changed() -> None:
    assert with_changes(TEXT, {}) == TEXT


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


def test_training_key_at_the_top_gets_a_hint() -> None:
    with pytest.raises(
        InputError, match=r": image_size: unknown key \(did you mean training\.image_size\?\)"
    ):
        changed("image_size=128")


def test_plan_survives_a_json_round_trip() -> None:
    for plan in load_params(ROOT / "params.yaml").plans.values():
        assert params.Plan.from_json(plan.to_json()) == plan


def test_changes_keep_comments() -> None:
    text = with_changes(TEXT, {"test": {"alpha": 0.3}})
    differing = [(a, b) for a, b in zip(TEXT.splitlines(), text.splitlines(), strict=True) if a != b]
    assert len(differing) == 1
    assert differing[0][1].startswith("alpha: 0.3     # weight of BCE")


def test_null_stays_null() -> None:
    assert "\n  fingerprint: null\n" in with_changes(TEXT, {"test": {"data": {"fingerprint": None}}})


def test_fingerprint_of_phantoms_is_an_error_and_the_demo_removes_it() -> None:
    pin = f"data.fingerprint=f{31 * '0'}"
    with pytest.raises(InputError, match=r": data: phantom:// never changes .* set fingerprint to null$"):
        changed(pin, "data.source=phantom://9")
    pinned = with_changes(TEXT, {pin: parse_assignment(pin)})
    demo = with_changes(pinned, {"demo": read_preset(ROOT / "presets" / "demo.yaml")})
    assert parse_params(demo).data.fingerprint is None


SHA256 = f"data.sha256={64 * 'a'}"


def test_another_source_removes_the_previous_pins() -> None:
    pinned = with_changes(TEXT, {"pin": {"data": {"fingerprint": f"f{31 * '0'}"}}})
    assert parse_params(pinned).data.sha256
    data = parse_params(with_changes(pinned, {"test": {"data": {"source": "x.zip"}}})).data
    assert data == params.DataSource(source="x.zip")
    same = with_changes(pinned, {"test": {"data": {"source": parse_params(pinned).data.source}}})
    assert parse_params(same) == parse_params(pinned)


def test_pin_set_together_with_a_source_is_kept_in_any_order() -> None:
    for order in (("data.source=x.zip", SHA256), (SHA256, "data.source=x.zip")):
        assert changed(*order).data == params.DataSource(source="x.zip", sha256=64 * "a")


def test_sha256_of_phantoms_is_an_error() -> None:
    with pytest.raises(InputError, match=r": data: phantom:// is not a zip file .*; set sha256 to null$"):
        changed(SHA256, "data.source=phantom://9")


@pytest.mark.parametrize("source", ["https://user:password@host/a.zip", "http://user@127.0.0.1/a.zip"])
def test_password_in_a_url_is_an_error_that_does_not_reveal_it(source: str) -> None:
    with pytest.raises(
        InputError,
        match=r": data: source: params.yaml must not contain credentials; put them into ~/\.netrc$",
    ) as caught:
        changed(f"data.source={source}")
    assert "password@" not in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "line"),
    [
        (
            "alhpa=0.3",
            ": alhpa: unknown key (did you mean alpha?); the keys here are alpha, epochs",
        ),
        ("training.widht=8", ": training.widht: unknown key (did you mean width?)"),
        (
            "experiments.report1_bce.los=bce",
            ": experiments.report1_bce.los: unknown key (did you mean loss?)",
        ),
        ("alpha=1.5", ": alpha: 1.5 is invalid: input should be less than or equal to 1"),
        ("alpha=half", ": alpha: 'half' is invalid: input should be a valid number"),
        ("epochs=0", ": epochs: 0 is invalid: input should be greater than or equal to 1"),
        ("epochs=true", ": epochs: True is invalid: input should be a valid integer"),
        (
            "experiments.report1_bce.loss=bec",
            "experiments.report1_bce.loss: 'bec' is not one of 'batch_bce_iou', 'batch_dice', ",
        ),
        ("experiments.report1_bce.network=vnet", "'vnet' is not one of 'unet', 'residual_unet', "),
        (
            "experiments.report1_bce=bce",
            "experiments.report1_bce: 'bce' is invalid: expected keys and values",
        ),
        ("data=zip", ": data: 'zip' is invalid: expected keys and values"),
        (
            "experiments.report2.patch=3",
            ": experiments.report2: image_size 256 must be 2, 3, ... times patch * 2^depth = 48",
        ),
        ("training.patch=16", ": training.patch: 16 is invalid: input should be less than or equal to 8"),
        (
            "prediction.threshold=1.5",
            ": prediction.threshold: 1.5 is neither val nor a number between 0 and 1",
        ),
        ("prediction.threshold=test", ": prediction.threshold: 'test' is neither val nor"),
        (
            "experiments.combined.prediction={threshold: 0.0}",
            ": experiments.combined.prediction.threshold: 0.0 is neither val nor",
        ),
        (
            "experiments.combined.augment={rotaton: 3}",
            ": experiments.combined.augment.rotaton: "
            "unknown key (did you mean rotation?); the keys here are ",
        ),
        ("training.augment.flip=2", ": training.augment.flip: 2 is invalid"),
        (
            "experiments.combined.augment=none",
            ": experiments.combined.augment: 'none' is invalid: expected keys and values",
        ),
        ("losses.focal.gama=1", ": losses.focal.gama: unknown key (did you mean gamma?)"),
        ("losses.focal_tversky.gamma=0.5", ": losses.focal_tversky.gamma: 0.5 is invalid"),
        ("training.seeds=0", ": training.seeds: 0 is invalid"),
        ("training.folds=0", ": training.folds: 0 is invalid: input should be greater than or equal to 1"),
        ("training.folds=11", ": training.folds: 11 is invalid: input should be less than or equal to 10"),
        ("experiments.report2.folds=2.5", ": experiments.report2.folds: 2.5 is invalid"),
        (
            "experiments.report2={folds: 5, seeds: 2}",
            ": experiments.report2: folds: 5 and seeds: 2 exclude each other; set seeds: 1",
        ),
        (
            "experiments.two_step_infection.folds=3",
            ": experiments.two_step_infection: folds: 3 needs images: whole, because the network that "
            "predicts the lungs has seen images of every fold; set folds: 1",
        ),
        (
            "experiments.two_step_lungs.folds=3",
            ": experiments.two_step_lungs: folds: 3: it predicts the lungs of "
            "experiments.two_step_infection, which one network does; set folds: 1",
        ),
        ("training.ema=1.0", ": training.ema: 1.0 is invalid"),
        (
            "experiments.report2_attention.width=1",
            ": experiments.report2_attention: network attention_unet needs a width of at least 2",
        ),
        (
            "experiments.report2={compile: graphs, accumulate: 2}",
            ": experiments.report2: compile: graphs cannot split a batch; set accumulate: 1 "
            "or compile: fused",
        ),
        (
            "experiments.report2={processes: 8, accumulate: 4}",
            ": experiments.report2: batch_size: 16 images are not enough for 8 processes and accumulate: 4",
        ),
        (
            "experiments.report2.deep_supervision=true",
            ": experiments.report2: network unet does not support deep_supervision; use unet_plus_plus",
        ),
        (
            "experiments.report1_bce.prediction={within_lungs: true}",
            ": experiments.report1_bce: prediction.within_lungs needs targets: [infection, lung]",
        ),
        ("experiments.combined.images=raw", ": experiments.combined.images: 'raw' is invalid"),
        (
            "experiments.report2.images=lungs/two_step_lungs",
            "images: lungs/two_step_lungs has only infection masks; set targets: [infection]",
        ),
        (
            "experiments.two_step_infection.images=lungs/nought",
            ": experiments.two_step_infection: images: 'nought' is not one of report1_bce, ",
        ),
        (
            "experiments.two_step_infection.images=lungs/report1_bce",
            ": experiments.two_step_infection: images: report1_bce does not predict lungs from whole images",
        ),
        (
            "experiments.report1_bce.images=lungs/report1_bce",
            ": experiments.report1_bce: images: report1_bce does not predict lungs from whole images",
        ),
        (
            "experiments.two_step_lungs.image_size=128",
            ": experiments.two_step_infection: image_size is 256, "
            "but two_step_lungs, which predicts its lungs, has 128",
        ),
        (
            "experiments.two_step_lungs.half=lung",
            ": experiments.two_step_infection: half is infection, "
            "but two_step_lungs, which predicts its lungs, has lung",
        ),
        (
            "experiments.report1_bce.image_size=24",
            ": experiments.report1_bce: image_size 24 must be 2, 3, ... times patch * 2^depth = 16",
        ),
        ("training.image_size=8", ": training.image_size: 8 is invalid"),
        (
            "experiments.report1_bce.half=lung",
            ": experiments.report1_bce: the lung half has no infection masks; set targets: [lung]",
        ),
        ("experiments.report1_bce.name=x", ": experiments.report1_bce.name: unknown key"),
        ("experiments.report1_bce.alpha=0.3", ": experiments.report1_bce: loss bce does not use alpha"),
        ("experiments.report1_bce_iou.alpha=null", "loss bce_iou needs alpha, which is missing"),
        ("experiments.report1_bce.targets=[lung, lung]", ".targets: a value is listed twice"),
        (
            f"experiments.whole_lung={ENTRY}",
            ": experiments.whole_lung: this is the name of a trivial predictor",
        ),
        (
            f"experiments.dataset={ENTRY}",
            ": experiments.dataset: metrics.json uses this name for the dataset",
        ),
        ("audit.correlation=0", ": audit.correlation: 0 is invalid"),
        ("audit.duplicates=remove", ": audit.duplicates: 'remove' is not one of 'report' or 'drop'"),
        (f"experiments.a b={ENTRY}", ": experiments.a b"),
        ("training.half=chest", ": training.half: 'chest' is not one of 'infection' or 'lung'"),
        ("training=", ": training: None is invalid: expected keys and values"),
        ("training.seed=100000000000000000000", ": training.seed: 100000000000000000000 is invalid"),
        ("report.figures=[0]", ": report.figures.0: 0 is invalid"),
        ("data.fingerprint=12345", ": data.fingerprint: 12345 is invalid: input should be a valid string"),
        ("data.sha256=abc", ": data.sha256: 'abc' is invalid: string should match pattern"),
        (
            "experiments.report1_bce.loss=[bce]",
            ": experiments.report1_bce.loss: ['bce'] is not one of 'batch_",
        ),
        ("training.learning_rate=.inf", ": training.learning_rate: inf is invalid: input should be a finite"),
        ("training.weight_decay=1e400", ": training.weight_decay: inf is invalid: input should be a finite"),
        ("losses.focal.gamma=.inf", ": losses.focal.gamma: inf is invalid: input should be a finite number"),
        ("training.image_size=8192", ": training.image_size: 8192 is invalid: input should be less than or"),
        ("data.fingerprint=f00", ": data.fingerprint: 'f00' is invalid: string should match pattern"),
    ],
)
def test_invalid_value_is_a_one_line_error_with_key_and_remedy(assignment: str, line: str) -> None:
    with pytest.raises(InputError) as error:
        changed(assignment)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("alpha: [1", "p.yaml: not valid YAML"),
        ("- alpha", "p.yaml: expected keys and values, found list"),
        ("alpha: 1\nalpha: 2", "p.yaml: not valid YAML"),
        ("alpha: 2026-02-31", "p.yaml: not valid YAML: day is out of range for month"),
        ("alpha: !!int half", "p.yaml: not valid YAML: invalid literal for int()"),
        ("alpha: !!bool half", "p.yaml: not valid YAML: 'half'"),
        (f"alpha: {'9' * 5000}", "p.yaml: not valid YAML: Exceeds the limit"),
        (f"alpha: {'[' * 3000}", "p.yaml: not valid YAML"),
    ],
)
def test_invalid_params_file_is_a_one_line_error(text: str, line: str) -> None:
    with pytest.raises(InputError) as error:
        parse_params(text, "p.yaml")
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key", ["alpha", "experiments", "training", "losses", "prediction", "report", "stages"]
)
def test_misspelt_key_is_reported_once(key: str) -> None:
    misspelt = f"{key[0]}{key[2]}{key[1]}{key[3:]}"
    with pytest.raises(InputError) as error:
        parse_params(TEXT.replace(f"\n{key}:", f"\n{misspelt}:"))
    assert str(error.value).startswith(f"params.yaml: {misspelt}: unknown key (did you mean {key}?)")
    assert "\n" not in str(error.value)


def test_an_unknown_key_in_a_list_of_stages_is_named() -> None:
    entry = "report2-seed0: {experiment: report2, images: packed/256}"
    text = TEXT.replace(entry, entry.replace("images", "image"), 1)
    with pytest.raises(InputError) as error:
        parse_params(text)
    assert str(error.value) == (
        "params.yaml: stages.train.report2-seed0.image: unknown key (did you mean images?); "
        "the keys here are experiment, images"
    )


def test_a_long_value_is_shortened_in_the_message() -> None:
    lungs = ", ".join(["lung"] * 1000)
    text = TEXT.replace("  half: infection", f"  half: [{lungs}]", 1)
    with pytest.raises(InputError) as error:
        parse_params(text)
    assert str(error.value).startswith("params.yaml: training.half: ['lung', 'lung', ")
    assert len(str(error.value)) < 200


ALIASES = """\
  report2: &base
    network: unet
    loss: bce
    epochs: 30
    augment: &ours {flip: 0.5}
  merged:
    <<: *base
  aliased:
    network: unet
    loss: bce
    augment: *ours
"""


@pytest.mark.parametrize("name", ["merged", "aliased"])
def test_a_change_stays_in_its_place_where_aliases_share_values(name: str) -> None:
    entry = "  report2:\n    network: unet\n    loss: bce\n    epochs: 30\n"
    assert TEXT.count(entry) == 1
    text = TEXT.replace(entry, ALIASES)
    key = f"experiments.{name}.augment.flip=0.25"
    found = parse_params(with_changes(text, {key: parse_assignment(key)})).experiments
    flips = {each: found[each].augment.flip for each in ("report2", "merged", "aliased")}
    assert flips == {"report2": 0.5, "merged": 0.5, "aliased": 0.5, name: 0.25}


@pytest.mark.parametrize("experiments", ["5", "[report2]"])
def test_experiments_that_are_no_mapping_are_an_error(experiments: str) -> None:
    """Of a preset, and of a params.yaml that a preset changes or of which experiments are kept."""
    with pytest.raises(InputError, match=r"^p: experiments: .* is invalid: expected keys and values$"):
        parse_preset(f"experiments: {experiments}", "p")
    before, after = TEXT[: TEXT.index("\nexperiments:")], TEXT[TEXT.index("\nreport:") :]
    text = f"{before}\nexperiments: {experiments}{after}"
    with pytest.raises(InputError, match=r"^params\.yaml with p: experiments: .* expected keys and values$"):
        with_changes(text, {"p": parse_preset("experiments: {report2: {loss: bce}}", "p")})
    with pytest.raises(InputError, match="experiments: 'report2' is not one of none"):
        with_changes(text, {}, ["report2"])


@pytest.mark.parametrize("assignment", ["alpha", "=1", ".a=1", "alpha=[1", "alpha=2026-02-31"])
def test_malformed_assignment_is_an_error(assignment: str) -> None:
    with pytest.raises(InputError, match=r"expected KEY=VALUE|not valid YAML"):
        parse_assignment(assignment)


def test_selections_are_those_that_are_computed() -> None:
    """The schema names them without importing NumPy."""
    assert set(get_args(params.Selection)) == set(get_args(Selection))
