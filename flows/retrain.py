"""Reproduce the pipeline of dvc.yaml as a Prefect flow, in a checkout of its own, and publish what came out.

`cxr retrain` runs it from a command line; `make serve` offers it in the Prefect UI.
"""

import json
import logging
import os
import shutil
import sys
from base64 import b64encode
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.tasks import exponential_backoff
from pydantic import ValidationError

from flows.comparison import as_lines, as_rows, metric_changes
from flows.deployment.temporary import start_server
from flows.engine.order import LocalMachine, priority_of, run_stages
from flows.engine.pipeline import restore_output, restore_pipeline, sort_lock
from flows.engine.runner import StageRunner
from flows.engine.slots import compute_slots
from flows.publish import (
    PREFIX,
    RESULTS,
    TRAILER,
    as_name,
    check_here,
    check_origin,
    make_branch,
    names_here,
    published_already,
    published_from,
    push,
    rename,
    report_with,
)
from flows.remote.pool import RemoteRun, remote_places
from flows.repository.checkout import RUNS, checked_out, remove_leftovers
from flows.repository.git import commit, find_repository, git, resolve, uncommitted
from flows.repository.refs import has_origin
from flows.request import PRESETS, RetrainRequest
from tasks.common.files import replacing
from tasks.settings.changes import with_changes
from tasks.settings.schema import fault_line, load_params
from tasks.support.checkpoints import FOLDER as CHECKPOINT_FOLDER
from tasks.support.cli import InputError

#: Where `make serve` shows runs/ to a browser.
REPORTS_URL = "RETRAIN_REPORTS_URL"

#: All stages, with params.yaml as the user's repository has it.
AS_IT_STANDS = RetrainRequest()

#: No stage runs on another machine.
ALL_HERE: dict[str, str] = {}


class Published(NamedTuple):
    """Where the results of a run are."""

    report: Path
    metrics: Path
    branch: str | None
    """None where nothing was published."""
    commit: str


@flow(name="retrain")
def retrain(
    request: RetrainRequest = AS_IT_STANDS, pools: dict[str, str] = ALL_HERE
) -> Published | State[Any]:
    """Run every stage of dvc.yaml at a revision with changed params, and publish what came out.

    Works in a git worktree; the params are committed there before anything runs, dvc.lock and the metrics
    afterwards, and the branch `retrain/NAME`, after the run's name, ends as that commit. A copy of the report
    and the metrics goes to `runs/NAME`. A name that is taken gets a number, NAME-2. Where the results are
    those of the revision itself or of a branch published before, nothing is published.

    Args:
        request: What to run, what to change in params.yaml for it, and where the results go.
        pools: Which stages other machines run: patterns of their names and work pools, such as
            {"train@*": "gpu"}. All others run here.
    """
    try:
        return _retrain(request, pools, find_repository(), as_name(flow_run.name or "run"))
    except InputError as error:
        return Failed(message=str(error))


def _retrain(
    request: RetrainRequest, pools: dict[str, str], repository: Path, wanted: str
) -> Published | State[Any]:
    logger = get_run_logger()
    for leftover in remove_leftovers(repository):
        logger.info("removed the checkout %s of a run that was killed", leftover.name)
    base = resolve(repository, request.revision)
    params = request.params_text(repository, base)
    run = flow_run.id or ""
    at_origin = _check_publishing(request, repository, base, run)

    def taken() -> set[str]:
        return names_here(repository) | (at_origin or set())

    with checked_out(repository, base, wanted, run, taken) as checkout:
        name = checkout.name
        if name != wanted:
            logger.info("the name %s is taken: this run is %s", wanted, name)
        path = checkout / "params.yaml"
        path.write_text(params, encoding="utf-8")
        if request.look_for_new_data:
            look_for_new_data(checkout, repository)
        asked = commit(checkout, f"Params of {name}\n\n{_asked(request)}\n\n{TRAILER}: {name}", *RESULTS)
        pipeline = restore_pipeline(checkout)
        runner = StageRunner(
            checkout,
            RETRAIN_SOURCE_ROOT=str(repository),
            RETRAIN_CHECKPOINTS=str(repository / CHECKPOINT_FOLDER),
            **_previous_data(checkout),
        )
        checked = load_params(path)
        local = LocalMachine(runner, compute_slots(checked))
        remote_run = RemoteRun(checkout, pipeline, repository, run, name, logger.info)
        with remote_places(pools, remote_run, logger.info) as places:
            try:
                run_stages(pipeline, lambda stage: places.get(stage) or local, priority_of(pipeline, checked))
            finally:
                runner.stop()  # none is left, unless the flow itself was stopped
        # What was committed for other machines on the way is no part of the result.
        git(checkout, "reset", "--quiet", "--soft", asked)
        sort_lock(checkout, pipeline.order)
        return _publish(request, repository, checkout, base, at_origin)


