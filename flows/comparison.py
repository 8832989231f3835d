"""Compare a run's scores with those of the revision that it started from.

The scores of the Val images decide, image by image. Test scores are shown beside them without a verdict: a
choice by Test scores would bias them.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.repository.earlier import copy_files
from flows.repository.git import git
from flows.repository.revision import TRAINING_SUFFIX, Training
from tasks.support.cli import InputError

if TYPE_CHECKING:  # pandas takes half a second to import, and the start of a run needs none
    import pandas as pd

    from models.metrics import Selection
    from tasks.scoring.verdict import Verdict

EVALUATIONS = "artifacts/evaluation"
IMAGES = "images.csv"

#: The Test scores that are shown, and the image sets that they may cover: the first one that has scores.
TEST_METRICS = {"iou": "IoU", "dice": "Dice"}
TEST_IMAGES = ("covid", "all", "controls", "non_covid", "normal")

NOTE = """\
The verdict compares the Val images one by one, by the score that `selection` names. It is *better* or
*worse* only if the 95% interval of the difference excludes zero. Test IoU and Dice are means over the
COVID-19 images (over all images if there are none), with the base revision's in parentheses."""

#: Said of a difference between two experiments with one seed each.
IMAGES_ONLY = "training variation not included"

NOT_STORED = "its scores of single images are neither in the DVC cache nor on the DVC remote"
NO_SCORES = "it has no scores of single images"

Metrics = Mapping[str, Any]


class Change(NamedTuple):
    """How one experiment compares with the base revision on one target."""

    experiment: str
    target: str
    selection: "Selection"
    verdict: "Verdict"
    """About the Val images, by the selection score."""
    test: dict[str, float]
    """Test scores by metric."""
    test_before: dict[str, float]


def compare_with(checkout: Path, base: str, trainings: Mapping[str, Training]) -> list[Change]:
    """Compare the results in a checkout with those of the commit `base`, for each experiment and target.

    `trainings` are those of the checkout, by name.

    Does not fail if scores of the commit cannot be read: the verdict is then `not comparable`, with a reason.
    """
    now: Metrics = json.loads((checkout / "metrics.json").read_text(encoding="utf-8"))
    before = _metrics_at(checkout, base)
    selections = {training.experiment: training.selection for training in trainings.values()}
    with TemporaryDirectory() as copies:
        fault = ""
        if before.keys() & selections.keys():
            fault = copy_files(checkout, base, EVALUATIONS, IMAGES, Path(copies))
        return [
            change
            for name in now
            if name in selections
            for change in _changes(
                name,
                selections[name],
                _targets(now[name]),
                _targets(_mapping(before.get(name))),
                _scores_of_run(trainings, name, checkout / EVALUATIONS),
                _scores_of_base(name, Path(copies), fault),
            )
        ]


def _metrics_at(repository: Path, commit: str) -> Metrics:
    try:
        return _mapping(json.loads(git(repository, "show", f"{commit}:metrics.json")))
    except (InputError, ValueError):  # a revision before the first run has no metrics
        return {}


def _mapping(metrics: Any) -> Metrics:
    """Return a part of metrics.json. A file that another version or a person wrote may hold anything."""
    return metrics if isinstance(metrics, dict) else {}


def _targets(metrics: Metrics) -> Metrics:
    """Return an experiment's Test metrics by target. Early revisions have no others in metrics.json."""
    return _mapping(metrics.get("test", metrics))


def _test_scores(sets: Metrics) -> dict[str, float]:
    scores = _mapping(next((sets[images] for images in TEST_IMAGES if images in sets), {}))
    return {metric: scores[metric] for metric in TEST_METRICS if metric in scores}


# --- verdicts -----------------------------------------------------------------------------------------------


class Scores(NamedTuple):
    """The scores of an experiment on single Val images."""

    targets: "dict[str, pd.DataFrame]"
    fault: str
    """Why a target is missing."""


def _changes(
    experiment: str, selection: "Selection", now: Metrics, before: Metrics, run: Scores, base: Scores
) -> list[Change]:
    return [
        Change(
            experiment,
            target,
            selection,
            _verdict(target, selection, run, base if target in before else None),
            _test_scores(sets),
            _test_scores(_mapping(before.get(target))),
        )
        for target, sets in now.items()
    ]


