"""Stages on other machines: each a run of the deployment `stage` in a work pool, on a machine that is free.

Prefect places the work, git's origin carries the commit that a stage starts from, the DVC remote the data and
the results. What comes back is what DVC's run cache has of the stage, as if it had run here before.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.runtime import task_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelling, Crashed

from flows.engine.order import INTERRUPTED
from flows.engine.pipeline import Pipeline
from flows.engine.runner import Log, Outcome, Show, StageRun
from flows.remote.checkpoints import sweep_checkpoints
from flows.remote.clock import Clock
from flows.remote.poll import POLL, Watch
from flows.remote.run_cache import Remote, can_travel, check_remote
from flows.remote.stage_request import REFUSED, StageRequest, versions
from flows.repository.dvc_internals import open_repo, open_waiting
from flows.repository.git import commit
from flows.repository.refs import ORIGIN, forget_commits, has_origin, send_commit, sent_commits
from flows.repository.retry import DeniedError, UnavailableError, with_retries
from tasks.support.cli import InputError

#: The flow that runs one stage, and of whose deployments each is named like the work pool that it is for.
FLOW = "stage"

#: Seconds after which a machine that took a stage and never began it, or never ended it, is taken for dead.
BEGIN_WITHIN = 300.0

#: Seconds after which a checkpoint on the remote is deleted, since nobody took it up.
KEPT_FOR = 30 * 24 * 3600.0

AWAY = "the Prefect server does not answer"

#: Seconds between two lines that say that a stage still waits.
REMIND = 300.0

#: Seconds after which a stage that a worker refused is offered again, at first.
REFUSED_PAUSE = 10.0

#: A worker that is lost leaves its stage to another.
LOST: dict[str, Any] = {"retries": 4, "retry_delay_seconds": [5, 15, 30, 60]}

#: States that last for moments where all is well.
BRIEF = (StateType.PENDING, StateType.CANCELLING)


class Pool:
    """A work pool as a place for the stages of one run, of which it has as many as its workers can do."""

    capacity = 10_000
    retries = LOST

    def __init__(self, name: str, run: "RemoteRun") -> None:
        self._name, self._run = name, run

    def run(self, stage: str, log: Log, show: Show) -> StageRun:  # noqa: ARG002  # the worker shows events
        return self._run.run(stage, self._name, log)


class RemoteRun:
    """What a flow run has on other machines."""

    def __init__(
        self, checkout: Path, pipeline: Pipeline, repository: Path, run: str, run_name: str, log: Log
    ) -> None:
        """`checkout` is the flow's own, its params committed."""
        self.checkout, self.pipeline, self.repository = checkout, pipeline, repository
        self._run_id, self._run_name, self._log = run, run_name, log
        self._stopped = threading.Event()
        self._remote = Remote(checkout, log, self._stopped)
        self._committing = threading.Lock()
        self._watch = Watch()
        self._asked: set[UUID] = set()

    def run(self, stage: str, pool: str, log: Log) -> StageRun:
        """Have a worker bring one stage up to date, and take its result."""
        clock = Clock()
        try:
            with clock("look"):
                if self._remote.restore(stage):
                    return StageRun(Outcome.CACHED, "")
            with clock("inputs"):
                self._remote.push_inputs(stage, self.pipeline.upstream[stage])
            with clock("commit"):
                state = self._send_lock(stage, log)
            request = StageRequest(stage=stage, commit=state, run=UUID(self._run_id), versions=versions())
            ended = self._done_by_a_worker(request, pool, clock, log)
            with clock("take"):
                done = self._take(ended, stage)
            return done._replace(note=f"{done.note}; here: {clock}")
        except UnavailableError as error:
            return StageRun(Outcome.INTERRUPTED, str(error))
        except DeniedError as error:
            return StageRun(Outcome.FAILED, str(error))

    def _send_lock(self, stage: str, log: Log) -> str:
        """Commit dvc.lock as it is now, with the stage's inputs in it, and push that for workers."""

        def send() -> str:
            with self._committing:
                with open_waiting(self.checkout) as repo, repo.lock:
                    made = commit(self.checkout, f"Inputs of {stage}", "dvc.lock")
                send_commit(self.checkout, self._run_id, made)
            return made

        return with_retries("origin", send, log, self._stopped)

    def _done_by_a_worker(self, request: StageRequest, pool: str, clock: Clock, log: Log) -> FlowRun:
        """The run of the stage that has ended; one that a worker refused is left to another."""
        pause = REFUSED_PAUSE
        with get_client(sync_client=True) as client:
            while True:
                with clock("send"):
                    sent = with_retries(
                        "the Prefect server",
                        lambda: self._send(client, request, pool, log),
                        log,
                        self._stopped,
                    )
                with clock("away"):
                    ended = self._wait(client, sent, pool, log)
                if not (ended.state and ended.state.name == REFUSED):
                    return ended
                log(f"refused {ended.state.message}; another worker may take it in {pause:.0f} s")
                self._stopped.wait(pause)
                pause = min(2 * pause, REMIND)

    def _send(self, client: SyncPrefectClient, request: StageRequest, pool: str, log: Log) -> FlowRun:
        """Make the flow run that does it, or find the one that already does it for somebody else."""
        if self._stopped.is_set():
            raise UnavailableError("stopped")
        deployment = client.read_deployment_by_name(f"{FLOW}/{pool}")
        same = "-".join([pool, self._remote.key(request.stage), *sorted(request.versions.values())])
        tries = 0
        while True:
            run = client.create_flow_run_from_deployment(
                deployment.id,
                parameters={"request": request.model_dump(mode="json")},
                name=f"{request.stage} of {self._run_name}",
                tags=[self._run_name],
                idempotency_key=f"{same}-{tries}",
                # So the UI shows it below its task, and the server cancels it with the parent.
                parent_task_run_id=UUID(task_run.id) if task_run.id else None,
            )
            if run.state and not run.state.is_final():
                break
            tries += 1
        if run.parameters["request"]["run"] == self._run_id:
            self._asked.add(run.id)
            log(f"sent to work pool {pool}")
        else:
            log(f"waits for {run.name} in work pool {pool}, which is the same")
        return run

    def _wait(self, client: SyncPrefectClient, sent: FlowRun, pool: str, log: Log) -> FlowRun:
        """Follow a run until it has ended; a server that is away for a while is waited for."""
        since = said_at = time.monotonic()
        seen: str | None = None
        # Trying again is what this loop does.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), self._watch.over(sent.id):
            while not self._stopped.wait(POLL):
                run = self._watch.look(client, sent.id)
                if run is None:
                    if seen != AWAY:
                        log(AWAY)
                        seen = AWAY
                    continue
                assert run.state
                if run.state.is_final():
                    return run
                if run.state.name != seen:
                    log(f"in work pool {pool}: {run.state.name}")
                    since, seen = time.monotonic(), run.state.name
                waited = time.monotonic() - since
                if run.state.type is StateType.SCHEDULED and time.monotonic() - said_at > REMIND:
                    log(f"still waits for a worker of work pool {pool}")
                    said_at = time.monotonic()
                if run.state.type in BRIEF and waited > BEGIN_WITHIN:
                    lost: State[Any] = Crashed(message=f"Nothing was heard of it for {waited:.0f} s.")
                    with suppress(ObjectNotFound, httpx.HTTPError):  # the next look sees to that
                        client.set_flow_run_state(run.id, lost, force=True)
        self._cancel(sent.id)
        raise UnavailableError("stopped")

    def _take(self, ended: FlowRun, stage: str) -> StageRun:
        """What a run has left, taken from the run cache."""
        state = ended.state
        assert state
        message = state.message or str(state.name)
        if state.is_completed():
            self._remote.note_pushed(stage)
            if self._remote.restore(stage):
                outcome = Outcome.CACHED if state.name == "Cached" else Outcome.RAN
                return StageRun(outcome, "", message)
            return StageRun(Outcome.INTERRUPTED, f"its result is not on the DVC remote; {message}")
        if state.is_crashed() or state.is_cancelled() or state.name == INTERRUPTED:
            return StageRun(Outcome.INTERRUPTED, f"{ended.name}: {state.name}: {message}")
        return StageRun(Outcome.FAILED, message)

    def stop(self) -> None:
        """Cancel what other machines do for this run alone, and have origin forget it."""
        self._stopped.set()
        for run_id in list(self._asked):
            self._cancel(run_id)
        self._remote.wait_for_end()
        with suppress(InputError):  # the next run's sweep sees to it
            sent = sent_commits(self.repository).items()
            forget_commits(self.repository, [ref for ref, run in sent if run == self._run_id])

    def _cancel(self, run_id: UUID) -> None:
        """Cancel a run that this one has asked for, if it goes on; once."""
        if run_id not in self._asked:
            return
        self._asked.discard(run_id)
        with (
            suppress(ObjectNotFound, httpx.HTTPError),
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True) as client,
        ):
            run = client.read_flow_run(run_id)
            if run.state and not run.state.is_final():
                client.set_flow_run_state(run_id, Cancelling())

    def sweep(self) -> None:
        """Have origin and the remote forget what ended runs have left there."""
        try:
            sent = sent_commits(self.repository)
            with get_client(sync_client=True) as client:
                ended = {run for run in set(sent.values()) if _has_ended(client, run)}
            forget_commits(self.repository, [ref for ref, run in sent.items() if run in ended])
            sweep_checkpoints(self.checkout, KEPT_FOR)
        except Exception as error:  # nothing of it is needed now
            self._log(f"what ended runs have left stays for now: {' '.join(str(error).split())}")


