"""A flow's run in a checkout of its own, and its results: what the flows `retrain` and `sweep` share."""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from prefect import Flow, get_run_logger, task
from prefect.artifacts import create_link_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.tasks import exponential_backoff

from flows.deployment.temporary import start_server
from flows.doctor import check_before_run
from flows.engine.runner import Log
from flows.repository.checkout import checked_out, remove_leftovers
from flows.repository.git import uncommitted
from flows.repository.publish import (
    PREFIX,
    TRAILER,
    as_name,
    check_local_branches,
    check_origin,
    local_names,
    make_branch,
    push,
    rename,
)
from flows.repository.refs import has_origin
from flows.request import REQUESTED_BY, Publish, requester
from tasks.support.cli import InputError

#: Environment variable with the URL at which `make serve` serves runs/.
REPORTS_URL = "RETRAIN_REPORTS_URL"

#: The default pools: every stage runs on this machine.
NO_POOLS: dict[str, str] = {}

#: Name of the completed state of a run whose results are published already.
UNCHANGED = "Unchanged"


class Request(Protocol):
    """What every run is asked for: where to start, where to publish, and by whom."""

    @property
    def revision(self) -> str: ...

    @property
    def publish(self) -> Publish: ...

    @property
    def requested_by(self) -> str | None: ...


class Run(NamedTuple):
    """A run in its checkout."""

    checkout: Path
    repository: Path
    base: str
    """The commit from which it started."""
    request: Request
    pools: Mapping[str, str]
    """Stages to run on other machines, as patterns of stage names with a work pool each."""
    id: str
    """The id of the flow run."""
    at_origin: set[str] | None
    """The names of runs at origin when it started. None if nothing is pushed there."""
    trailers: str
    """The last lines of the messages of its commits."""
    log: Log

    @property
    def name(self) -> str:
        return self.checkout.name


class Published(NamedTuple):
    """The results of a run."""

    report: Path
    metrics: Path
    branch: str | None
    """None if nothing was published."""
    commit: str


# --- the start ----------------------------------------------------------------------------------------------


@contextmanager
def begin(repository: Path, base: str, request: Request, pools: Mapping[str, str]) -> Iterator[Run]:
    """Check out a commit for the current flow run, and remove the checkout in the end.

    The run is named like the flow run. If the name is taken, it is called NAME-2, and so on.

    Raises:
        InputError: this machine or repository cannot run it, or its results could not be published.
    """
    logger, run = get_run_logger(), flow_run.id or ""
    check_before_run(repository, logger.warning)
    for leftover in remove_leftovers(repository):
        logger.info("removed the checkout %s of a killed run", leftover.name)
    at_origin = _check_publishing(request.publish, repository, base, run)

    def taken() -> set[str]:
        return local_names(repository) | (at_origin or set())

    wanted = as_name(flow_run.name or "run")
    with checked_out(repository, base, wanted, run, taken) as checkout:
        if checkout.name != wanted:
            logger.info("the name %s is taken; this run is called %s", wanted, checkout.name)
        trailers = (
            f"{TRAILER}: {checkout.name}\n{REQUESTED_BY}: {requester(repository, request.requested_by)}"
        )
        yield Run(checkout, repository, base, request, pools, run, at_origin, trailers, logger.info)


def _check_publishing(publish: Publish, repository: Path, base: str, run: str) -> set[str] | None:
    """Refuse a run at its start whose results could not be published, and return the names at origin."""
    if publish != "nowhere":
        check_local_branches(repository)
    if publish == "remotes" and has_origin(repository):
        return check_origin(repository, base, run, get_run_logger().info)
    return None


# --- the results --------------------------------------------------------------------------------------------


def name_of(branch: str) -> str:
    """Return the name of the run that made a branch."""
    return branch.removeprefix(PREFIX)


class Results(NamedTuple):
    """What a run has left."""

    branch: str | None
    folder: Path
    """In runs/, named like the branch."""
    fault: str
    """Why the branch was not pushed. Empty if it was, or if the request does not ask for it."""


def publish_results(run: Run, commit: str, copy: Callable[[str], Path]) -> Results:
    """Publish the commit of a run as its request says.

    Args:
        run: The run.
        commit: The commit with its results.
        copy: Copies the report into the folder of runs/ with this name, and returns the folder.
    """
    branch, fault = None, ""
    if run.request.publish != "nowhere":
        branch = make_branch(run.repository, run.name, commit)
    folder = copy(name_of(branch or run.name))
    if branch and run.request.publish == "remotes":
        branch, fault = _push_branch(run, branch)
        folder = folder.with_name(name_of(branch))
    run.log(f"published {f'as {branch}' if branch else 'nowhere'}; report: {folder / 'index.html'}")
    return Results(branch, folder, fault)


