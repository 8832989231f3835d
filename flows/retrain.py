"""Reproduce the pipeline of dvc.yaml as a Prefect flow, in a checkout of its own, and publish the results.

`cxr retrain` runs the flow from a command line. `make serve` deploys it to the Prefect UI.
"""

import logging
import os
import re
import shutil
import sys
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.tasks import exponential_backoff
from pydantic import ValidationError

from flows.comparison import NOTE, as_lines, as_rows, compare_with
from flows.decide import announce, refresh_choices
from flows.deployment.events import report_verdict
from flows.deployment.temporary import start_server
from flows.doctor import check_before_run
from flows.engine.order import INTERRUPTED, RETRIES, was_interrupted
from flows.engine.pipeline import restore_output
from flows.promotion import GATE, Challenger, Decision, Judged, decide, judge_run
from flows.publish import (
    PREFIX,
    RESULTS,
    TRAILER,
    as_name,
    check_local_branches,
    check_origin,
    local_names,
    make_branch,
    published_already,
    published_from,
    push,
    rename,
    report_with,
)
from flows.remote.places import run_checkout
from flows.repository.checkout import RUNS, checked_out, remove_leftovers
from flows.repository.git import commit, find_repository, git, resolve, reword, uncommitted
from flows.repository.refs import has_origin
from flows.repository.revision import Training, change_params
from flows.request import PRESETS, REQUESTED_BY, Publish, RetrainRequest, is_preset_name, requester
from tasks.common.files import replacing
from tasks.settings.schema import fault_line, load_data
from tasks.support.cli import InputError, describe_os_error, is_temporary, without_secrets

#: Environment variable with the URL at which `make serve` serves runs/.
REPORTS_URL = "RETRAIN_REPORTS_URL"

#: The default request: all stages, with params.yaml unchanged.
DEFAULT_REQUEST = RetrainRequest()

#: The default pools: every stage runs on this machine.
NO_POOLS: dict[str, str] = {}


class Published(NamedTuple):
    """The results of a run."""

    report: Path
    metrics: Path
    branch: str | None
    """None if nothing was published."""
    commit: str


@flow(name="retrain")
def retrain(
    request: RetrainRequest = DEFAULT_REQUEST, pools: dict[str, str] = NO_POOLS
) -> Published | State[Any]:
    """Run every stage of dvc.yaml at a revision with changed params, and publish the results.

    The flow works in a git worktree. It commits the params there before any stage runs, and dvc.lock and the
    metrics afterwards. The branch `retrain/NAME`, named like the run, points to the last commit. A copy of
    the report and metrics is stored in `runs/NAME`. If the name is taken, the run is called NAME-2, and so
    on. If the results equal those of the revision or of a published branch, nothing is published.

    Args:
        request: What to run, which values of params.yaml to change, and where to publish the results.
        pools: Stages to run on other machines, as patterns of stage names with a work pool each, such as
            {"train@*": "gpu"}. All other stages run on this machine.
    """
    try:
        return _retrain(request, pools, find_repository(), as_name(flow_run.name or "run"))
    except InputError as error:
        return Failed(message=str(error))


def _retrain(
    request: RetrainRequest, pools: dict[str, str], repository: Path, wanted: str
) -> Published | State[Any]:
    logger = get_run_logger()
    check_before_run(repository, logger.warning)
    for leftover in remove_leftovers(repository):
        logger.info("removed the checkout %s of a killed run", leftover.name)
    base = resolve(repository, request.revision)
    params = request.params_text(repository, base)
    run = flow_run.id or ""
    at_origin = check_publishing(request.publish, repository, base, run)

    def taken() -> set[str]:
        return local_names(repository) | (at_origin or set())

    with checked_out(repository, base, wanted, run, taken) as checkout:
        name = checkout.name
        if name != wanted:
            logger.info("the name %s is taken; this run is called %s", wanted, name)
        path = checkout / "params.yaml"
        path.write_text(params, encoding="utf-8")
        if request.look_for_new_data:
            looked = look_for_new_data(checkout, repository, return_state=True)
            if not looked.is_completed():
                raise InputError(f"looking for new data: {looked.message}")
        trailers = f"{TRAILER}: {name}\n{REQUESTED_BY}: {requester(repository, request.requested_by)}"
        commit(checkout, f"Params of {name}\n\n{_describe(request)}\n\n{trailers}", *RESULTS)
        previous = _previous_data(checkout)
        ran = run_checkout(checkout, repository, pools, run, logger.info, variables=previous)
        return _publish(request, repository, checkout, base, ran.trainings, at_origin, trailers)