def _has_ended(client: SyncPrefectClient, run: str) -> bool:
    """Whether a run of this server has; of another server's nothing is known."""
    with suppress(ObjectNotFound, ValueError, httpx.HTTPError):
        state = client.read_flow_run(UUID(run)).state
        return bool(state and state.is_final())
    return False


# --- which stage goes where ---------------------------------------------------------------------------------


def pool_of(stage: str, pools: Mapping[str, str]) -> str | None:
    """The pool of the longest pattern that fits a stage; None where it runs with its flow."""
    fitting = sorted((len(pattern), pattern) for pattern in pools if fnmatchcase(stage, pattern))
    return pools[fitting[-1][1]] if fitting else None


def check_pools(pools: Mapping[str, str], stages: list[str], repository: Path) -> None:
    """Refuse what could not work.

    Raises:
        InputError: a pattern fits no stage, a pool has no deployment for stages, or there is no way to
            other machines.
    """
    for pattern in pools:
        if not any(fnmatchcase(stage, pattern) for stage in stages):
            kinds = sorted({stage.partition("@")[0] for stage in stages})
            raise InputError(f"pools: {pattern!r} fits no stage; stages are {', '.join(kinds)}")
    if not has_origin(repository):
        raise InputError(f"pools: git has no remote {ORIGIN}, by which other machines get the commit")
    check_remote(repository)
    with get_client(sync_client=True) as client:
        for pool in sorted(set(pools.values())):
            try:
                client.read_deployment_by_name(f"{FLOW}/{pool}")
            except ObjectNotFound:
                raise InputError(
                    f"pools: {pool}: no worker has offered to do stages in a pool of this name; "
                    f"`make worker POOL={pool} SERVER=...` on a machine does"
                ) from None


def travelling(checkout: Path, stages: list[str]) -> set[str]:
    """Those stages whose results other machines can hand over."""
    with open_repo(checkout) as repo:
        return {name for name in stages if can_travel(repo.stage.load_one(name=name))}


@contextmanager
def remote_places(pools: Mapping[str, str], run: "RemoteRun", log: Log) -> Iterator[dict[str, Pool]]:
    """The places of stages that run on other machines; at the end what goes on there is cancelled."""
    if not pools:
        yield {}
        return
    stages = list(run.pipeline.upstream)
    wanted = {stage: pool for stage in stages if (pool := pool_of(stage, pools))}
    check_pools(pools, stages, run.repository)
    able = travelling(run.checkout, list(wanted))
    for stage in sorted(wanted.keys() - able):
        log(f"{stage} runs here: DVC does not hand over what it makes")
    run.sweep()
    places = {pool: Pool(pool, run) for pool in set(wanted.values())}
    try:
        yield {stage: places[pool] for stage, pool in wanted.items() if stage in able}
    finally:
        run.stop()
