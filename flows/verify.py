"""Recompute the published scores of a revision, in a checkout of its own, and compare them.

The revision's own code runs. Nothing that is recomputed enters the DVC cache, the run cache or the user's
files.
"""

import csv
import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import PipelineStage

from flows.engine.rerun import NO_SLOT, Command, command_of, rerun
from flows.repository.checkout import checked_out, remove_leftovers
from flows.repository.dvc_internals import Part, inputs_of, open_repo, stages_in_order
from flows.repository.git import GitError, git, resolve
from flows.repository.lock_text import LOCK
from flows.repository.publish import BRANCHES
from flows.repository.recorded import bring, check_inputs, check_lock, md5
from flows.repository.revision import TRAINING_SUFFIX, plan_trainings
from tasks.support.cli import InputError
from tasks.support.slots import slots_for

#: What a score is recomputed from: the scores of single images, the networks, or the dataset.
Depth = Literal["rows", "weights", "data"]

METRICS = "metrics.json"

#: Largest difference of a score that still holds, by depth: absolute, or relative to a score above 1.
#: Rows give the same scores on every machine. Floating-point arithmetic of another device may flip single
#: pixels, and a training there ends elsewhere, as with another seed.
TOLERANCES: dict[Depth, float] = {"rows": 0.0, "weights": 0.001, "data": 0.02}

#: Stages that are always recomputed: from rows to scores.
SCORING = ("compare", "report")

#: Stages that follow from a training, by the least depth that runs them.
OF_A_TRAINING: dict[str, Depth] = {
    "train": "data",
    "gather": "data",
    "evaluate": "weights",
    "ensemble": "weights",
    "evaluate_external": "weights",
    "ensemble_external": "weights",
}

#: Stages behind the scores that no training has, by the first word of their names in metrics.json.
WITHOUT_TRAINING = {"baselines": "baselines", "dataset": "audit"}

#: Decimals of a score in metrics.json.
DECIMALS = 6

#: Maximum number of scores that are shown one by one, unless they were asked for.
SHOWN = 10

Scores = Mapping[str, float | None]


def verify(
    repository: Path,
    revision: str,
    names: Sequence[str] = (),
    depth: Depth = "rows",
    tolerance: float | None = None,
) -> None:
    """Recompute the scores of a revision, and print how far they agree with those in its metrics.json.

    Args:
        repository: The repository.
        revision: A branch, tag or commit.
        names: Scores, such as combined.test.infection.covid.iou, or the beginnings of their names up to a
            dot. Empty for all.
        depth: What to recompute them from.
        tolerance: Largest difference of a score that holds, by default that of TOLERANCES.

    Raises:
        InputError: a score does not hold, or cannot be recomputed. The message says which and why.
    """
    commit = resolve(repository, revision)
    published = read_metrics(_published_file(repository, commit, revision))
    chosen = choose(published, names)
    for leftover in remove_leftovers(repository):
        print(f"removed the checkout {leftover.name} of a killed run")
    with checked_out(repository, commit, f"verify-{commit[:10]}", run="") as checkout:
        print(f"{revision} is commit {commit[:10]}; recomputing from {depth}", flush=True)
        recorded = md5(checkout / METRICS)
        expected = _recompute(repository, checkout, chosen, depth)
        recomputed = read_metrics((checkout / METRICS).read_text(encoding="utf-8"))
        intervals = read_intervals(checkout / "artifacts" / "comparison" / "scores.csv")
    limit = TOLERANCES[depth] if tolerance is None else tolerance
    judged = [
        judge(name, published.get(name), recomputed.get(name), limit, intervals.get(name)) for name in chosen
    ]
    if not names:
        judged += [Judgement(name, False, f"{name}: not published") for name in recomputed.keys() - published]
    for line in summary(judged, every=bool(names)):
        print(line)
    failed = [one.name for one in judged if not one.holds]
    if failed:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise InputError(f"{revision} does not hold: {failed[0]}{more}")
    if expected != recorded:
        raise InputError(
            f"{revision} does not hold: {METRICS} was edited: {LOCK} names md5 {expected}, found {recorded}"
        )
    print(f"{revision} holds")


# --- what was published -------------------------------------------------------------------------------------


def _published_file(repository: Path, commit: str, revision: str) -> str:
    try:
        git(repository, "cat-file", "-e", f"{commit}:{LOCK}")
        return git(repository, "show", f"{commit}:{METRICS}")
    except GitError:
        refs = git(repository, "for-each-ref", "--format=%(refname:short)", "--sort=-creatordate", *BRANCHES)
        known = f"; published runs: {', '.join(refs.splitlines()[:SHOWN])}" if refs else ""
        raise InputError(
            f"{revision}: nothing is published there: it has no {METRICS} and {LOCK}{known}"
        ) from None


