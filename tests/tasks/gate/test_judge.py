"""Real bundles, run on the images of a tiny checkout."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tasks.audit import audit
from tasks.bundles.schema import open_bundle
from tasks.bundles.trained_on import hashes_to_text, read_hashes, shortened
from tasks.gate.judge import judge
from tasks.gate.verdict import Finding, Verdict
from tasks.gate.words import as_html, as_lines, as_markdown
from tasks.settings.changes import read_changes, with_changes
from tasks.support.cli import InputError
from tests.bundles import CHANGES, EXPERIMENTS, Pipeline
from tests.conftest import TINY
from tests.helpers import ROOT

#: Phantoms are alike, and few.
FEW = ("promotion.least_images=2", "promotion.leaks=1.0", "promotion.experiment=combined")


@pytest.fixture(scope="module")
def checkout(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of the pipeline, and params.yaml with the limits of tiny datasets."""
    folder = tmp_path_factory.mktemp("checkout")
    write_params(folder, *FEW)
    (folder / "data").symlink_to(pipeline.folder / "data")
    (folder / "artifacts").symlink_to(pipeline.folder / "artifacts")
    return folder


def write_params(folder: Path, *more: str) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    changes = read_changes(None, [*TINY, *CHANGES, *more])
    (folder / "params.yaml").write_text(with_changes(text, changes, EXPERIMENTS), encoding="utf-8")


@pytest.fixture(scope="module")
def verdict(pipeline: Pipeline, checkout: Path) -> Verdict:
    """A bundle on lungs against one on whole images."""
    return judge(pipeline.bundle("two_step_infection"), pipeline.bundle("combined"), checkout)


def found(verdict: Verdict, rule: str, images: str) -> Finding:
    (finding,) = (one for one in verdict.findings if (one.rule, one.images) == (rule, images))
    return finding


def stage_rows(pipeline: Pipeline, training: str, split: str) -> pd.DataFrame:
    rows = pd.read_csv(pipeline.out("evaluation", training) / "images.csv")
    return rows[(rows["split"] == split) & (rows["target"] == "infection")]


def test_scores_are_those_of_the_stage_evaluate(pipeline: Pipeline, verdict: Verdict) -> None:
    """The masks of a bundle are those of its first network."""
    for split in ("Val", "Test"):
        for role, training in (("challenger", "two_step_infection-seed0"), ("champion", "combined-seed0")):
            rows = stage_rows(pipeline, training, split)
            covid = rows[rows["class"] == "COVID-19"]
            finding = found(verdict, "image class", f"{split}, COVID-19")
            assert finding.count == len(covid)
            assert getattr(finding, role) == pytest.approx(covid["dice"].mean(), abs=1e-3)
            controls = rows[rows["class"] != "COVID-19"]
            for name, of_class in [("controls", controls), *controls.groupby("class")]:
                finding = found(verdict, "false alarms", f"{split}, {name}")
                assert finding.count == len(of_class)
                assert getattr(finding, role) == pytest.approx(((of_class["tp"] + of_class["fp"]) > 0).mean())


def test_val_decides_and_test_is_reported(verdict: Verdict) -> None:
    for finding in verdict.findings:
        assert finding.decides == (not finding.images.startswith("Test"))
        assert (finding.passed is None) == finding.images.startswith("Test")
    assert [one.images for one in verdict.left_out] == ["Val", "Test"]
    assert [(one.either, one.judged) for one in verdict.left_out] == [(0, 8), (0, 9)]


def test_a_bundle_is_not_better_than_itself(pipeline: Pipeline, checkout: Path) -> None:
    bundle = pipeline.bundle("combined")
    verdict = judge(bundle, bundle, checkout)
    main = found(verdict, "main score", "Val, all")
    assert (verdict.outcome, main.difference, main.passed) == ("failed", 0.0, False)
    assert found(verdict, "image class", "Val, COVID-19").passed
    assert verdict.challenger == verdict.champion
    assert "Challenger and champion are the same bundle." in verdict.notes


def test_the_first_champion_needs_parity_and_a_clean_audit(pipeline: Pipeline, checkout: Path) -> None:
    verdict = judge(pipeline.bundle("combined"), None, checkout)
    assert verdict.passed and verdict.champion is None
    assert [one.rule for one in verdict.findings if one.decides] == ["parity", "parity", "audit"]
    assert as_lines(verdict).startswith("The challenger may be the first champion.\n")


def test_a_verdict_is_read_as_it_was_written(verdict: Verdict, tmp_path: Path) -> None:
    file = tmp_path / "verdict.json"
    file.write_text(verdict.to_json())
    assert Verdict.read(file) == verdict
    file.write_text("[]")
    with pytest.raises(InputError, match="not a verdict"):
        Verdict.read(file)


def test_the_text_has_a_line_for_each_finding(verdict: Verdict) -> None:
    lines, table = as_lines(verdict).splitlines(), as_markdown(verdict).splitlines()
    for finding in verdict.findings:
        assert sum(line.startswith(finding.rule) and f"  {finding.images} " in line for line in lines) == 1
        assert sum(line.startswith(f"| {finding.rule} | {finding.images} |") for line in table) == 1


