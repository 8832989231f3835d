import inspect
from pathlib import Path
from typing import get_args

import pytest

from models.losses import LOSSES
from models.networks import NETWORKS
from tasks import params
from tasks.baselines import PREDICTORS
from tasks.cli import InputError
from tasks.params import load_params, parse_assignment, parse_params, read_preset, with_changes

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")

ENTRY = "{network: unet, loss: bce, targets: [lung], train_classes: [Normal]}"


def changed(*assignments: str) -> params.Params:
    return parse_params(with_changes(TEXT, {a: parse_assignment(a) for a in assignments}))


def test_changes_are_judged_together_in_any_order() -> None:
    assignments = ["image_size=24", "training.depth=2"]
    assert changed(*assignments) == changed(*reversed(assignments))


def test_what_was_wrong_before_a_change_is_not_the_change_s_fault(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^params.yaml: not valid YAML"):
        with_changes("alpha: [", {"x": {"alpha": 1}})
    with pytest.raises(InputError, match=r"^params.yaml: expected keys and values"):
        with_changes("", {"x": {"alpha": 1}})
    (tmp_path / "latin.yaml").write_bytes("# caf\xe9".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.yaml: not UTF-8 text"):
        read_preset(tmp_path / "latin.yaml")


def test_words_are_those_of_the_registries() -> None:
    assert get_args(params.Network) == tuple(NETWORKS)
    assert get_args(params.Loss) == tuple(LOSSES)
    with_alpha = {name for name, loss in LOSSES.items() if "alpha" in inspect.signature(loss).parameters}
    assert with_alpha == params.LOSSES_WITH_ALPHA
    assert set(PREDICTORS) == params.BASELINES


def test_report_1_stands_in_params_with_its_settings() -> None:
    experiments = load_params(ROOT / "params.yaml").plans
    assert [experiments[name].loss for name in ("report1_bce", "report1_bce_iou")] == ["bce", "bce_iou"]
    for name in ("report1_bce", "report1_bce_iou"):
        plan = experiments[name]
        assert (plan.network, plan.targets, plan.image_size, plan.epochs) == (
            "residual_unet",
            ("infection",),
            256,
            100,
        )


@pytest.mark.parametrize("preset", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_fits(preset: Path) -> None:
    parse_params(with_changes(TEXT, {str(preset): read_preset(preset)}))


def test_an_experiment_overrides_what_is_shared() -> None:
    plans = changed(
        "epochs=7", "experiments.report1_bce.epochs=3", "experiments.report1_bce.width=8"
    ).experiments
    assert (plans["report1_bce"].epochs, plans["report1_bce_iou"].epochs) == (3, 7)
    assert (plans["report1_bce"].width, plans["report1_bce_iou"].width) == (8, 64)


def test_alpha_stands_in_the_plans_of_losses_that_read_it_alone() -> None:
    before, after = changed("alpha=0.5").plans, changed("alpha=0.3").plans
    assert before["report1_bce"] == after["report1_bce"]
    assert before["report1_bce"].alpha is None
    assert (before["report1_bce_iou"].alpha, after["report1_bce_iou"].alpha) == (0.5, 0.3)


def test_a_plan_survives_its_json() -> None:
    for plan in load_params(ROOT / "params.yaml").plans.values():
        assert params.Plan.from_json(plan.to_json()) == plan


def test_changes_keep_comments() -> None:
    text = with_changes(TEXT, {"test": {"alpha": 0.3}})
    differing = [(a, b) for a, b in zip(TEXT.splitlines(), text.splitlines(), strict=True) if a != b]
    assert len(differing) == 1
    assert differing[0][1].startswith("alpha: 0.3    # weight of BCE")


def test_null_stays_null() -> None:
    assert "\n  fingerprint: null\n" in with_changes(TEXT, {"test": {"data": {"fingerprint": None}}})


def test_a_pin_is_refused_for_phantoms_and_the_demo_takes_it_away() -> None:
    pin = f"data.fingerprint=f{31 * '0'}"
    with pytest.raises(InputError, match=r": data: phantom:// never changes .* set data\.fingerprint=null$"):
        changed(pin, "data.source=phantom://9")
    pinned = with_changes(TEXT, {pin: parse_assignment(pin)})
    demo = with_changes(pinned, {"demo": read_preset(ROOT / "presets" / "demo.yaml")})
    assert parse_params(demo).data.fingerprint is None


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
        ("alpha=1.5", ": alpha: 1.5 won't do: input should be less than or equal to 1"),
        ("alpha=half", ": alpha: 'half' won't do: input should be a valid number"),
        ("epochs=0", ": epochs: 0 won't do: input should be greater than or equal to 1"),
        ("epochs=true", ": epochs: True won't do: input should be a valid integer"),
        (
            "experiments.report1_bce.loss=bec",
            "experiments.report1_bce.loss: 'bec' is not one of 'bce' or 'bce_iou'",
        ),
        ("experiments.report1_bce.network=vnet", "'vnet' is not one of 'unet' or 'residual_unet'"),
        ("experiments.report1_bce=bce", "experiments.report1_bce: 'bce' won't do: expected keys and values"),
        ("data=zip", ": data: 'zip' won't do: expected keys and values"),
        ("image_size=24", ": experiments.report1_bce: image_size 24 is not 2, 3, ... times 2^depth = 16"),
        ("experiments.report1_bce.image_size=128", ": experiments.report1_bce.image_size: unknown key"),
        ("experiments.report1_bce.half=lung", ": experiments.report1_bce.half: unknown key"),
        ("experiments.report1_bce.name=x", ": experiments.report1_bce.name: unknown key"),
        ("experiments.report1_bce.alpha=0.3", ": experiments.report1_bce: loss bce reads no alpha"),
        ("experiments.report1_bce_iou.alpha=null", "loss bce_iou reads alpha, which is missing"),
        ("experiments.report1_bce.targets=[lung, lung]", ".targets: a word stands there twice"),
        (f"experiments.whole_lung={ENTRY}", ": experiments.whole_lung: a trivial predictor has this name"),
        (f"experiments.a b={ENTRY}", ": experiments.a b"),
        ("half=chest", ": half: 'chest' is not one of 'infection' or 'lung'"),
        ("training=", ": training: None won't do: expected keys and values"),
        ("training.seed=100000000000000000000", ": training.seed: 100000000000000000000 won't do"),
        ("report.figures=[0]", ": report.figures.0: 0 won't do"),
        ("data.fingerprint=12345", ": data.fingerprint: 12345 won't do: input should be a valid string"),
        ("data.fingerprint=f00", ": data.fingerprint: 'f00' won't do: string should match pattern"),
    ],
)
def test_a_wrong_word_gets_one_line_with_place_and_remedy(assignment: str, line: str) -> None:
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
    ],
)
def test_what_is_no_params_file_is_refused_in_one_line(text: str, line: str) -> None:
    with pytest.raises(InputError) as error:
        parse_params(text, "p.yaml")
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["alpha", "half", "experiments", "training", "report"])
def test_a_misspelt_key_is_one_fault_not_two(key: str) -> None:
    misspelt = f"{key[0]}{key[2]}{key[1]}{key[3:]}"
    with pytest.raises(InputError) as error:
        parse_params(TEXT.replace(f"\n{key}:", f"\n{misspelt}:"))
    assert str(error.value).startswith(f"params.yaml: {misspelt}: unknown key (did you mean {key}?)")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("assignment", ["alpha", "=1", ".a=1", "alpha=[1"])
def test_a_malformed_assignment_is_refused(assignment: str) -> None:
    with pytest.raises(InputError, match=r"expected KEY=VALUE|not valid YAML"):
        parse_assignment(assignment)
