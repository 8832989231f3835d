"""Reproduce the pipeline of dvc.yaml as a Prefect flow, in a checkout of its own, and publish the results.

`cxr retrain` runs the flow from a command line. `make serve` deploys it to the Prefect UI.
"""

import re
import shutil
from base64 import b64encode
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.comparison import NOTE, as_lines, as_rows, compare_with
from flows.decide import announce, announce_refusal, refresh_choices
from flows.deployment.events import report_verdict
from flows.engine.order import INTERRUPTED, RETRIES, was_interrupted
from flows.engine.pipeline import restore_output
from flows.promotion import GATE, Challenger, Decision, Judged, decide, judge_run
from flows.remote.places import run_checkout
from flows.repository.checkout import RUNS
from flows.repository.git import commit, find_repository, git, resolve, reword
from flows.repository.publish import PREFIX, RESULTS, published_already, published_from, report_with
from flows.repository.refs import has_origin
from flows.repository.revision import Training, change_params
from flows.request import RetrainRequest
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
from tasks.common.files import replacing
from tasks.settings.params import load_data
from tasks.support.cli import InputError, describe_os_error, is_temporary, without_secrets

#: The default request: all stages, with params.yaml unchanged.
DEFAULT_REQUEST = RetrainRequest()


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
        return _retrain(request, pools, find_repository())
    except InputError as error:
        return Failed(message=str(error))


def _retrain(request: RetrainRequest, pools: dict[str, str], repository: Path) -> Published | State[Any]:
    base = resolve(repository, request.revision)
    params = request.params_text(repository, base)
    with begin(repository, base, request, pools) as run:
        path = run.checkout / "params.yaml"
        path.write_text(params, encoding="utf-8")
        if request.look_for_new_data:
            looked = look_for_new_data(run.checkout, repository, return_state=True)
            if not looked.is_completed():
                raise InputError(f"looking for new data: {looked.message}")
        commit(run.checkout, f"Params of {run.name}\n\n{_describe(request)}\n\n{run.trailers}", *RESULTS)
        previous = _previous_data(run.checkout)
        ran = run_checkout(run.checkout, repository, pools, run.id, run.log, variables=previous)
        return _publish(request, run, ran.trainings)


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


def _publish(request: RetrainRequest, run: Run, trainings: Mapping[str, Training]) -> Published | State[Any]:
    checkout, repository = run.checkout, run.repository
    changes = compare_with(checkout, run.base, trainings)
    began = f"Started from {run.base[:10]} ({request.revision})."
    what = ", ".join(f"{key}={value}" for key, value in request.requested().items())
    title = f"Retrain {run.name}: {what}" if what else f"Retrain {run.name}"
    parts = [title, began, _describe(request), "\n".join(as_lines(changes)), run.trailers]
    final = commit(checkout, "\n\n".join(filter(None, parts)), *RESULTS)
    table = partial(
        create_table_artifact,
        as_rows(changes, f"{request.revision} ({run.base[:10]})"),
        key="retrain-metrics",
        description=f"# Scores of {run.name}\n\n{began}\n\n{NOTE}",
    )
    if same := published_already(repository, run.base, final):
        state = unchanged(run, same, partial(_report_of, repository, checkout))
        show(table)
        return state

    judged = _judge(request, repository, checkout)
    if judged:
        final = reword(checkout, "\n\n".join(filter(None, [*parts[:-1], "\n".join(judged.lines), parts[-1]])))
    verdict = judged.html if judged else ""
    branch, results, fault = publish_results(
        run, final, lambda name: _copy_results(checkout, repository / RUNS / name, final, verdict)
    )
    show(
        table,
        partial(link_report, results, "retrain-report"),
        partial(_summarize, results, branch, run.base),
    )
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
        challenger, version = decide(
            repository, run, decision, by=GATE, reason=judged.lines[0], log=get_run_logger().info
        )
        if version:
            announce("model.promoted", version, GATE, judged.lines[0])
        else:
            announce_refusal(challenger, GATE, judged.lines[0])
    else:
        get_run_logger().info("the deployment `promote` waits for a decision on %s", run)
    refresh_choices()


def _report_of(repository: Path, checkout: Path, branch: str) -> Path | None:
    """Return the report of a branch with the checkout's results, or None if runs/ has another report."""
    folder = repository / RUNS / name_of(branch)
    if branch.startswith(PREFIX) and not folder.exists():
        _copy_results(checkout, folder, resolve(repository, branch))
    return report_with(folder, (checkout / "metrics.json").read_text(encoding="utf-8"))


def _report_at(repository: Path, branch: str) -> Path | None:
    return report_with(repository / RUNS / name_of(branch), git(repository, "show", f"{branch}:metrics.json"))


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


def run(repository: Path, request: RetrainRequest, pools: dict[str, str], name: str | None) -> None:
    """Run the flow in this process, and print where its results are.

    Raises:
        InputError: the flow could not start, or did not complete.
    """
    # Report errors in the request before starting a server.
    base = resolve(repository, request.revision)
    params = request.params_text(repository, base)
    check_request(repository, request)
    if request.publish == "here" and not request.look_for_new_data:
        branch = published_from(repository, base, params)
        if branch and (report := _report_at(repository, branch)):
            print(f"nothing changed since {branch}; nothing to do; report: {report}")
            return
    name = name or f"{request.preset or 'params'}-{datetime.now():%Y%m%d-%H%M%S}"
    published = run_here(retrain, repository, request, pools, name)
    if not published:
        return
    print(f"report:  {published.report}")
    print(f"metrics: {published.metrics}")
    if published.branch:
        print(f"commit:  {published.commit} on {published.branch}")