def test_the_page_has_the_result_beside_the_rule() -> None:
    """The result would be beyond the edge of a phone's screen in the last column."""
    limits: dict[str, Any] = {"low": -0.024, "high": 0.0001, "bound": -0.02, "limit": "low above"}
    scores: dict[str, Any] = {"champion": 0.7121, "challenger": 0.7001, "difference": -0.012}
    failed = Finding(rule="image class", images="Val, COVID-19", count=1466, passed=False, **limits, **scores)
    reported = Finding(rule="main score", images="Test, all", count=1166, decides=False)
    verdict = Verdict(
        outcome="failed", challenger="a", champion="b", target="infection", selection="balanced",
        findings=(failed, reported), left_out=(),
    )  # fmt: skip
    page = as_html(verdict, "combined, judged against v3")
    assert '<th scope="row">Image class</th><td class="bad">FAILED</td><td>Val, COVID-19</td>' in page
    assert '<td class="number">1,466</td>' in page
    assert '<td class="number">−0.0120 (−0.0240 to +0.0001)</td>' in page
    assert '<tr class="level"><th scope="row">Main score</th><td>reported</td><td>Test, all</td>' in page
    assert "The main score is the balanced score; false alarms are the share of controls" in page


# --- bundles that say what they were trained on -------------------------------------------------------------


@pytest.fixture
def changed(pipeline: Pipeline, tmp_path: Path) -> Path:
    """A copy of a bundle, to be changed."""
    return Path(shutil.copytree(pipeline.bundle("combined"), tmp_path / "bundle"))


def rewrite(bundle: Path, **values: Any) -> None:
    file = bundle / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_bundle_holds_the_hashes_of_its_training_images(pipeline: Pipeline) -> None:
    table = pd.read_csv(pipeline.packed / "images.csv")
    train = table[(table["half"] == "infection") & (table["split"] == "Train")]
    for name in EXPERIMENTS:
        bundle = open_bundle(pipeline.bundle(name))
        hashes = read_hashes(pipeline.bundle(name) / "trained-on.txt")
        assert hashes == set(train["sha256"].map(shortened))
        assert bundle.trained_on and bundle.trained_on.complete
        assert bundle.trained_on.images == len(hashes) == 28


def test_images_that_a_network_was_trained_on_are_left_out_and_counted(
    pipeline: Pipeline, checkout: Path, changed: Path
) -> None:
    """Of a champion that was trained on two Val images."""
    from hashlib import sha256

    table = pd.read_csv(pipeline.packed / "images.csv")
    val = table[(table["half"] == "infection") & (table["split"] == "Val")]
    seen = val[val["class"] == "COVID-19"].iloc[:2]
    text = hashes_to_text(set(seen["sha256"].map(shortened)))
    (changed / "trained-on.txt").write_text(text)
    record = {"images": 2, "complete": True, "sha256": sha256(text.encode()).hexdigest()}
    rewrite(changed, trained_on=record)
    verdict = judge(pipeline.bundle("two_step_infection"), changed, checkout)
    of_val, of_test = verdict.left_out
    assert (of_val.challenger, of_val.champion, of_val.either, of_val.judged) == (0, 2, 2, 6)
    assert (of_test.either, of_test.judged) == (0, 9)
    assert found(verdict, "image class", "Val, COVID-19").count == 2
    assert "Val: 2 of 8 images left out" in as_lines(verdict)


def test_a_bundle_of_an_older_version_does_not_say_what_it_was_trained_on(
    pipeline: Pipeline, checkout: Path, changed: Path
) -> None:
    content = json.loads((changed / "bundle.json").read_text())
    del content["trained_on"]
    (changed / "bundle.json").write_text(json.dumps(content | {"schema_version": 1}))
    (changed / "trained-on.txt").unlink()
    verdict = judge(pipeline.bundle("two_step_infection"), changed, checkout)
    assert any(note.startswith("The champion does not say which images") for note in verdict.notes)
    assert all(one.either == 0 for one in verdict.left_out)


def test_a_network_that_predicts_otherwise_as_onnx_fails(checkout: Path, changed: Path) -> None:
    content = json.loads((changed / "bundle.json").read_text())
    content["main"]["networks"][1]["parity"]["probability"] = 0.5
    (changed / "bundle.json").write_text(json.dumps(content))
    verdict = judge(changed, None, checkout)
    assert verdict.outcome == "failed"
    assert "differ by up to 0.5" in found(verdict, "parity", "combined-seed1").reason
    assert found(verdict, "parity", "combined-seed0").passed


# --- checkouts ----------------------------------------------------------------------------------------------


def test_leaks_beyond_the_limit_fail(pipeline: Pipeline, tmp_path: Path) -> None:
    """Nearly all phantoms are alike at a correlation of 0.5."""
    write_params(tmp_path, *FEW, "promotion.leaks=0.01", "audit.correlation=0.5")
    (tmp_path / "data").symlink_to(pipeline.folder / "data")
    params = pipeline.params.audit.model_copy(update={"correlation": 0.5})
    audit(pipeline.raw, pipeline.packed, tmp_path / "artifacts" / "audit", params, published=False)
    verdict = judge(pipeline.bundle("combined"), None, tmp_path)
    finding = found(verdict, "audit", "Val and Test")
    assert (verdict.outcome, finding.passed) == ("failed", False)
    assert "duplicate a training image" in finding.reason


def test_a_checkout_without_results_is_an_input_error(pipeline: Pipeline, tmp_path: Path) -> None:
    write_params(tmp_path)
    with pytest.raises(InputError, match=r"no such file; run `dvc repro`"):
        judge(pipeline.bundle("combined"), None, tmp_path)


def test_a_bundle_that_does_not_predict_the_target_is_an_input_error(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    write_params(tmp_path, "promotion.target=lung")
    with pytest.raises(InputError, match="does not predict lung"):
        judge(pipeline.bundle("two_step_infection"), None, tmp_path)
