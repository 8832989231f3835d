"""Comparisons with a base revision, in a real repository whose data DVC tracks."""

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows.comparison import Change, as_lines, as_rows, compare_with
from flows.repository.git import git
from flows.repository.revision import Training
from tasks.scoring.intervals import Interval
from tasks.scoring.verdict import Verdict
from tasks.settings.changes import with_changes
from tasks.settings.params import parse_params
from tests.helpers import ROOT, Repository, empty_repository, trainings_of

IMAGES = 60
NAME = "report1_bce"
DICE = np.random.default_rng(3).beta(5, 2, IMAGES) * 0.9


@pytest.fixture(scope="module")
def trainings() -> dict[str, Training]:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    return trainings_of(parse_params(with_changes(text, {}, [NAME])))


def table(dice: np.ndarray, half: str = "infection") -> pd.DataFrame:
    """The Val rows of a training whose marked pixels are all inside the reference masks of 100 pixels."""
    tp = 100 * dice / (2 - dice)
    ids = [f"{half}/Val/COVID-19/covid_{number}" for number in range(len(dice))]
    rows = pd.DataFrame({"seed": 0, "split": "Val", "target": "infection", "id": ids, "class": "COVID-19"})
    return rows.assign(tp=tp, fp=0.0, fn=100 - tp, tn=900.0, iou=tp / 100, dice=dice)


def metrics(test_dice: float = 0.5) -> dict[str, object]:
    scores = {"covid": {"iou": test_dice / 2, "dice": test_dice, "images": 7}}
    return {"val": {"infection": scores}, "test": {"infection": scores}}


def write(repository: Repository, tables: dict[str, pd.DataFrame], found: dict[str, object]) -> None:
    """Write the evaluations of trainings, and metrics.json."""
    for training, rows in tables.items():
        folder = repository.folder / "artifacts" / "evaluation" / training
        folder.mkdir(parents=True, exist_ok=True)
        rows.to_csv(folder / "images.csv", index=False)
        (folder / "settings.json").write_text("{}")
    (repository.folder / "metrics.json").write_text(json.dumps(found))