def check_publishing(publish: Publish, repository: Path, base: str, run: str) -> set[str] | None:
    """Refuse a run at its start whose results could not be published.

    Returns:
        The names taken at origin, or None if nothing is pushed there.

    Raises:
        InputError: the branch cannot be created or pushed.
    """
    if publish != "nowhere":
        check_local_branches(repository)
    if publish == "remotes" and has_origin(repository):
        return check_origin(repository, base, run, get_run_logger().info)
    return None


def _describe(request: RetrainRequest) -> str:
    lines = [f"{key}: {value}" for key, value in request.requested().items()]
    return "\n".join(lines) or "No changes."


# --- new data -----------------------------------------------------------------------------------------------

RAW = Path("data/raw")
PREVIOUS_RAW = Path("data/previous")


@task(
    task_run_name="look for new data",
    persist_result=False,
    cache_policy=NO_CACHE,
    retry_condition_fn=was_interrupted,
    **RETRIES["download"],
)
def look_for_new_data(checkout: Path, repository: Path) -> State[Any]:
    """List the data source, and pin its contents in the checkout's params.yaml if they have changed.

    The revision's data is kept in the checkout, so that only changed files are downloaded.
    """
    try:
        text = _pin_new_data(checkout, repository)
    except InputError as error:
        return Failed(message=str(error))
    except OSError as error:
        name = INTERRUPTED if is_temporary(error) else None
        return Failed(name=name, message=describe_os_error(error))
    get_run_logger().info("%s", text)
    return Completed(message=text)


def _pin_new_data(checkout: Path, repository: Path) -> str:
    # These import pandas, which most runs do not need.
    from tasks.sources.layout import describe_left_out
    from tasks.sources.look import look

    path, previous = checkout / "params.yaml", checkout / PREVIOUS_RAW
    text = path.read_text(encoding="utf-8")
    if not previous.exists() and restore_output(checkout, RAW.as_posix()):
        (checkout / RAW).rename(previous)
    data = load_data(path)
    source = data.source
    news = look(source, repository, previous if previous.exists() else None, data.layout)
    for line in describe_left_out(news.left_out, without_secrets(source)):
        get_run_logger().warning("%s", line)
    if news.fingerprint and news.differs:
        change = {"new data": {"data": {"fingerprint": news.fingerprint}}}
        path.write_text(change_params(checkout, text, change), encoding="utf-8")
    return news.text


def _previous_data(checkout: Path) -> dict[str, str]:
    previous = checkout / PREVIOUS_RAW
    return {"RETRAIN_PREVIOUS_RAW": str(previous)} if previous.exists() else {}


# --- results ------------------------------------------------------------------------------------------------


def _publish(
    request: RetrainRequest,
    repository: Path,
    checkout: Path,
    base: str,
    trainings: Mapping[str, Training],
    at_origin: set[str] | None,
    trailers: str,
) -> Published | State[Any]:
    logger, name = get_run_logger(), checkout.name
    changes = compare_with(checkout, base, trainings)
    began = f"Started from {base[:10]} ({request.revision})."
    what = ", ".join(f"{key}={value}" for key, value in request.requested().items())
    title = f"Retrain {name}: {what}" if what else f"Retrain {name}"
    parts = [title, began, _describe(request), "\n".join(as_lines(changes)), trailers]
    final = commit(checkout, "\n\n".join(filter(None, parts)), *RESULTS)
    table = partial(
        create_table_artifact,
        as_rows(changes, f"{request.revision} ({base[:10]})"),
        key="retrain-metrics",
        description=f"# Scores of {name}\n\n{began}\n\n{NOTE}",
    )
    if same := published_already(repository, base, final):
        since, to_push = (request.revision, None) if same == base else (same, at_origin)
        message = _unchanged(repository, checkout, since, to_push)
        logger.info(message)
        show(table)
        return Completed(name="Unchanged", message=message)

    judged = _judge(request, repository, checkout)
    if judged:
        final = reword(checkout, "\n\n".join(filter(None, [*parts[:-1], "\n".join(judged.lines), parts[-1]])))
    branch, fault = None, ""
    if request.publish != "nowhere":
        branch = make_branch(repository, name, final)
    results = _copy_results(
        checkout, repository / RUNS / _name_of(branch or name), final, judged.html if judged else ""
    )
    if branch and request.publish == "remotes":
        branch, fault = push_branch(repository, checkout, branch)
        results = results.with_name(_name_of(branch))
    logger.info("published %s; report: %s", f"as {branch}" if branch else "nowhere", results / "index.html")
    show(table, partial(_link_report, results), partial(_summarize, results, branch, base))
    if fault:
        raise InputError(fault)
    if judged:
        _offer(request, repository, results, judged, final)
    return Published(results / "index.html", results / "metrics.json", branch, final)


