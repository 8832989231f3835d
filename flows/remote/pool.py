"""Run stages on other machines: each stage is a flow run of the deployment `stage` in a work pool.

Prefect assigns the flow run to a free worker. Git's origin carries the commit that the stage starts from, and
the DVC remote carries data and results. A result returns as an entry of DVC's run cache, as if the stage had
run here.
"""

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
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

from flows.curves.artifact import HistoryCopy, curves_shown
from flows.engine.order import INTERRUPTED
from flows.engine.pipeline import Pipeline
from flows.engine.runner import Log, Outcome, Show, StageRun
from flows.remote.checkpoints import sweep_checkpoints
from flows.remote.clock import Clock
from flows.remote.poll import POLL, Watch
from flows.remote.run_cache import Remote
from flows.remote.stage_request import REFUSED, StageRequest, versions
from flows.repository.git import commit
from flows.repository.refs import forget_commits, send_commit, sent_commits
from flows.repository.retry import DeniedError, UnavailableError, with_retries
from flows.repository.revision import Training
from tasks.support.cli import InputError

#: The flow that runs one stage. Each of its deployments has the name of its work pool.
FLOW = "stage"

#: Seconds after which a stage run that is stuck in a transient state counts as lost with its machine.
TRANSIENT_LIMIT = 300.0

#: Seconds after which a checkpoint on the remote is deleted if no training has continued from it.
CHECKPOINT_LIFETIME = 30 * 24 * 3600.0

UNAVAILABLE = "the Prefect server does not answer"

#: Seconds between two log lines about a stage that is still waiting.
REMINDER_INTERVAL = 300.0

#: Seconds between two looks whether the server has recorded a task run, and the number of looks.
RECORDED_POLL, RECORDED_LOOKS = 0.25, 40

#: Seconds until a stage that a worker refused is submitted again. The delay doubles up to REMINDER_INTERVAL.
REFUSED_PAUSE = 10.0

#: Retries of a stage whose worker was lost. Another worker takes the stage.
WORKER_RETRIES: dict[str, Any] = {"retries": 4, "retry_delay_seconds": [5, 15, 30, 60]}

#: States that normally last only moments.
TRANSIENT = (StateType.PENDING, StateType.CANCELLING)


class Pool:
    """A work pool as a place to run the stages of one run. Its workers limit how many run at once."""

    capacity = 10_000
    retries = WORKER_RETRIES

    def __init__(self, name: str, run: "RemoteRun") -> None:
        self._name, self._run = name, run

    def run(self, stage: str, log: Log, show: Show) -> StageRun:  # noqa: ARG002  # the worker shows progress
        with curves_shown(stage, self._run.checkout):
            return self._run.run(stage, self._name, log)


