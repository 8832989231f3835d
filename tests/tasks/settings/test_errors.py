"""Each invalid value is one line, with its key and what is valid."""

import pytest

from tasks.settings.changes import with_changes
from tasks.settings.params import parse_params
from tasks.support.cli import InputError
from tests.params import TEXT, changed

ENTRY = "{network: unet, loss: bce, targets: [lung], train_classes: [Normal]}"


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


def test_training_key_at_the_top_gets_a_hint() -> None:
    with pytest.raises(
        InputError, match=r": image_size: unknown key \(did you mean training\.image_size\?\)"
    ):
        changed("image_size=128")


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


def test_groups_name_experiments_once() -> None:
    for value, fault in (
        ("{A: [bset]}", r"report\.groups\.A: 'bset' is not one of report1_bce, "),
        ("{A: [combined]}", r"report\.groups\.A: combined is in 'Combination' already"),
        ("{A: []}", r"report\.groups\.A: "),
    ):
        with pytest.raises(InputError, match=fault):
            changed(f"report.groups={value}")


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