def _judge(request: RetrainRequest, repository: Path, checkout: Path) -> Judged | None:
    """Judge the run's network against the champion, if the request asks for it and the run has one."""
    if request.promotion == "never":
        return None
    state = judge_network(repository, checkout, return_state=True)
    if not state.is_completed():
        raise InputError(f"judging the new network: {state.message}")
    judged = cast(Judged | None, state.result())
    if judged is None:
        get_run_logger().warning("%s", state.message)
    return judged


@task(task_run_name="judge", persist_result=False, cache_policy=NO_CACHE)
def judge_network(repository: Path, checkout: Path) -> State[Any]:
    """Run the new network and the champion on the same images, and compare them."""
    try:
        judged = judge_run(repository, checkout)
    except InputError as error:
        return Failed(message=str(error))
    message = judged.lines[0] if judged else "this run exports no network that could be promoted"
    return Completed(message=message, data=judged)


def _offer(request: RetrainRequest, repository: Path, results: Path, judged: Judged, commit: str) -> None:
    """Show the verdict, and decide, or leave the decision to a person."""
    run = results.name
    show(
        partial(create_markdown_artifact, judged.markdown, key="retrain-verdict"),
        partial(
            report_verdict,
            judged.model,
            run=run,
            commit=commit,
            champion=judged.champion,
            passed=judged.passed,
            verdict=judged.lines[0],
            promotion=request.promotion,
        ),
    )
    Challenger.of(judged, run, commit, request.publish == "remotes" and has_origin(repository)).write(results)
    if request.promotion == "if better":
        decision: Decision = "promoted" if judged.passed else "refused"
        version = decide(
            repository, run, decision, by=GATE, reason=judged.lines[0], log=get_run_logger().info
        )
        if version:
            announce("model.promoted", version, GATE, judged.lines[0])
    else:
        get_run_logger().info("the deployment `promote` waits for a decision on %s", run)
    refresh_choices()


def _name_of(branch: str) -> str:
    return branch.removeprefix(PREFIX)


def _unchanged(repository: Path, checkout: Path, same: str, at_origin: set[str] | None) -> str:
    """Return a message about unchanged results. Pushes the branch that has them, if origin lacks it."""
    done = "nothing published"
    if at_origin is not None and same.startswith(PREFIX) and _name_of(same) not in at_origin:
        pushed, fault = push_branch(repository, checkout, same)
        if fault:
            raise InputError(fault)
        same, done = pushed, "pushed now"
    report = _report_of(repository, checkout, same)
    return f"nothing changed since {same}; {done}" + (f"; report: {report}" if report else "")


def _report_of(repository: Path, checkout: Path, branch: str) -> Path | None:
    """Return the report of a branch with the checkout's results, or None if runs/ has another report."""
    folder = repository / RUNS / _name_of(branch)
    if branch.startswith(PREFIX) and not folder.exists():
        _copy_results(checkout, folder, resolve(repository, branch))
    return report_with(folder, (checkout / "metrics.json").read_text(encoding="utf-8"))


def _report_at(repository: Path, branch: str) -> Path | None:
    return report_with(
        repository / RUNS / _name_of(branch), git(repository, "show", f"{branch}:metrics.json")
    )


def push_branch(repository: Path, checkout: Path, branch: str) -> tuple[str, str]:
    """Push a branch. Returns its name at origin, and an error message, which is empty on success."""
    state = publish(repository, checkout, branch, return_state=True)
    if not state.is_completed():
        reason = " ".join((state.message or "").split())
        return branch, f"{branch} is published in {repository}, but not pushed: {reason}"
    pushed = str(state.result())
    if pushed != branch:
        get_run_logger().info("another %s was pushed to origin; this one is renamed to %s", branch, pushed)
        rename(repository, branch, pushed)
    return pushed, ""


def show(*artifacts: Callable[[], Any]) -> None:
    """Create artifacts in the UI. Failures are only logged, because the results are already published."""
    for create in artifacts:
        try:
            create()
        except Exception as error:  # the server is unavailable, or the artifact is too large
            get_run_logger().warning("could not show an artifact in the UI: %s", error)


@task(
    task_run_name="publish",
    retries=3,
    retry_delay_seconds=exponential_backoff(3),
    retry_jitter_factor=0.5,
    persist_result=False,
    cache_policy=NO_CACHE,
)
def publish(repository: Path, checkout: Path, branch: str) -> State[Any]:
    """Push the data and the branch to the existing remotes, and return the branch's name at origin."""
    try:
        return Completed(data=push(repository, checkout, branch, get_run_logger().info))
    except InputError as error:
        return Failed(message=str(error))