def _check_publishing(request: RetrainRequest, repository: Path, base: str, run: str) -> set[str] | None:
    """Refuse at the start what would fail at the end.

    Returns:
        The names that origin has; None where nothing is pushed there.

    Raises:
        InputError: the branch could not be made, or not be pushed.
    """
    if request.publish != "nowhere":
        check_here(repository)
    if request.publish == "remotes" and has_origin(repository):
        return check_origin(repository, base, run, get_run_logger().info)
    return None


def _asked(request: RetrainRequest) -> str:
    lines = [f"{key}: {value}" for key, value in request.asked().items()]
    return "\n".join(lines) or "Nothing was changed."


# --- new data -----------------------------------------------------------------------------------------------

RAW = Path("data/raw")
PREVIOUS_RAW = Path("data/previous")


@task(task_run_name="look for new data", persist_result=False, cache_policy=NO_CACHE)
def look_for_new_data(checkout: Path, repository: Path) -> None:
    """List the source, and pin what it holds in the checkout's params.yaml where that is not what it held.

    The data as the revision has them stay beside, so that only what changed is fetched.
    """
    from tasks.look import look  # loads pandas, which most runs do without

    path = checkout / "params.yaml"
    raw = None
    if restore_output(checkout, RAW.as_posix()):
        raw = (checkout / RAW).rename(checkout / PREVIOUS_RAW)
    news = look(load_params(path).data.source, repository, raw)
    get_run_logger().info("%s", news.text)
    if news.fingerprint and news.differs:
        pinned = with_changes(
            path.read_text(encoding="utf-8"), {"new data": {"data": {"fingerprint": news.fingerprint}}}
        )
        path.write_text(pinned, encoding="utf-8")


def _previous_data(checkout: Path) -> dict[str, str]:
    previous = checkout / PREVIOUS_RAW
    return {"RETRAIN_PREVIOUS_RAW": str(previous)} if previous.exists() else {}


# --- what came out ------------------------------------------------------------------------------------------


def _publish(
    request: RetrainRequest, repository: Path, checkout: Path, base: str, at_origin: set[str] | None
) -> Published | State[Any]:
    logger, name = get_run_logger(), checkout.name
    params = load_params(checkout / "params.yaml")
    now = json.loads((checkout / "metrics.json").read_text(encoding="utf-8"))
    scores = metric_changes(now, _metrics_at(repository, base), params.experiments)
    began = f"Started from {base[:10]} ({request.revision})."
    what = ", ".join(f"{key}={value}" for key, value in request.asked().items())
    title = f"Retrain {name}: {what}" if what else f"Retrain {name}"
    parts = [title, began, _asked(request), "\n".join(as_lines(scores)), f"{TRAILER}: {name}"]
    final = commit(checkout, "\n\n".join(filter(None, parts)), *RESULTS)
    table = partial(
        create_table_artifact,
        as_rows(scores, f"{request.revision} ({base[:10]})"),
        key="retrain-metrics",
        description=f"# Test metrics of {name}\n\n{began}",
    )
    if same := published_already(repository, base, final):
        since, to_push = (request.revision, None) if same == base else (same, at_origin)
        message = _unchanged(repository, checkout, since, to_push)
        logger.info(message)
        show(table)
        return Completed(name="Unchanged", message=message)

    branch, fault = None, ""
    if request.publish != "nowhere":
        branch = make_branch(repository, name, final)
    results = _collect(checkout, repository / RUNS / _name_of(branch or name))
    if branch and request.publish == "remotes":
        branch, fault = _push(repository, checkout, branch)
        results = results.with_name(_name_of(branch))
    logger.info("published %s; report: %s", f"as {branch}" if branch else "nowhere", results / "index.html")
    show(table, partial(_link_report, results), partial(_summarize, results, branch, base))
    if fault:
        raise InputError(fault)
    return Published(results / "index.html", results / "metrics.json", branch, final)


