"""The section `external` of params.yaml, and the stages that follow from it."""

import json
from typing import Any

import pytest

from tasks.settings.changes import with_changes
from tasks.settings.params import parse_params
from tasks.support.cli import InputError
from tests.params import TEXT, changed

LUNG: dict[str, Any] = {"images": "{name}.png", "lung": "{name}_m.png", "classes": "Normal"}
INFECTION = {"images": "{name}.png", "infection": "{name}_m.png", "classes": "COVID-19"}


def entry(layout: dict[str, Any] | None = None, **others: Any) -> str:
    return json.dumps({"source": "x", **({"layout": layout} if layout else {}), **others})


def test_without_datasets_there_are_no_stages() -> None:
    stages = changed().stages
    assert stages.external == stages.preprocess_external == {}
    assert stages.lungs_external == stages.evaluate_external == stages.ensemble_external == {}


def test_an_experiment_is_scored_where_a_mask_is_one_that_it_predicts() -> None:
    params = changed(
        f"external.lungs={entry(LUNG)}",
        f"external.ill={entry(INFECTION)}",
        keep=("report1_bce", "two_step_infection"),
    )
    assert params.scored_on("lungs") == ["two_step_lungs-seed0"]
    assert params.scored_on("ill") == ["report1_bce-seed0", "two_step_infection-seed0"]
    stages = params.stages
    assert stages.evaluate_external["ill-two_step_infection-seed0"].images == "ill/lungs/two_step_lungs"
    assert stages.evaluate_external["lungs-two_step_lungs-seed0"].images == "lungs/packed/256"
    assert {name: stage.training for name, stage in stages.lungs_external.items()} == {
        "ill-two_step_lungs": "two_step_lungs-seed0"
    }
    assert {name: stage.image_size for name, stage in stages.external.items()} == {"lungs": 256, "ill": 256}


def test_each_seed_is_scored_and_each_image_size_packed_once() -> None:
    params = changed(
        f"external.ill={entry(INFECTION)}",
        "experiments.report1_bce.seeds=2",
        "experiments.report1_bce_iou.image_size=128",
        keep=("report1_bce", "report1_bce_iou"),
    )
    assert params.stages.preprocess_external.keys() == {"ill-256", "ill-128"}
    assert len(params.stages.evaluate_external) == 3
    assert params.stages.ensemble_external == {}


def test_an_ensemble_is_scored_too() -> None:
    params = changed(
        f"external.ill={entry(INFECTION)}",
        "experiments.report1_bce.seeds=3",
        "experiments.report1_bce.prediction.ensemble=seeds",
        "experiments.report1_bce_iou.folds=2",
        keep=("report1_bce", "report1_bce_iou"),
    )
    stages = params.stages.ensemble_external
    assert stages.keys() == {"ill-report1_bce", "ill-report1_bce_iou"}
    found = stages["ill-report1_bce"]
    assert (found.first, found.last) == ("report1_bce-seed0", "report1_bce-seed2")
    assert (found.images, stages["ill-report1_bce_iou"].last) == ("ill/packed/256", "report1_bce_iou-fold1")


def test_a_dataset_whose_masks_nothing_predicts_has_no_stages() -> None:
    params = changed(f"external.lungs={entry(LUNG)}", keep=("report1_bce",))
    assert params.stages.external == params.stages.evaluate_external == {}


def test_a_changed_source_loses_its_own_pin_only() -> None:
    pin = "f" + 31 * "0"
    text = with_changes(
        TEXT,
        {
            "a": {"external": {"one": json.loads(entry(LUNG, fingerprint=pin))}},
            "b": {"external": {"two": json.loads(entry(LUNG, fingerprint=pin))}},
        },
    )
    params = parse_params(with_changes(text, {"c": {"external": {"one": {"source": "elsewhere"}}}}))
    assert params.external["one"].fingerprint is None
    assert params.external["two"].fingerprint == pin
    assert params.data.sha256


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("a-b", entry(LUNG), "external.a-b"),
        (
            "a",
            entry({**LUNG, "splits": {"val": 0.1, "test": 0.2}}),
            "external.a.layout: splits: nothing is trained",
        ),
        (
            "a",
            entry({**LUNG, "splits": {"names": {"x": "Test"}}}),
            "external.a.layout: splits.names: neither",
        ),
        ("a", entry({**LUNG, "classes": None}), "external.a.layout"),
        ("a", entry({"images": "{name}.png", "classes": "Normal"}), "external.a.layout: lung and infection"),
        ("a", entry(LUNG, sorce="y"), "external.a.sorce: unknown key (did you mean source?)"),
        ("a", '{"layout": null}', "external.a.source: this key is missing"),
        ("a", entry(LUNG, source="https://me:secret@host/x.zip"), "params.yaml must not contain credentials"),
    ],
)
def test_a_wrong_entry_is_named(name: str, value: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        changed(f"external.{name}={value}")
    assert said in str(error.value)


def test_the_error_about_a_missing_section_names_the_command() -> None:
    with pytest.raises(InputError, match=r"external: this key is missing; .* --set external=\{\}"):
        parse_params(TEXT.replace("\nexternal: {}", "", 1))