def _copy_results(checkout: Path, results: Path, commit: str, verdict: str = "") -> Path:
    """Copy the report and the metrics out of the checkout, which is removed at the end of the run.

    The copied page names the commit, and shows the verdict, which is HTML. The page in `reports/` cannot,
    because equal results have equal bytes.
    """
    with replacing(results) as beside:
        shutil.copytree(checkout / "reports", beside, copy_function=shutil.copyfile)
        page = beside / "index.html"
        text = with_commit(page.read_text(encoding="utf-8"), commit)
        page.write_text(text.replace("<main>\n", f"<main>\n{verdict}", 1), encoding="utf-8")
        shutil.copyfile(checkout / "metrics.json", beside / "metrics.json")
    return results


def with_commit(page: str, commit: str) -> str:
    """The report's page with this commit in its section about what the scores rest on."""
    named = f'<span class="commit"><code>{commit}</code></span>'
    return re.sub(r'<span class="commit">.*?</span>', named, page, count=1)


def _link_report(results: Path) -> None:
    name = results.name
    server = os.environ.get(REPORTS_URL)
    link = f"{server}/{name}/index.html" if server else (results / "index.html").as_uri()
    create_link_artifact(link, link_text=f"Report of {name}", key="retrain-report")


def _summarize(results: Path, branch: str | None, base: str) -> None:
    """Show the report's summary in the UI, with its figures inline, since the UI loads no files."""
    parts = [(results / "summary.md").read_text(encoding="utf-8")]
    figures = results / "figures.svg"
    if figures.exists():  # reports of early revisions have no figures
        data = b64encode(figures.read_bytes()).decode()
        parts.append(f"![Figures of the report](data:image/svg+xml;base64,{data})\n")
    if branch:
        parts.append(f"## In your own checkout\n\n```\ndvc metrics diff {base[:10]} {branch}\n```\n")
    create_markdown_artifact("\n".join(parts), key="retrain-summary")


# --- the command line ---------------------------------------------------------------------------------------


def make_request(**values: Any) -> RetrainRequest:
    """Create a validated request.

    Raises:
        InputError: a value is invalid. The message has one line per error.
    """
    try:
        return RetrainRequest(**values)
    except ValidationError as error:
        raise InputError("\n".join(fault_line(fault) for fault in error.errors())) from None


def preset_of(preset: str, repository: Path) -> str:
    """Return the name of the preset that a command line gives as a name or as a path.

    Raises:
        InputError: the path is not in presets/. A run reads its presets from the commit.
    """
    if is_preset_name(preset):
        return preset
    named = Path(preset)
    path = named.parent.resolve() / named.name
    if path.parent != repository / PRESETS or path.suffix != ".yaml":
        raise InputError(
            f"--preset {named}: a run reads presets from {PRESETS}/ of its commit; commit the file as "
            f"{PRESETS}/{named.stem}.yaml, or pass its values with --set"
        )
    return path.stem


def as_pools(assignments: Iterable[str]) -> dict[str, str]:
    """Parse values of `--pool PATTERN=POOL`.

    Raises:
        InputError: a value does not have this form.
    """
    pools = {}
    for assignment in assignments:
        pattern, _, pool = assignment.partition("=")
        if not (pattern and pool):
            raise InputError(f"--pool {assignment}: expected PATTERN=POOL, such as train@*=gpu")
        pools[pattern] = pool
    return pools


def run(repository: Path, request: RetrainRequest, pools: dict[str, str], name: str | None) -> None:
    """Run the flow in this process, and print where its results are.

    Raises:
        InputError: the flow could not start, or did not complete.
    """
    # Report errors in the request before starting a server.
    base = resolve(repository, request.revision)
    params = request.params_text(repository, base)
    if request.publish != "nowhere":
        check_local_branches(repository)
    if request.revision == "HEAD" and (changed := uncommitted(repository)):
        print(f"ignoring uncommitted changes in {', '.join(changed)}", file=sys.stderr)
    if request.publish == "here" and not request.look_for_new_data:
        branch = published_from(repository, base, params)
        if branch and (report := _report_at(repository, branch)):
            print(f"nothing changed since {branch}; nothing to do; report: {report}")
            return
    check_before_run(repository, warn=lambda _: None)  # the flow logs the warnings
    wait_for_server = start_server()
    wait_for_server()
    name = name or f"{request.preset or 'params'}-{datetime.now():%Y%m%d-%H%M%S}"
    state = retrain.with_options(flow_run_name=name)(request, pools, return_state=True)
    if not state.is_completed():
        raise InputError(state.message or "the flow did not complete")
    logging.getLogger("prefect").setLevel(logging.WARNING)  # hide the lines about the end of the server
    if state.name == "Unchanged":
        print(state.message)
        return
    published = state.result()
    assert isinstance(published, Published)
    print(f"report:  {published.report}")
    print(f"metrics: {published.metrics}")
    if published.branch:
        print(f"commit:  {published.commit} on {published.branch}")