def read_metrics(text: str) -> dict[str, float | None]:
    """Return the numbers of a metrics.json by their paths, joined by dots. None stands for null.

    Raises:
        InputError: it is not JSON, or holds something else.
    """
    try:
        return _flatten(json.loads(text))
    except ValueError as error:
        raise InputError(f"{METRICS}: {error}") from None


def _flatten(metrics: object, prefix: str = "") -> dict[str, float | None]:
    if isinstance(metrics, dict):
        parts = [_flatten(value, f"{prefix}.{key}" if prefix else key) for key, value in metrics.items()]
        return {name: value for part in parts for name, value in part.items()}
    if metrics is None or isinstance(metrics, int | float):
        return {prefix: metrics}
    raise ValueError(f"{prefix}: not a number")


def choose(published: Scores, names: Sequence[str]) -> list[str]:
    """Return the scores that are asked for.

    Raises:
        InputError: there is no such score. The message has those with similar names.
    """
    if not names:
        return list(published)
    chosen: dict[str, None] = {}
    for name in names:
        found = [each for each in published if each == name or each.startswith(f"{name}.")]
        if not found:
            near = difflib.get_close_matches(name, published, n=5, cutoff=0.5)
            known = f"; similar: {', '.join(near)}" if near else ""
            raise InputError(f"--score {name}: no such score in {METRICS}{known}")
        chosen |= dict.fromkeys(found)
    return list(chosen)


# --- recomputing --------------------------------------------------------------------------------------------


def _recompute(repository: Path, checkout: Path, chosen: Sequence[str], depth: Depth) -> str:
    """Run the stages behind the scores in a checkout. Returns the MD5 of metrics.json in dvc.lock."""
    try:
        with open_repo(checkout) as repo:
            stages = stages_in_order(repo)
            out = next((out for out in repo.index.outs if Path(out.fs_path) == checkout / METRICS), None)
            if out is None:
                raise InputError(f"dvc.yaml: no stage makes {METRICS}")
            last = next(stage for stage in stages if stage is out.stage)
            needed = _upstream(last, stages)
            check_lock(repo, [stage for stage in stages if stage in needed])
            again = [stage for stage in choose_stages(stages, chosen, depth) if stage in needed]
            count = bring(repo, _inputs(repo, again))
            print(f"{count} files match {LOCK}", flush=True)
            check_inputs(again)
            commands = [command_of(stage) for stage in again]
    except DvcException as error:
        raise InputError(f"dvc.yaml: {error}") from None
    _run(repository, checkout, commands, depth)
    return str(out.hash_info.value)


def _upstream(last: PipelineStage, stages: Mapping[PipelineStage, set[PipelineStage]]) -> set[PipelineStage]:
    found, todo = {last}, [last]
    while todo:
        new = stages[todo.pop()] - found
        found |= new
        todo += new
    return found


def choose_stages(
    stages: Mapping[PipelineStage, set[PipelineStage]], scores: Iterable[str], depth: Depth
) -> list[PipelineStage]:
    """Return the stages to run for some scores, in the order of `stages`, which maps each to those before it.

    A stage of a training runs only if one of the scores is of its experiment. Images restricted to the lungs
    that another experiment predicts are data, whatever the depth.
    """
    owners = {name.partition(".")[0] for name in scores}
    again = [stage for stage in stages if stage.name.partition("@")[0] in SCORING]
    if depth == "rows":
        return again
    wanted = {WITHOUT_TRAINING[owner] for owner in owners & WITHOUT_TRAINING.keys()}
    theirs: set[PipelineStage] = set()
    for stage, before in stages.items():
        kind, _, key = stage.name.partition("@")
        is_first = kind == "train" and re.sub(f"{TRAINING_SUFFIX}$", "", key) in owners
        if is_first or kind in wanted or (kind in OF_A_TRAINING and before & theirs):
            theirs.add(stage)
    left_out = {kind for kind, least in OF_A_TRAINING.items() if depth == "weights" and least == "data"}
    again += [stage for stage in theirs if stage.name.partition("@")[0] not in left_out]
    return [stage for stage in stages if stage in again]


def _inputs(repo: Repo, again: Sequence[PipelineStage]) -> list[Part]:
    """Return what the stages read of the outputs of others."""
    parts = {part.path: part for stage in again for part in inputs_of(stage, repo.index.stages)}
    kept = [part for part in parts.values() if part.out.stage not in again and part.out.use_cache]
    paths = {Path(part.path) for part in kept}
    return [part for part in kept if paths.isdisjoint(Path(part.path).parents)]


