"""The flow `sweep`: try many settings of experiments in one run, and publish which are best on the Val split.

`cxr sweep` runs it from a command line. `make serve` deploys it to the Prefect UI.
"""

import json
import shutil
from base64 import b64encode
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Failed

from flows.repository.checkout import RUNS
from flows.repository.git import commit, find_repository, git, resolve
from flows.repository.publish import (
    PREFIX,
    RESULTS,
    as_name,
    local_names,
    published_already,
    published_from,
    report_with,
)
from flows.run import (
    NO_POOLS,
    Published,
    Run,
    begin,
    check_request,
    link_report,
    name_of,
    publish_results,
    run_here,
    show,
    unchanged,
)
from flows.sweep.experiments import Origin, save_experiments
from flows.sweep.request import Prepared, SweepRequest, prepare
from flows.sweep.trials import Measured, Trained, measure, run_trials, tables
from tasks.common.files import replacing
from tasks.settings.schema import ALL
from tasks.support.cli import InputError
from tasks.sweep.document import Sweep, SweepKey, TrialResult
from tasks.sweep.page import (
    CURVE,
    PAGE,
    markdown_table,
    opening,
    table_rows,
    title,
    write_results,
)
from tasks.sweep.space import LOG_FACTOR, Key

METRICS = "metrics.json"


@flow(name="sweep")
def sweep(request: SweepRequest, pools: dict[str, str] = NO_POOLS) -> Published | State[Any]:
    """Try many settings in experiments, and find the best on the Val split.

    The flow works in a git worktree. Each trial is an experiment in its params.yaml, and the stages up to
    `evaluate` run for it; DVC's run cache has those that were tried before. The branch `retrain/NAME`, named
    like the run, has params.yaml, dvc.lock and the Val scores. The page and the table are in `runs/NAME`.
    `dvc exp show` lists the trials. No Test score is shown.

    Args:
        request: Which settings to try, in which experiments, and where to publish the results.
        pools: Stages to run on other machines, as patterns of stage names with a work pool each, such as
            {"train@*": "gpu"}. All other stages run on this machine.
    """
    try:
        return _sweep(request, pools, find_repository())
    except InputError as error:
        return Failed(message=str(error))


def _sweep(request: SweepRequest, pools: dict[str, str], repository: Path) -> Published | State[Any]:
    base = resolve(repository, request.revision)
    prepared = prepare(request, repository, base)
    with begin(repository, base, request, pools) as run:
        trained = run_trials(request, prepared, run)
        measured = measure_networks(prepared, trained, run)
        found = compare_trials(request, prepared, trained, measured, run)
        return _publish(request, prepared, trained, found, run)


@task(task_run_name="measure networks", persist_result=False, cache_policy=NO_CACHE)
def measure_networks(prepared: Prepared, trained: Trained, run: Run) -> Measured:
    """Measure how long a network of each kind takes for an image."""
    return measure(prepared, trained, run)


@task(task_run_name="compare trials", persist_result=False, cache_policy=NO_CACHE)
def compare_trials(
    request: SweepRequest, prepared: Prepared, trained: Trained, measured: Measured, run: Run
) -> Sweep:
    """Compare all trials by the scores of single Val images."""
    from tasks.sweep.judge import front, judge  # pandas takes half a second to import

    shared = prepared.shared(request.experiments[0])
    judged = judge(tables(trained, run.checkout), *shared)
    on_front = front({name: score.value for name, score in judged.scores.items()}, measured.costs)
    trials = tuple(
        TrialResult(
            name=name,
            experiment=trial.experiment,
            settings=trial.settings,
            score=judged.scores[name],
            seed_scores=judged.seed_scores[name],
            behind=judged.behind.get(name),
            verdict=judged.verdicts[name],
            cost=measured.costs[name],
            on_front=name in on_front,
        )
        for name, trial in trained.trials.items()
    )
    found = Sweep(
        name=run.name,
        revision=request.revision,
        commit=run.base,
        experiments=request.experiments,
        swept=tuple(_key(key) for key in prepared.keys),
        method=request.method,
        sampler_seed=request.sampler_seed,
        round=trained.round,
        preset=request.preset,
        changes=request.changes,
        seeds=max(len(trial.seed_scores) for trial in trials),
        selection=judged.selection,
        targets=shared.targets,
        classes=shared.classes,
        images=judged.images,
        covers_training=judged.covers_training,
        phantoms=str(prepared.base.raw["data"]["source"]).startswith("phantom://"),
        device=measured.device,
        trials=trials,
    )
    for sentence in opening(found):
        get_run_logger().info("%s", sentence)
    return found


