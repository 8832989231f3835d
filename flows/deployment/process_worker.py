"""A Prefect process worker whose runs start without importing anything, and that may end when it is idle.

    python -m flows.deployment.process_worker --pool gpu [--name node7] [--limit 1]
        [--idle-seconds 600 --marker FILE]

An idle worker creates the marker file, and `cxr worker`, which started it, ends it. No run is lost: the
worker decides right after a poll for runs that left it without any, and it never polls again.
"""

import argparse
import asyncio
import importlib
import os
import shlex
import shutil
import sys
import time
from abc import ABC
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import prefect.engine
from prefect.client.schemas.objects import FlowRun
from prefect.logging.configuration import setup_logging
from prefect.utilities.processutils import setup_signal_handlers_worker
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from flows.deployment import fork_client, fork_server

#: What runs need besides this module: Prefect's engine, the flows of all deployments, and what DVC imports
#: when it connects to S3.
IMPORTED = (
    "dvc_s3",
    "s3fs",
    "prefect.deployments.steps.core",
    "prefect.deployments.steps.pull",
    "prefect.flow_engine",
    "flows.inbox",
    "flows.retrain",
    "flows.stage",
)

PROJECT = Path(__file__).parents[2]

#: Folders with the code that runs import.
CODE = ("flows", "tasks", "models")

#: Environment variable with the folder of the worker's fork server.
FORK_SERVER = "RETRAIN_FORK_SERVER"


class Configuration(ProcessJobConfiguration):
    """A run's process, which the fork server starts if there is one."""

    def prepare_for_flow_run(self, *args: Any, **options: Any) -> None:
        if folder := os.environ.get(FORK_SERVER):
            client = [sys.executable, "-I", "-S", fork_client.__file__, folder]
            self.command = shlex.join([*client, sys.executable, "-m", "prefect.engine"])
        super().prepare_for_flow_run(*args, **options)


# With ABC as a base, Prefect does not register the class, so it does not replace ProcessWorker there.
class Worker(ProcessWorker, ABC):
    """A process worker that may create a marker file after being idle. It takes no run from then on."""

    job_configuration = Configuration

    def __init__(
        self, *, idle_seconds: float | None = None, marker: Path | None = None, **options: Any
    ) -> None:
        """Create a worker.

        Args:
            idle_seconds: How long the worker has to be idle, counted from its start or the end of its last
                run. None means that it never stops.
            marker: The file to create then.
            options: Options of Prefect's worker. `idle_seconds` requires a `limit`.
        """
        super().__init__(**options)
        self._idle_seconds, self._marker = idle_seconds, marker
        self._idle_since = time.monotonic()
        self._is_draining = False

    async def run(self, *args: Any, **options: Any) -> ProcessWorkerResult:
        try:
            return await super().run(*args, **options)
        finally:
            self._idle_since = time.monotonic()

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Poll for runs and start them, unless the worker has been idle for long enough."""
        if self._is_draining:
            return []
        taken = await super().get_and_submit_flow_runs()
        if self._idle_seconds is not None and self._marker is not None:
            # A run holds a token from the moment it is taken until its process has ended.
            is_idle = not self.limiter.borrowed_tokens
            if is_idle and time.monotonic() - self._idle_since >= self._idle_seconds:
                self._is_draining = True
                self._marker.touch()
        return taken


async def _work(worker: Worker) -> None:
    # As in `prefect worker start`. The handlers must be set while asyncio's own is installed.
    setup_signal_handlers_worker(os.getpid(), "the process worker", print)
    with suppress(asyncio.CancelledError):
        await worker.start()


def main() -> None:
    parser = argparse.ArgumentParser(description="Start a Prefect worker that may stop when it is idle.")
    parser.add_argument("--pool", required=True)
    parser.add_argument("--name")
    parser.add_argument("--limit", type=int, help="maximum number of runs at a time")
    parser.add_argument("--idle-seconds", type=float)
    parser.add_argument("--marker", type=Path, help="file to create when idle")
    args = parser.parse_args()
    for module in IMPORTED:
        importlib.import_module(module)
    folder = mkdtemp(prefix="covid-qu-ex-worker-")
    fork_server.start(Path(folder), Path(prefect.engine.__file__), [PROJECT / name for name in CODE])
    os.environ[FORK_SERVER] = folder
    try:
        setup_logging()
        worker = Worker(
            work_pool_name=args.pool,
            name=args.name,
            limit=args.limit,
            idle_seconds=args.idle_seconds,
            marker=args.marker,
        )
        asyncio.run(_work(worker))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
