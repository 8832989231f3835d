"""The project's own params.yaml."""

from models.augmentation import Strength
from tasks.settings.experiments import Plan
from tasks.settings.params import load_params, parse_params
from tests.helpers import ROOT
from tests.params import TEXT, changed


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


def differing(one: Plan, other: Plan) -> set[str]:
    names = set(Plan.model_fields) - {"name", "experiment", "loss_options"}
    return {name for name in names if getattr(one, name) != getattr(other, name)}


def test_second_step_uses_the_lungs_of_the_first() -> None:
    experiments = load_params(ROOT / "params.yaml").experiments
    assert experiments["two_step_lungs"].targets == ("lung",)
    assert experiments["two_step_infection"].lungs_from == "two_step_lungs"
    assert experiments["two_step_lungs"].lungs_from is None


def test_params_without_a_promotion_have_its_limits_and_promote_nothing() -> None:
    before, _, rest = TEXT.partition("\npromotion:\n")
    promotion = parse_params(before + "\n# Lists" + rest.partition("\n# Lists")[2]).promotion
    assert promotion == changed("promotion.experiment=null").promotion
