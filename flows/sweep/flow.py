"""The flow `sweep`: try many settings of experiments in one run, and publish which are best on the Val split.

`cxr sweep` runs it from a command line. `make serve` deploys it to the Prefect UI.
"""

import json
import logging
import os
import shutil
import sys
from base64 import b64encode
from functools import partial
from pathlib import Path
from typing import Any, cast

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.deployment.temporary import start_server
from flows.doctor import check_before_run
from flows.publish import (
    PREFIX,
    RESULTS,
    TRAILER,
    as_name,
    check_local_branches,
    local_names,
    make_branch,
    published_already,
    published_from,
    report_with,
)
from flows.repository.checkout import RUNS, checked_out, remove_leftovers
from flows.repository.git import commit, find_repository, git, resolve, uncommitted
from flows.request import REQUESTED_BY, requester
from flows.retrain import NO_POOLS, REPORTS_URL, Published, check_publishing, push_branch, show
from flows.sweep.experiments import Origin, save_experiments
from flows.sweep.request import Prepared, SweepRequest, prepare
from flows.sweep.trials import Measured, Place, Trained, measure, run_trials, tables
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

#: Name of the completed state of a sweep whose results are published already.
UNCHANGED = "Unchanged"


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
        return _sweep(request, pools, find_repository(), as_name(flow_run.name or "sweep"))
    except InputError as error:
        return Failed(message=str(error))


def _sweep(
    request: SweepRequest, pools: dict[str, str], repository: Path, wanted: str
) -> Published | State[Any]:
    logger = get_run_logger()
    check_before_run(repository, logger.warning)
    for leftover in remove_leftovers(repository):
        logger.info("removed the checkout %s of a killed run", leftover.name)
    base = resolve(repository, request.revision)
    prepared = prepare(request, repository, base)
    run = flow_run.id or ""
    at_origin = check_publishing(request.publish, repository, base, run)

    def taken() -> set[str]:
        return local_names(repository) | (at_origin or set())

    with checked_out(repository, base, wanted, run, taken) as checkout:
        if checkout.name != wanted:
            logger.info("the name %s is taken; this run is called %s", wanted, checkout.name)
        who = requester(repository, request.requested_by)
        trailers = f"{TRAILER}: {checkout.name}\n{REQUESTED_BY}: {who}"
        place = Place(checkout, repository, pools, run, trailers, logger.info)
        trained = run_trials(request, prepared, place)
        measured = measure_networks(prepared, trained, place)
        found = compare_trials(request, prepared, trained, measured, checkout, base)
        return _publish(request, prepared, trained, found, place, base, at_origin)


@task(task_run_name="measure networks", persist_result=False, cache_policy=NO_CACHE)
def measure_networks(prepared: Prepared, trained: Trained, place: Place) -> Measured:
    """Measure how long a network of each kind takes for an image."""
    return measure(prepared, trained, place)


@task(task_run_name="compare trials", persist_result=False, cache_policy=NO_CACHE)
def compare_trials(
    request: SweepRequest, prepared: Prepared, trained: Trained, measured: Measured, checkout: Path, base: str
) -> Sweep:
    """Compare all trials by the scores of single Val images."""
    from tasks.sweep.judge import front, judge  # pandas takes half a second to import

    shared = prepared.shared(request.experiments[0])
    judged = judge(tables(trained, checkout), *shared)
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
        name=checkout.name,
        revision=request.revision,
        commit=base,
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
    request: SweepRequest,
    prepared: Prepared,
    trained: Trained,
    found: Sweep,
    place: Place,
    base: str,
    at_origin: set[str] | None,
) -> Published | State[Any]:
    logger, checkout, repository = get_run_logger(), place.checkout, place.repository
    name = checkout.name
    metrics = {trial.name: {"val": {"score": trial.score.value}, "test": {}} for trial in found.trials}
    (checkout / METRICS).write_text(_as_json(metrics), encoding="utf-8")
    subject = f"Sweep {name}: {', '.join(request.settings)}"
    parts = [subject, "\n".join(request.describe()), "\n".join(opening(found)), place.trailers]
    final = commit(checkout, "\n\n".join(parts), *RESULTS)
    if same := published_already(repository, base, final):
        return _unchanged(found, place, same, at_origin, _as_json(metrics))
    branch, fault = None, ""
    if request.publish != "nowhere":
        branch = make_branch(repository, name, final)
    results = _write(found, place, (branch or name).removeprefix(PREFIX)).parent
    if branch and request.publish == "remotes":
        branch, fault = push_branch(repository, checkout, branch)
        results = results.with_name(branch.removeprefix(PREFIX))
    if branch:
        # By the name of the experiment, so that `dvc exp show` has one column for all trials.
        own = {trial.name: _as_json({trial.experiment: metrics[trial.name]}) for trial in found.trials}
        text = request.params_text(repository, base, (ALL,))
        origin = Origin(repository, base, text, prepared.keys)
        save_experiments(origin, results.name, trained.trials, own, logger.warning)
    logger.info("published %s; report: %s", f"as {branch}" if branch else "nowhere", results / PAGE)
    show(*_artifacts(found, results))
    if fault:
        raise InputError(fault)
    return Published(results / PAGE, results / METRICS, branch, final)