def commit(repository: Repository) -> str:
    """Have DVC track each evaluation, as an output of a stage, and return the commit."""
    trainings = [path.name for path in (repository.folder / "artifacts" / "evaluation").iterdir()]
    stages = {
        f"evaluate-{name}": {"cmd": "true", "outs": [f"artifacts/evaluation/{name}"]} for name in trainings
    }
    (repository.folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    repository.run("dvc", "commit", "--force", "--quiet")
    repository.commit("results")
    return git(repository.folder, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return empty_repository(tmp_path_factory.mktemp("comparison") / "empty")


@pytest.fixture
def repository(empty: Repository, tmp_path: Path) -> Repository:
    return Repository(Path(shutil.copytree(empty.folder, tmp_path / "repository")))


Compare = Callable[[pd.DataFrame, pd.DataFrame], Change]


@pytest.fixture
def compare(repository: Repository, trainings: dict[str, Training]) -> Compare:
    """Compare a run's rows with those of a base that is committed."""

    def compare(run: pd.DataFrame, base: pd.DataFrame) -> Change:
        write(repository, {f"{NAME}-seed0": base}, {NAME: metrics(0.4)})
        revision = commit(repository)
        write(repository, {f"{NAME}-seed0": run}, {NAME: metrics(0.6)})
        (change,) = compare_with(repository.folder, revision, trainings)
        return change

    return compare


def test_the_val_images_decide_and_test_scores_are_shown(compare: Compare) -> None:
    change = compare(table(DICE + 0.01), table(DICE))
    assert change.verdict.word == "better"
    assert change.verdict.difference
    assert change.verdict.difference.value == pytest.approx(0.01)
    assert not change.verdict.covers_training
    assert (change.experiment, change.target, change.selection) == (NAME, "infection", "balanced")
    assert (change.test, change.test_before) == ({"iou": 0.3, "dice": 0.6}, {"iou": 0.2, "dice": 0.4})


def test_a_change_in_the_fifth_digit_is_no_significant_difference(compare: Compare) -> None:
    noise = np.random.default_rng(4).normal(0, 0.01, IMAGES)
    change = compare(table(DICE + 0.00009 + noise - noise.mean()), table(DICE))
    assert change.verdict.word == "no significant difference"
    assert change.verdict.difference
    assert change.verdict.difference.value == pytest.approx(0.00009)


def test_identical_rows_are_the_same(compare: Compare) -> None:
    assert compare(table(DICE), table(DICE)).verdict.word == "same"


def test_a_base_with_test_rows_only_is_not_comparable(compare: Compare) -> None:
    change = compare(table(DICE), table(DICE).drop(columns="split"))
    assert change.verdict.word == "not comparable"
    assert change.verdict.challenger == pytest.approx(DICE.mean())
    reason = "the base: no Val rows in images.csv, which an older stage evaluate wrote"
    assert change.verdict.reason == reason


def test_folds_are_compared_with_folds_and_not_with_val(
    repository: Repository, trainings: dict[str, Training]
) -> None:
    """Each of three networks is scored on the images that it did not see."""
    (training,) = trainings.values()
    of_folds = {f"{NAME}-fold{fold}": training for fold in range(3)}

    def tables(dice: np.ndarray) -> dict[str, pd.DataFrame]:
        rows = table(dice)
        return {name: rows[rows.index % 3 == fold].assign(seed=fold) for fold, name in enumerate(of_folds)}

    write(repository, tables(DICE), {NAME: metrics(0.4)})
    revision = commit(repository)
    write(repository, tables(DICE + 0.01), {NAME: metrics(0.6)})
    (change,) = compare_with(repository.folder, revision, of_folds)
    assert change.verdict.word == "better"
    assert change.verdict.difference == pytest.approx((0.01, 0.01, 0.01))
    write(repository, {f"{NAME}-seed0": table(DICE[:20])}, {NAME: metrics(0.6)})
    (change,) = compare_with(repository.folder, revision, trainings)
    assert change.verdict.reason == f"other images: 20 of {IMAGES} are in both"


def test_other_images_are_not_comparable(compare: Compare) -> None:
    change = compare(table(DICE), table(DICE, half="lung"))
    assert change.verdict.reason == f"other images: 0 of {2 * IMAGES} are in both"


@pytest.mark.parametrize("found", [{}, {"another": metrics()}, {NAME: {"test": {"lung": {}}}}])
def test_an_experiment_or_target_that_the_base_lacks_is_new(
    found: dict[str, object], repository: Repository, trainings: dict[str, Training]
) -> None:
    write(repository, {f"{NAME}-seed0": table(DICE).assign(target="lung")}, found)
    revision = commit(repository)
    write(repository, {f"{NAME}-seed0": table(DICE)}, {NAME: metrics()})
    (change,) = compare_with(repository.folder, revision, trainings)
    assert change.verdict == Verdict("new", change.verdict.challenger)
    assert change.verdict.challenger == pytest.approx(DICE.mean())
    assert change.test_before == {}


def test_metrics_of_early_revisions_have_targets_without_splits(
    repository: Repository, trainings: dict[str, Training]
) -> None:
    write(repository, {"report1_bce": table(DICE)}, {NAME: {"infection": {"covid": {"iou": 0.2}}}})
    revision = commit(repository)
    write(repository, {f"{NAME}-seed0": table(DICE)}, {NAME: metrics()})
    (change,) = compare_with(repository.folder, revision, trainings)
    assert change.verdict.reason == "the base: it has no scores of single images"
    assert change.test_before == {"iou": 0.2}


def test_a_run_without_val_rows_is_not_comparable(compare: Compare) -> None:
    verdict = compare(table(DICE).drop(columns="split"), table(DICE)).verdict
    assert math.isnan(verdict.challenger)
    assert verdict.reason.startswith("this run: no Val rows")


# --- data of the base that is not in the cache --------------------------------------------------------------


def test_data_that_is_nowhere_is_not_comparable_within_seconds(
    repository: Repository, compare: Compare, trainings: dict[str, Training]
) -> None:
    compare(table(DICE + 0.01), table(DICE))
    shutil.rmtree(repository.folder / ".dvc" / "cache")
    start = time.monotonic()
    (change,) = compare_with(repository.folder, "HEAD", trainings)
    assert time.monotonic() - start < 20
    nowhere = "the base: its scores of single images are neither in the DVC cache nor on the DVC remote"
    assert change.verdict.reason == nowhere


def test_data_on_the_remote_is_read_from_there(
    repository: Repository, compare: Compare, trainings: dict[str, Training], tmp_path: Path
) -> None:
    compare(table(DICE + 0.01), table(DICE))
    # The remote is configured after the base was committed.
    repository.run("dvc", "remote", "add", "--local", "--default", "beside", str(tmp_path / "remote"))
    shutil.move(repository.folder / ".dvc" / "cache", tmp_path / "remote")
    (change,) = compare_with(repository.folder, "HEAD", trainings)
    assert change.verdict.word == "better"


def test_a_fault_of_the_remote_is_the_reason(
    repository: Repository, compare: Compare, trainings: dict[str, Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(table(DICE + 0.01), table(DICE))
    shutil.rmtree(repository.folder / ".dvc" / "cache")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "wrong")
    repository.run("dvc", "remote", "add", "--local", "--default", "gone", "s3://bucket/project")
    repository.run("dvc", "remote", "modify", "--local", "gone", "endpointurl", "http://127.0.0.1:9")
    (change,) = compare_with(repository.folder, "HEAD", trainings)
    assert change.verdict.reason.startswith("the base: its scores of single images could not be read: ")
    assert "127.0.0.1:9" in change.verdict.reason


# --- how they are shown -------------------------------------------------------------------------------------


def change(verdict: Verdict, test_before: dict[str, float] | None = None) -> Change:
    test = {"iou": 0.6, "dice": 0.7}
    return Change("net", "infection", "balanced", verdict, test, test_before or {})


BETTER = Verdict("better", 0.7, 0.6, Interval(0.1, 0.05, 0.15), covers_training=True)


def test_a_row_names_the_base_and_shows_the_interval() -> None:
    (row,) = as_rows([change(BETTER, {"iou": 0.5, "dice": 0.65})], "main (abc)")
    assert row == {
        "experiment": "net",
        "target": "infection",
        "Val score": "balanced",
        "this run": "0.7000",
        "main (abc)": "0.6000",
        "difference (95% interval)": "+0.1000 (+0.0500 to +0.1500)",
        "verdict": "▲ better",
        "Test IoU": "0.6000 (0.5000)",
        "Test Dice": "0.7000 (0.6500)",
    }


@pytest.mark.parametrize(
    ("verdict", "difference", "words"),
    [
        (
            BETTER._replace(covers_training=False),
            "+0.1000 (+0.0500 to +0.1500)",
            "▲ better (training variation not included)",
        ),
        (BETTER._replace(word="same"), "0", "same"),
        (Verdict("new", 0.7), "–", "new"),
        (Verdict("not comparable", 0.7, reason="other images"), "–", "not comparable: other images"),
    ],
)
def test_verdicts_in_words(verdict: Verdict, difference: str, words: str) -> None:
    (row,) = as_rows([change(verdict)], "main (abc)")
    assert (row["difference (95% interval)"], row["verdict"]) == (difference, words)
    assert row["Test IoU"] == "0.6000 (–)"


def test_a_commit_message_has_one_line_per_experiment_and_target() -> None:
    worse = Verdict("worse", 0.5, 0.6, Interval(-0.1, -0.15, -0.05))
    start, test = "net, infection: Val balanced", "Test IoU 0.6000, Dice 0.7000"
    assert as_lines([change(BETTER), change(worse)]) == [
        f"{start} 0.7000, better +0.1000 (+0.0500 to +0.1500); {test}",
        f"{start} 0.5000, worse -0.1000 (-0.1500 to -0.0500); {test}",
        "In parentheses: 95% interval of the difference from the base revision.",
        "With one seed on both sides, training variation not included.",
    ]
    for verdict in (Verdict("new", 0.7), BETTER._replace(word="same")):
        assert as_lines([change(verdict)]) == [f"{start} 0.7000, {verdict.word}; {test}"]