def _key(key: Key) -> SweepKey:
    if key.is_range:
        return SweepKey(name=key.name, is_range=True, is_log=key.scale == "log")
    numbers = [
        value for value in key.values if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    wide = len(numbers) == len(key.values) and min(numbers) > 0 and max(numbers) >= LOG_FACTOR * min(numbers)
    return SweepKey(name=key.name, is_range=False, is_log=wide)


# --- results ------------------------------------------------------------------------------------------------


def _publish(
    request: SweepRequest, prepared: Prepared, trained: Trained, found: Sweep, run: Run
) -> Published | State[Any]:
    metrics = {trial.name: {"val": {"score": trial.score.value}, "test": {}} for trial in found.trials}
    (run.checkout / METRICS).write_text(_as_json(metrics), encoding="utf-8")
    subject = f"Sweep {run.name}: {', '.join(request.settings)}"
    parts = [subject, "\n".join(request.describe()), "\n".join(opening(found)), run.trailers]
    final = commit(run.checkout, "\n\n".join(parts), *RESULTS)
    if same := published_already(run.repository, run.base, final):

        def report_of(revision: str) -> Path:
            folder = run.repository / RUNS / (name_of(revision) if revision.startswith(PREFIX) else run.name)
            page = report_with(folder, _as_json(metrics)) or _write(found, run, folder.name) / PAGE
            show(*_artifacts(found, page.parent))
            return page

        return unchanged(run, same, report_of)
    branch, results, fault = publish_results(run, final, partial(_write, found, run))
    if branch:
        # By the name of the experiment, so that `dvc exp show` has one column for all trials.
        own = {trial.name: _as_json({trial.experiment: metrics[trial.name]}) for trial in found.trials}
        text = request.params_text(run.repository, run.base, (ALL,))
        origin = Origin(run.repository, run.base, text, prepared.keys)
        save_experiments(origin, results.name, trained.trials, own, get_run_logger().warning)
    show(*_artifacts(found, results))
    if fault:
        raise InputError(fault)
    return Published(results / PAGE, results / METRICS, branch, final)


def _as_json(metrics: dict[str, Any]) -> str:
    return json.dumps(metrics, indent=2) + "\n"


def _write(found: Sweep, run: Run, name: str) -> Path:
    """Write the page and the tables of a sweep into runs/NAME, and return this folder."""
    folder = run.repository / RUNS / name
    with replacing(folder) as beside:
        beside.mkdir()
        write_results(found.model_copy(update={"name": name}), beside)
        shutil.copyfile(run.checkout / METRICS, beside / METRICS)
    return folder


def _artifacts(found: Sweep, results: Path) -> list[Any]:
    rows = [{key: "" if value is None else value for key, value in row.items()} for row in table_rows(found)]
    return [
        partial(link_report, results, "sweep-report"),
        partial(create_markdown_artifact, _markdown(found, results), key="sweep-summary"),
        partial(create_table_artifact, rows, key="sweep-trials", description=f"# Trials of {results.name}"),
    ]


def _markdown(found: Sweep, results: Path) -> str:
    """The curve and the table, with the picture inline, since the UI loads no files."""
    parts = [f"# {title(found)}", *opening(found)]
    if (curve := results / CURVE).exists():
        data = b64encode(curve.read_bytes()).decode()
        parts.append(f"![Val score against the swept value](data:image/svg+xml;base64,{data})")
    parts += [markdown_table(found), f"```\ncxr sweep best {results.name} --as PRESET\n```"]
    return "\n\n".join(parts) + "\n"


# --- the command line ---------------------------------------------------------------------------------------


def default_name(request: SweepRequest) -> str:
    """The name of a sweep: its experiments and keys."""
    keys = [setting.partition("=")[0].removeprefix("training.") for setting in request.settings]
    return as_name("-".join(["sweep", *request.experiments, *keys]))


def run(repository: Path, request: SweepRequest, pools: dict[str, str], name: str | None) -> None:
    """Run the flow in this process, and print what came out.

    Raises:
        InputError: the flow could not start, or did not complete.
    """
    # Report errors in the request before starting a server.
    base = resolve(repository, request.revision)
    prepared = prepare(request, repository, base)
    check_request(repository, request)
    if request.publish == "here" and (page := _known(repository, base, prepared)):
        print(f"nothing changed; nothing to do; report: {page}")
        return
    if name and (as_name(name) != name or name in local_names(repository)):
        word = "taken" if as_name(name) == name else "not valid in branches and paths"
        raise InputError(f"--name {name}: this name is {word}; choose another one")
    published = run_here(sweep, repository, request, pools, name or default_name(request))
    if published:
        _print(published)


def _print(published: Published) -> None:
    found = Sweep.read(published.report.parent)
    print("\n".join(opening(found)))
    print(f"report:  {published.report}")
    if published.branch:
        print(f"commit:  {published.commit} on {published.branch}")
        print(f"preset:  cxr sweep best {found.name} --as PRESET")


def _known(repository: Path, base: str, prepared: Prepared) -> Path | None:
    """The page of an earlier sweep with the same params and code, whose trials would be the same."""
    branch = prepared.params and published_from(repository, base, prepared.params)
    if not branch:
        return None
    folder = repository / RUNS / branch.removeprefix(PREFIX)
    return report_with(folder, git(repository, "show", f"{branch}:{METRICS}"))