def _unchanged(found: Sweep, place: Place, same: str, at_origin: set[str] | None, metrics: str) -> State[Any]:
    """Say that a revision has the results already. Pushes the branch that has them, if origin lacks it."""
    done = "nothing published"
    known = same.removeprefix(PREFIX) if same.startswith(PREFIX) else place.checkout.name
    if at_origin is not None and same.startswith(PREFIX) and known not in at_origin:
        same, fault = push_branch(place.repository, place.checkout, same)
        if fault:
            raise InputError(fault)
        known, done = same.removeprefix(PREFIX), "pushed now"
    page = report_with(place.repository / RUNS / known, metrics) or _write(found, place, known)
    show(*_artifacts(found, page.parent))
    return Completed(name=UNCHANGED, message=f"nothing changed since {same}; {done}; report: {page}")


def _as_json(metrics: dict[str, Any]) -> str:
    return json.dumps(metrics, indent=2) + "\n"


def _write(found: Sweep, place: Place, name: str) -> Path:
    """Write the page and the tables of a sweep into runs/NAME, and return the page."""
    folder = place.repository / RUNS / name
    with replacing(folder) as beside:
        beside.mkdir()
        write_results(found.model_copy(update={"name": name}), beside)
        shutil.copyfile(place.checkout / METRICS, beside / METRICS)
    return folder / PAGE


def _artifacts(found: Sweep, results: Path) -> list[Any]:
    server, name = os.environ.get(REPORTS_URL), results.name
    link = f"{server}/{name}/{PAGE}" if server else (results / PAGE).as_uri()
    rows = [{key: "" if value is None else value for key, value in row.items()} for row in table_rows(found)]
    return [
        partial(create_link_artifact, link, link_text=f"Report of {name}", key="sweep-report"),
        partial(create_markdown_artifact, _markdown(found, results), key="sweep-summary"),
        partial(create_table_artifact, rows, key="sweep-trials", description=f"# Trials of {name}"),
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
    if request.publish != "nowhere":
        check_local_branches(repository)
    if request.revision == "HEAD" and (changed := uncommitted(repository)):
        print(f"ignoring uncommitted changes in {', '.join(changed)}", file=sys.stderr)
    if request.publish == "here" and (page := _known(repository, base, prepared)):
        print(f"nothing changed; nothing to do; report: {page}")
        return
    if name and (as_name(name) != name or name in local_names(repository)):
        word = "taken" if as_name(name) == name else "not possible in branches and paths"
        raise InputError(f"--name {name}: this name is {word}; choose another one")
    check_before_run(repository, warn=lambda _: None)  # the flow logs the warnings
    start_server()()
    state = sweep.with_options(flow_run_name=name or default_name(request))(request, pools, return_state=True)
    if not state.is_completed():
        raise InputError(state.message or "the flow did not complete")
    logging.getLogger("prefect").setLevel(logging.WARNING)  # hide the lines about the end of the server
    if state.name == UNCHANGED:
        print(state.message)
        return
    published = cast(Published, state.result())
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