def _verdict(target: str, selection: "Selection", run: Scores, base: Scores | None) -> "Verdict":
    """Judge one target. `base` is None if the base revision does not have it."""
    from tasks.scoring.verdict import Verdict, judge, selection_score

    if target not in run.targets:
        return Verdict("not comparable", math.nan, reason=f"this run: {run.fault}")
    rows = run.targets[target]
    if base is None:
        return Verdict("new", selection_score(rows, selection))
    if target not in base.targets:
        return Verdict("not comparable", selection_score(rows, selection), reason=f"the base: {base.fault}")
    return judge(rows, base.targets[target], selection)


def _scores_of_run(trainings: Mapping[str, Training], experiment: str, evaluations: Path) -> Scores:
    names = [name for name, training in trainings.items() if training.experiment == experiment]
    return _read_scores(evaluations / name / IMAGES for name in names)


def _scores_of_base(experiment: str, copies: Path, fault: str) -> Scores:
    training = re.compile(re.escape(experiment) + TRAINING_SUFFIX)
    folders = sorted(folder for folder in copies.iterdir() if training.fullmatch(folder.name))
    if all((folder / IMAGES).exists() for folder in folders) and folders:
        return _read_scores(folder / IMAGES for folder in folders)
    if fault:
        return Scores({}, f"its scores of single images could not be read: {fault}")
    return Scores({}, NOT_STORED if folders else NO_SCORES)


def _read_scores(tables: Iterable[Path]) -> Scores:
    from tasks.scoring.verdict import read_rows

    try:
        rows = read_rows(tables)
    except (InputError, OSError) as error:
        return Scores({}, str(error))
    return Scores({str(target): of_one for target, of_one in rows.groupby("target")}, "no Val rows")


# --- how they are shown -------------------------------------------------------------------------------------


def as_rows(changes: Iterable[Change], base: str) -> list[dict[str, str]]:
    """Return the rows of a table for the Prefect UI. `base` names the revision in the column header."""
    return [
        {
            "experiment": change.experiment,
            "target": change.target,
            "Val score": change.selection,
            "this run": _number(change.verdict.challenger),
            base: _number(change.verdict.champion),
            "difference (95% interval)": _difference(change.verdict) or "–",
            "verdict": _verdict_words(change.verdict),
        }
        | {
            f"Test {words}": f"{_number(change.test.get(metric))} ({_number(change.test_before.get(metric))})"
            for metric, words in TEST_METRICS.items()
        }
        for change in changes
    ]


def _verdict_words(verdict: "Verdict") -> str:
    marks = {"better": "▲ better", "worse": "▼ worse"}
    words = marks.get(verdict.word, verdict.word)
    if verdict.reason:
        return f"{words}: {verdict.reason}"
    return f"{words} ({IMAGES_ONLY})" if _covers_only_images(verdict) else words


def _covers_only_images(verdict: "Verdict") -> bool:
    return verdict.difference is not None and not verdict.covers_training and verdict.word != "same"


def _difference(verdict: "Verdict") -> str:
    """Return the difference with its interval: "0" if the results are the same, empty if there is none."""
    if verdict.word == "same":
        return "0"
    if not verdict.difference:
        return ""
    value, low, high = verdict.difference
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4f}"


def as_lines(changes: Iterable[Change]) -> list[str]:
    """Return one line per experiment and target, for a commit message, and one about the intervals."""
    changes = list(changes)
    lines = [_line(change) for change in changes]
    if any(change.verdict.difference and change.verdict.word != "same" for change in changes):
        lines.append("In parentheses: 95% interval of the difference from the base revision.")
    if any(_covers_only_images(change.verdict) for change in changes):
        lines.append(f"With one seed on both sides, {IMAGES_ONLY}.")
    return lines


def _line(change: Change) -> str:
    verdict = change.verdict
    result = verdict.word if verdict.word == "same" else f"{verdict.word} {_difference(verdict)}".rstrip()
    test = ", ".join(f"{TEST_METRICS[metric]} {_number(value)}" for metric, value in change.test.items())
    score = f"{change.selection} {_number(verdict.challenger)}"
    return f"{change.experiment}, {change.target}: Val {score}, {result}" + (f"; Test {test}" if test else "")