def _run(repository: Path, checkout: Path, commands: Sequence[Command], depth: Depth) -> None:
    # The repository has files that are not in git. A training must not continue from a checkpoint there.
    variables = {
        "RETRAIN_SOURCE_ROOT": str(repository),
        "RETRAIN_CHECKPOINTS": str(checkout / ".dvc" / "tmp" / "checkpoints"),
    }
    slots = None if depth == "rows" else slots_for(plan_trainings(checkout))
    for command in commands:
        is_heavy = slots and command.stage.partition("@")[0] in OF_A_TRAINING
        with slots.acquire(print, command.stage) if slots and is_heavy else nullcontext(NO_SLOT) as slot:
            rerun(checkout, command, slot, **variables)
        if command.stage.partition("@")[0] in OF_A_TRAINING:
            print(_compare_bytes(checkout, command), flush=True)


def _compare_bytes(checkout: Path, command: Command) -> str:
    with open_repo(checkout) as repo:
        stage = repo.stage.load_one(name=command.stage)
        changed = [str(out) for out in stage.outs if out.workspace_status()]
    if changed:
        return f"{command.stage}: other bytes than in {LOCK}: {', '.join(changed)}"
    return f"{command.stage}: same bytes as in {LOCK}"


# --- comparing ----------------------------------------------------------------------------------------------


class Judgement(NamedTuple):
    name: str
    holds: bool
    line: str
    difference: float = 0.0
    """Absolute difference between the published and the recomputed score."""


def judge(
    name: str,
    published: float | None,
    recomputed: float | None,
    tolerance: float,
    interval: tuple[float, float] | None = None,
) -> Judgement:
    """Compare a published score with the recomputed one.

    Args:
        name: Its name.
        published: Its value in metrics.json, None for null.
        recomputed: The same.
        tolerance: Largest difference with which it holds: absolute, or relative to a score above 1.
        interval: Its 95% confidence interval, if it has one.
    """
    start = f"{name}: published {_number(published)}, recomputed {_number(recomputed)}"
    if published == recomputed:
        return Judgement(name, True, f"{start}: holds to every digit")
    if published is None or recomputed is None:
        return Judgement(name, False, f"{start}: does not hold", math.inf)
    difference = abs(published - recomputed)
    holds = difference <= tolerance * max(1.0, abs(published))
    decimals = agreeing_decimals(difference)
    agree = f"agrees to {decimals} decimal{'' if decimals == 1 else 's'}, tolerance {tolerance:g}"
    context = ""
    if interval:
        low, high = interval
        where = "within" if low <= published <= high and low <= recomputed <= high else "outside"
        context = f"; {where} its 95% interval, {low:.4f} to {high:.4f}"
    return Judgement(
        name, holds, f"{start}: {'holds' if holds else 'does not hold'} ({agree}){context}", difference
    )


def agreeing_decimals(difference: float) -> int:
    """Return to how many decimals two scores agree: the difference is at most half a unit of the last one."""
    places = range(1, DECIMALS + 1)
    return sum(difference <= 0.5 * 10.0**-place * (1 + 1e-9) for place in places)


def _number(value: float | None) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, int) else f"{value:.{DECIMALS}f}"


def read_intervals(table: Path) -> dict[str, tuple[float, float]]:
    """Return the 95 % intervals in scores.csv by the names that the scores have in metrics.json.

    Those of a revision that writes no such table, or other columns, are unknown.
    """
    found = {}
    with suppress(OSError, KeyError, ValueError), table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            place = (row["split"].lower(), row["target"], row["image_set"], row["metric"])
            if row["kind"] == "experiment" and row["low"] and row["high"]:
                found[".".join((row["name"], *place))] = float(row["low"]), float(row["high"])
    return found


def summary(judged: Sequence[Judgement], *, every: bool) -> list[str]:
    """Return a line about each score if `every`, else about the first that differ, and one about all."""
    if every:
        return [one.line for one in judged]
    different = [one for one in judged if one.difference or not one.holds]
    lines = [one.line for one in different[:SHOWN]]
    if len(different) > SHOWN:
        lines.append(f"{len(different) - SHOWN} more differ")
    same = len(judged) - len(different)
    total = f"{len(judged)} scores recomputed: {same} hold to every digit"
    if different:
        worst = max(different, key=lambda one: one.difference)
        total += f", {len(different)} differ, at most by {worst.difference:.6f} ({worst.name})"
    return [*lines, total]