def unchanged(run: Run, same: str, report_of: Callable[[str], Path | None]) -> State[Any]:
    """Return the state of a run whose results were published before. Pushes their branch, if origin lacks it.

    Args:
        run: The run.
        same: The base or the branch that has the same results.
        report_of: Returns the report of a revision, or None if there is none.

    Raises:
        InputError: the branch cannot be pushed.
    """
    since, done = (run.request.revision if same == run.base else same), "nothing published"
    if run.at_origin is not None and same.startswith(PREFIX) and name_of(same) not in run.at_origin:
        since, fault = _push_branch(run, same)
        if fault:
            raise InputError(fault)
        done = "pushed now"
    report = report_of(since)
    message = f"nothing changed since {since}; {done}" + (f"; report: {report}" if report else "")
    run.log(message)
    return Completed(name=UNCHANGED, message=message)


def _push_branch(run: Run, branch: str) -> tuple[str, str]:
    """Push a branch. Returns its name at origin, and an error message, which is empty on success."""
    state = publish(run.repository, run.checkout, branch, return_state=True)
    if not state.is_completed():
        reason = " ".join((state.message or "").split())
        return branch, f"{branch} is published in {run.repository}, but not pushed: {reason}"
    pushed = str(state.result())
    if pushed != branch:
        run.log(f"another {branch} was pushed to origin; this one is renamed to {pushed}")
        rename(run.repository, branch, pushed)
    return pushed, ""


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


def show(*artifacts: Callable[[], Any]) -> None:
    """Create artifacts in the UI. Failures are only logged, because the results are already published."""
    for create in artifacts:
        try:
            create()
        except Exception as error:  # the server is unavailable, or the artifact is too large
            get_run_logger().warning("could not show an artifact in the UI: %s", error)


def link_report(results: Path, key: str) -> None:
    """Link the report of a folder in runs/ from the UI."""
    server, name = os.environ.get(REPORTS_URL), results.name
    page = results / "index.html"
    link = f"{server}/{name}/{page.name}" if server else page.as_uri()
    create_link_artifact(link, link_text=f"Report of {name}", key=key)


# --- the command line ---------------------------------------------------------------------------------------


def as_pools(assignments: Iterable[str]) -> dict[str, str]:
    """Parse values of `--pool PATTERN=POOL`.

    Raises:
        InputError: a value does not have this form, or a pattern has two pools.
    """
    pools: dict[str, str] = {}
    for assignment in assignments:
        pattern, _, pool = assignment.partition("=")
        if not (pattern and pool):
            raise InputError(f"--pool {assignment}: expected PATTERN=POOL, such as train@*=gpu")
        if pools.setdefault(pattern, pool) != pool:
            raise InputError(f"--pool {assignment}: {pattern} has the pool {pools[pattern]} already")
    return pools


def check_request(repository: Path, request: Request) -> None:
    """Report what a command can know before it starts a server.

    Raises:
        InputError: the results could not be published.
    """
    if request.publish != "nowhere":
        check_local_branches(repository)
    if request.revision == "HEAD" and (changed := uncommitted(repository)):
        print(f"ignoring uncommitted changes in {', '.join(changed)}", file=sys.stderr)


def run_here(
    flow: Flow[..., Any], repository: Path, request: Request, pools: Mapping[str, str], name: str
) -> Published | None:
    """Run a flow in this process. Prints a message if its results were published before.

    Returns:
        Its results, or None if they were published before.

    Raises:
        InputError: the flow could not start, or did not complete.
    """
    check_before_run(repository, warn=lambda _: None)  # the flow logs the warnings
    start_server()()
    named: Callable[..., State[Any]] = flow.with_options(flow_run_name=name)
    state = named(request, pools, return_state=True)
    if not state.is_completed():
        raise InputError(state.message or "the flow did not complete")
    logging.getLogger("prefect").setLevel(logging.WARNING)  # hide the lines about the end of the server
    if state.name == UNCHANGED:
        print(state.message)
        return None
    published = state.result()
    assert isinstance(published, Published)
    return published
