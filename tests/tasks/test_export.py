import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.bundles.schema import open_bundle
from tasks.comparison.document import Document
from tasks.export import export
from tasks.reporting.limitations import limitations
from tasks.support.cli import InputError
from tests.bundles import Pipeline
from tests.helpers import made


def test_a_bundle_holds_the_networks_of_all_seeds(pipeline: Pipeline) -> None:
    bundle = open_bundle(pipeline.bundle("combined"))
    assert [network.training for network in bundle.main.networks] == ["combined-seed0", "combined-seed1"]
    assert bundle.lungs is None
    assert bundle.main.targets == ("infection", "lung")
    assert bundle.main.prediction == pipeline.params.experiments["combined"].prediction
    settings = json.loads((pipeline.out("evaluation", "combined-seed1") / "settings.json").read_text())
    points = bundle.main.networks[1].operating_points
    assert {target: point.threshold for target, point in points.items()} == settings["thresholds"]
    assert {target: point.presence for target, point in points.items()} == settings["presence"]


def test_a_bundle_on_predicted_lungs_holds_the_network_that_predicts_them(pipeline: Pipeline) -> None:
    bundle = open_bundle(pipeline.bundle("two_step_infection"))
    assert bundle.lungs is not None
    assert [network.training for network in bundle.lungs.networks] == ["two_step_lungs-seed0"]
    assert bundle.main.targets == ("infection",)


def test_scores_are_those_of_the_comparison(pipeline: Pipeline) -> None:
    bundle = open_bundle(pipeline.bundle("combined"))
    document = Document.read(pipeline.out("comparison") / "comparison.json")
    section = next(found for found in document.sections if found.target == "infection")
    score = section.main.row("combined").scores["iou"]
    (found,) = (
        one
        for one in bundle.scores
        if (one.target, one.image_set, one.metric) == ("infection", "covid", "iou")
    )
    assert score.interval is not None
    assert (found.value, found.low, found.high) == (score.value, score.interval.low, score.interval.high)
    card = (pipeline.bundle("combined") / "card.md").read_text()
    assert f"{score.value:.3f} ({score.interval.low:.3f} to {score.interval.high:.3f})" in card
    assert "Research use only" in card
    assert "All images are synthetic" in card


def test_limitations_are_those_of_the_bundle(pipeline: Pipeline) -> None:
    """Not those of other experiments of the run."""
    document = Document.read(pipeline.out("comparison") / "comparison.json")
    document = document.model_copy(update={"phantoms": False})
    in_steps = {
        name: any("In two steps" in sentence for sentence in limitations(document, [name]))
        for name in ("combined", "two_step_infection")
    }
    assert in_steps == {"combined": False, "two_step_infection": True}
    assert any("In two steps" in sentence for sentence in limitations(document))


def test_exporting_again_gives_the_same_bytes(pipeline: Pipeline, tmp_path: Path) -> None:
    export("combined", pipeline.out("comparison"), pipeline.outputs, tmp_path / "again")
    assert made(tmp_path / "again") == made(pipeline.bundle("combined"))


def test_no_path_of_this_machine_is_in_a_bundle(pipeline: Pipeline) -> None:
    for content in made(pipeline.bundle("two_step_infection")).values():
        assert str(pipeline.folder).encode() not in content


def test_an_unknown_experiment_is_an_input_error(pipeline: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'other' is not one of its experiments"):
        export("other", pipeline.out("comparison"), pipeline.outputs, tmp_path / "out")


def flip_a_byte(folder: Path) -> None:
    file = folder / "networks" / "combined-seed0" / "network.onnx"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def change(folder: Path, **values: Any) -> None:
    file = folder / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def replace(folder: Path, pattern: str, text: str) -> None:
    file = folder / "bundle.json"
    changed, count = re.subn(pattern, text, file.read_text(), count=1)
    assert count
    file.write_text(changed)


def without_lungs(folder: Path) -> dict[str, Any]:
    """The main step, without its target lung."""
    step: dict[str, Any] = json.loads((folder / "bundle.json").read_text())["main"]
    return step | {"targets": ["infection"]}


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no bundle.json": (lambda folder: (folder / "bundle.json").unlink(), "not a bundle"),
    "not JSON": (lambda folder: (folder / "bundle.json").write_text("{"), "not valid JSON"),
    "deep JSON": (lambda folder: (folder / "bundle.json").write_text("[" * 10**6), "not valid JSON"),
    "a list": (lambda folder: (folder / "bundle.json").write_text("[]"), "schema_version is None"),
    "newer": (lambda folder: change(folder, schema_version=3), "schema_version is 3, but this version"),
    "a long version": (lambda folder: change(folder, schema_version="2" * 9999), "schema_version is '2222"),
    "a true version": (lambda folder: change(folder, schema_version=True), "schema_version is True"),
    "a long number": (
        lambda folder: (folder / "bundle.json").write_text(f'{{"schema_version": {"9" * 5000}}}'),
        "not valid JSON",
    ),
    "a threshold that is no number": (
        lambda folder: replace(folder, r'"threshold": [\d.]+', '"threshold": NaN'),
        "threshold: Input should be a finite number",
    ),
    "lungs that are not predicted": (
        lambda folder: change(folder, lungs=without_lungs(folder)),
        "its step lungs predicts no lungs",
    ),
    "another key": (lambda folder: change(folder, more=1), "more: Extra inputs"),
    "a path as a name": (lambda folder: change(folder, name="../../etc"), "name: String should match"),
    "another network": (flip_a_byte, "not the file that bundle.json describes"),
    "a missing file": (lambda folder: (folder / "fingerprint.npz").unlink(), "is missing"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_bundle_is_an_input_error(fault: str, pipeline: Pipeline, tmp_path: Path) -> None:
    for name, content in made(pipeline.bundle("combined")).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    open_bundle(tmp_path)
    breaks, message = BROKEN[fault]
    breaks(tmp_path)
    with pytest.raises(InputError, match=message) as raised:
        open_bundle(tmp_path)
    assert "\n" not in str(raised.value)