def _name_of(branch: str) -> str:
    return branch.removeprefix(PREFIX)


def _unchanged(repository: Path, checkout: Path, same: str, at_origin: set[str] | None) -> str:
    """Say whose results the checkout's are; a branch that an earlier run could not push is pushed now."""
    done = "nothing published"
    if at_origin is not None and same.startswith(PREFIX) and _name_of(same) not in at_origin:
        pushed, fault = _push(repository, checkout, same)
        if fault:
            raise InputError(fault)
        same, done = pushed, "pushed now"
    report = _report_of(repository, checkout, same)
    return f"nothing changed since {same}; {done}" + (f"; report: {report}" if report else "")


def _report_of(repository: Path, checkout: Path, branch: str) -> Path | None:
    """The report in runs/ of a branch that has the checkout's results; None where the report is of others."""
    folder = repository / RUNS / _name_of(branch)
    if branch.startswith(PREFIX) and not folder.exists():
        _collect(checkout, folder)
    return report_with(folder, (checkout / "metrics.json").read_text(encoding="utf-8"))


def _report_at(repository: Path, branch: str) -> Path | None:
    return report_with(
        repository / RUNS / _name_of(branch), git(repository, "show", f"{branch}:metrics.json")
    )


def _push(repository: Path, checkout: Path, branch: str) -> tuple[str, str]:
    """Push a branch; what it is called by then, and what kept it from being pushed, if anything did."""
    state = publish(repository, checkout, branch, return_state=True)
    if not state.is_completed():
        said = " ".join((state.message or "").split())
        return branch, f"{branch} is published in {repository}, but not pushed: {said}"
    pushed = str(state.result())
    if pushed != branch:
        get_run_logger().info("meanwhile origin got another %s: this one is %s", branch, pushed)
        rename(repository, branch, pushed)
    return pushed, ""


def show(*artifacts: Callable[[], Any]) -> None:
    """Make what the UI shows of a run, whose results are safe by then: no fault here fails the run."""
    for create in artifacts:
        try:
            create()
        except Exception as error:  # it is away, or does not take one so large
            get_run_logger().warning("not shown in the UI: %s", error)


@task(
    task_run_name="publish",
    retries=3,
    retry_delay_seconds=exponential_backoff(3),
    retry_jitter_factor=0.5,
    persist_result=False,
    cache_policy=NO_CACHE,
)
def publish(repository: Path, checkout: Path, branch: str) -> State[Any]:
    """Push the data and the branch to the remotes that there are; the branch's name there."""
    try:
        return Completed(data=push(repository, checkout, branch, get_run_logger().info))
    except InputError as error:
        return Failed(message=str(error))


def _metrics_at(repository: Path, commit: str) -> dict[str, Any]:
    try:
        metrics: dict[str, Any] = json.loads(git(repository, "show", f"{commit}:metrics.json"))
    except (InputError, ValueError):  # a revision before the first run has none
        return {}
    return metrics


def _collect(checkout: Path, results: Path) -> Path:
    """Copy the report and the metrics out of the checkout, which is about to go."""
    with replacing(results) as beside:
        shutil.copytree(checkout / "reports", beside, copy_function=shutil.copyfile)
        shutil.copyfile(checkout / "metrics.json", beside / "metrics.json")
    return results


