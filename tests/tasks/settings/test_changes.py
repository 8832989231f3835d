"""Changes to params.yaml, from presets and command lines."""

from pathlib import Path

import pytest

from tasks.settings.changes import parse_assignment, parse_preset, read_preset, with_changes
from tasks.settings.params import parse_params
from tasks.support.cli import InputError
from tests.helpers import ROOT
from tests.params import TEXT, changed


def test_valid_text_is_not_changed() -> None:
    assert with_changes(TEXT, {}) == TEXT


def test_changes_keep_comments() -> None:
    text = with_changes(TEXT, {"test": {"alpha": 0.3}})
    differing = [(a, b) for a, b in zip(TEXT.splitlines(), text.splitlines(), strict=True) if a != b]
    assert len(differing) == 1
    assert differing[0][1].startswith("alpha: 0.3     # weight of BCE")


def test_null_stays_null() -> None:
    assert "\n  fingerprint: null\n" in with_changes(TEXT, {"test": {"data": {"fingerprint": None}}})


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


@pytest.mark.parametrize("assignment", ["alpha", "=1", ".a=1", "alpha=[1", "alpha=2026-02-31"])
def test_malformed_assignment_is_an_error(assignment: str) -> None:
    with pytest.raises(InputError, match=r"expected KEY=VALUE|not valid YAML"):
        parse_assignment(assignment)


PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_valid_and_keeps_comments(preset: Path) -> None:
    text = with_changes(TEXT, {str(preset): read_preset(preset)})
    parse_params(text)
    assert comments(text) == comments(TEXT)


def comments(text: str) -> list[str]:
    return [
        comment.strip()
        for _, hash_sign, comment in (s.partition("#") for s in text.splitlines())
        if hash_sign
    ]


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
  ensemble_external: {{}}
"""
    )


def test_experiments_that_are_not_kept_are_not_exported() -> None:
    params = parse_params(with_changes(TEXT, {}, ["report2"]))
    assert params.export.experiments == params.stages.export == ()
    assert params.stages.convert == {}


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