class RemoteRun:
    """The part of a flow run that runs on other machines."""

    def __init__(
        self,
        checkout: Path,
        pipeline: Pipeline,
        trainings: Mapping[str, Training],
        repository: Path,
        run: str,
        log: Log,
    ) -> None:
        """Create it. `checkout` is the flow's own, with its params committed. It has the name of the run."""
        self.checkout, self.pipeline, self.repository = checkout, pipeline, repository
        self._run_id, self._run_name, self._log = run, checkout.name, log
        self._trainings, self._versions = trainings, versions()
        self._stopped = threading.Event()
        self._remote = Remote(checkout, log, self._stopped)
        self._committing, self._sent_last = threading.Lock(), ""
        self._watch = Watch()
        self._requested: set[UUID] = set()

    def run(self, stage: str, pool: str, log: Log) -> StageRun:
        """Have a worker bring one stage up to date, and restore its result here."""
        clock = Clock()
        try:
            with clock("look"):
                if self._remote.restore(stage):
                    return StageRun(Outcome.CACHED, "")
            with clock("inputs"):
                self._remote.push_inputs(stage, self.pipeline.upstream[stage])
            with clock("commit"):
                state = self._send_lock(stage, log)
            ended = self._run_on_worker(self._request(stage, state), pool, clock, log)
            with clock("take"):
                done = self._restore_result(ended, stage)
            return done._replace(note=f"{done.note}; here: {clock}")
        except UnavailableError as error:
            return StageRun(Outcome.INTERRUPTED, str(error))
        except DeniedError as error:
            return StageRun(Outcome.FAILED, str(error))

    def _request(self, stage: str, state: str) -> StageRequest:
        training = self._trainings.get(stage.partition("@")[2])
        threads = [each.threads for each in self._trainings.values()]
        return StageRequest(
            stage=stage,
            upstream=tuple(sorted(self.pipeline.upstream[stage])),
            commit=state,
            run=UUID(self._run_id),
            threads=max(threads, default=0) if all(threads) else 0,
            processes=training.processes if training else 1,
            versions=self._versions,
        )

    def _send_lock(self, stage: str, log: Log) -> str:
        """Commit dvc.lock, which records the stage's inputs, and push the commit for workers."""

        def send() -> str:
            with self._committing:
                with self._remote.locked():
                    made = commit(self.checkout, f"Inputs of {stage}", "dvc.lock")
                if made != self._sent_last:  # the stages that start together have the same inputs
                    send_commit(self.checkout, self._run_id, made)
                self._sent_last = made
            return made

        return with_retries("origin", send, log, self._stopped)

    def _run_on_worker(self, request: StageRequest, pool: str, clock: Clock, log: Log) -> FlowRun:
        """Return the finished run of the stage. A stage that a worker refuses is submitted again."""
        pause = REFUSED_PAUSE
        with get_client(sync_client=True) as client, HistoryCopy(self.checkout, request.stage) as history:
            while True:
                with clock("send"):
                    sent = with_retries(
                        "the Prefect server",
                        lambda: self._send(client, request, pool, log),
                        log,
                        self._stopped,
                    )
                with clock("away"):
                    ended = self._wait(client, sent, pool, log, history)
                if not (ended.state and ended.state.name == REFUSED):
                    return ended
                log(f"refused {ended.state.message}; submitting it again in {pause:.0f} s")
                self._stopped.wait(pause)
                pause = min(2 * pause, REMINDER_INTERVAL)

    def _send(self, client: SyncPrefectClient, request: StageRequest, pool: str, log: Log) -> FlowRun:
        """Create the flow run of the stage, or join one that already does the same for another run."""
        if self._stopped.is_set():
            raise UnavailableError("stopped")
        deployment = client.read_deployment_by_name(f"{FLOW}/{pool}")
        parent = self._recorded_task_run(client)
        same = "-".join([pool, self._remote.key(request.stage), *sorted(request.versions.values())])
        tries = 0
        while True:
            run = client.create_flow_run_from_deployment(
                deployment.id,
                parameters={"request": request.model_dump(mode="json")},
                name=f"{request.stage} of {self._run_name}",
                tags=[self._run_name],
                idempotency_key=f"{same}-{tries}",
                # The UI nests it below its task run, and the server cancels it with the parent.
                parent_task_run_id=parent,
            )
            if run.state and not run.state.is_final():
                break
            tries += 1
        if run.parameters["request"]["run"] == self._run_id:
            self._requested.add(run.id)
            log(f"submitted to work pool {pool}")
        else:
            log(f"waiting for {run.name} in work pool {pool}, which runs the same stage")
        return run

    def _recorded_task_run(self, client: SyncPrefectClient) -> UUID | None:
        """Return the current task run once the server has recorded it, a moment after its start.

        Before that, the server refuses flow runs below it.
        """
        if not task_run.id:
            return None
        parent = UUID(task_run.id)
        for _ in range(RECORDED_LOOKS):
            with suppress(ObjectNotFound):
                client.read_task_run(parent)
                break
            self._stopped.wait(RECORDED_POLL)
        return parent

    def _wait(
        self, client: SyncPrefectClient, sent: FlowRun, pool: str, log: Log, history: HistoryCopy
    ) -> FlowRun:
        """Wait until a flow run has ended, also while the server is unavailable."""
        since = said_at = time.monotonic()
        seen: str | None = None
        # The client must not retry, because this loop does.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), self._watch.track(sent.id):
            while not self._stopped.wait(POLL):
                run = self._watch.latest(client, sent.id)
                if run is None:
                    if seen != UNAVAILABLE:
                        log(UNAVAILABLE)
                        seen = UNAVAILABLE
                    continue
                assert run.state
                if run.state.is_final():
                    return run
                if run.state.is_running():
                    history.update(client, run.id)
                if run.state.name != seen:
                    log(f"in work pool {pool}: {run.state.name}")
                    since, seen = time.monotonic(), run.state.name
                waited = time.monotonic() - since
                if run.state.type is StateType.SCHEDULED and time.monotonic() - said_at > REMINDER_INTERVAL:
                    log(f"still waiting for a worker of work pool {pool}")
                    said_at = time.monotonic()
                if run.state.type in TRANSIENT and waited > TRANSIENT_LIMIT:
                    lost: State[Any] = Crashed(message=f"No update for {waited:.0f} s.")
                    with suppress(ObjectNotFound, httpx.HTTPError):  # the next iteration tries again
                        client.set_flow_run_state(run.id, lost, force=True)
        self._cancel(sent.id)
        raise UnavailableError("stopped")

    def _restore_result(self, ended: FlowRun, stage: str) -> StageRun:
        """Restore the result of a finished flow run from the run cache."""
        state = ended.state
        assert state
        message = state.message or str(state.name)
        if state.is_completed():
            self._remote.note_pushed(stage)
            if self._remote.restore(stage):
                outcome = Outcome.CACHED if state.name == "Cached" else Outcome.RAN
                return StageRun(outcome, "", message)
            return StageRun(Outcome.INTERRUPTED, f"the result is not on the DVC remote; {message}")
        if state.is_crashed() or state.is_cancelled() or state.name == INTERRUPTED:
            return StageRun(Outcome.INTERRUPTED, f"{ended.name}: {state.name}: {message}")
        return StageRun(Outcome.FAILED, message)

    def stop(self) -> None:
        """Cancel the stage runs that this run requested, and delete its refs at origin."""
        self._stopped.set()
        for run_id in list(self._requested):
            self._cancel(run_id)
        self._remote.wait_for_end()
        with suppress(InputError):  # the next run's sweep deletes them
            sent = sent_commits(self.repository).items()
            forget_commits(self.repository, [ref for ref, run in sent if run == self._run_id])

    def _cancel(self, run_id: UUID) -> None:
        """Cancel a stage run that this run requested, unless it has ended."""
        if run_id not in self._requested:
            return
        self._requested.discard(run_id)
        with (
            suppress(ObjectNotFound, httpx.HTTPError),
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True) as client,
        ):
            run = client.read_flow_run(run_id)
            if run.state and not run.state.is_final():
                client.set_flow_run_state(run_id, Cancelling())

    def sweep(self) -> None:
        """Delete the refs at origin, and old checkpoints on the remote, that ended runs have left."""
        try:
            sent = sent_commits(self.repository)
            with get_client(sync_client=True) as client:
                ended = {run for run in set(sent.values()) if _has_ended(client, run)}
            forget_commits(self.repository, [ref for ref, run in sent.items() if run in ended])
            sweep_checkpoints(self.checkout, CHECKPOINT_LIFETIME)
        except Exception as error:  # the cleanup is optional
            self._log(f"could not clean up after ended runs: {' '.join(str(error).split())}")


def _has_ended(client: SyncPrefectClient, run: str) -> bool:
    """Return whether a run has ended. False if this server does not know it."""
    with suppress(ObjectNotFound, ValueError, httpx.HTTPError):
        state = client.read_flow_run(UUID(run)).state
        return bool(state and state.is_final())
    return False