def _link_report(results: Path) -> None:
    name = results.name
    server = os.environ.get(REPORTS_URL)
    link = f"{server}/{name}/index.html" if server else (results / "index.html").as_uri()
    create_link_artifact(link, link_text=f"Report of {name}", key="retrain-report")


def _summarize(results: Path, branch: str | None, base: str) -> None:
    """Show the report's summary with its figures, which the UI shows only if the text holds them."""
    parts = [(results / "summary.md").read_text(encoding="utf-8")]
    figures = results / "figures.svg"
    if figures.exists():  # the reports of early revisions have none
        data = b64encode(figures.read_bytes()).decode()
        parts.append(f"![Figures of the report](data:image/svg+xml;base64,{data})\n")
    if branch:
        parts.append(f"## In your own checkout\n\n```\ndvc metrics diff {base[:10]} {branch}\n```\n")
    create_markdown_artifact("\n".join(parts), key="retrain-summary")


# --- the command line ---------------------------------------------------------------------------------------


def make_request(**values: Any) -> RetrainRequest:
    """A checked request.

    Raises:
        InputError: a value won't do; one line a fault.
    """
    try:
        return RetrainRequest(**values)
    except ValidationError as error:
        raise InputError("\n".join(fault_line(fault) for fault in error.errors())) from None


def preset_of(preset: str, repository: Path) -> str:
    """The preset that a command line names, as a word or as a path of its file.

    Raises:
        InputError: the path is that of another file; a run reads its presets from the commit.
    """
    named = Path(preset)
    if named.name == preset and named.suffix != ".yaml":
        return named.name
    path = named.parent.resolve() / named.name
    if path.parent != repository / PRESETS or path.suffix != ".yaml":
        raise InputError(
            f"--preset {named}: a run reads presets from {PRESETS}/ of its commit; commit the file as "
            f"{PRESETS}/{named.stem}.yaml, or pass its values by --set"
        )
    return path.stem


def as_pools(assignments: Iterable[str]) -> dict[str, str]:
    """The pools of `--pool PATTERN=POOL`.

    Raises:
        InputError: one is no such assignment.
    """
    pools = {}
    for assignment in assignments:
        pattern, _, pool = assignment.partition("=")
        if not (pattern and pool):
            raise InputError(f"--pool {assignment}: PATTERN=POOL is wanted, such as train@*=gpu")
        pools[pattern] = pool
    return pools


def run(repository: Path, request: RetrainRequest, pools: dict[str, str], name: str | None) -> None:
    """Run the flow in this process and print where its results are.

    Raises:
        InputError: it could not start, or did not complete.
    """
    # Refuse what can be refused here before a server is started for it.
    base = resolve(repository, request.revision)
    params = request.params_text(repository, base)
    if request.publish != "nowhere":
        check_here(repository)
    if request.revision == "HEAD" and (changed := uncommitted(repository)):
        print(f"not part of this run, since not committed: {', '.join(changed)}", file=sys.stderr)
    if request.publish == "here" and not request.look_for_new_data:
        branch = published_from(repository, base, params)
        if branch and (report := _report_at(repository, branch)):
            print(f"nothing changed since {branch}; nothing to do; report: {report}")
            return
    wait_for_server = start_server()
    wait_for_server()
    name = name or f"{request.preset or 'params'}-{datetime.now():%Y%m%d-%H%M%S}"
    state = retrain.with_options(flow_run_name=name)(request, pools, return_state=True)
    if not state.is_completed():
        raise InputError(state.message or "the flow did not complete")
    logging.getLogger("prefect").setLevel(logging.WARNING)  # the end of its server is not the last word
    if state.name == "Unchanged":
        print(state.message)
        return
    published = state.result()
    assert isinstance(published, Published)
    print(f"report:  {published.report}")
    print(f"metrics: {published.metrics}")
    if published.branch:
        print(f"commit:  {published.commit} on {published.branch}")
