"""A Prefect process worker that stops taking runs once it has been idle for some time.

    python -m flows.deployment.idle_worker --pool gpu --name node7 --limit 1 --idle-seconds 600 --marker FILE

It then creates the marker file, and `cxr worker`, which started it, ends it. No run is lost: the worker
decides right after a poll for runs that left it without any, and it never polls again.
"""

import argparse
import asyncio
import os
import time
from abc import ABC
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import FlowRun
from prefect.logging.configuration import setup_logging
from prefect.utilities.processutils import setup_signal_handlers_worker
from prefect.workers.process import ProcessWorker, ProcessWorkerResult


# With ABC as a base, Prefect does not register the class, so it does not replace ProcessWorker there.
class IdleWorker(ProcessWorker, ABC):
    """A process worker that creates a marker file after being idle, and takes no run from then on."""

    def __init__(self, *, idle_seconds: float, marker: Path, **options: Any) -> None:
        """Create a worker.

        Args:
            idle_seconds: How long the worker has to be idle, counted from its start or the end of its last
                run.
            marker: The file to create.
            options: Options of Prefect's worker. `limit` is required.
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
        # A run holds a token from the moment it is taken until its process has ended.
        is_idle = not self.limiter.borrowed_tokens
        if is_idle and time.monotonic() - self._idle_since >= self._idle_seconds:
            self._is_draining = True
            self._marker.touch()
        return taken


async def _work(worker: IdleWorker) -> None:
    # As in `prefect worker start`. The handlers must be set while asyncio's own is installed.
    setup_signal_handlers_worker(os.getpid(), "the process worker", print)
    with suppress(asyncio.CancelledError):
        await worker.start()


def main() -> None:
    parser = argparse.ArgumentParser(description="Start a Prefect worker that stops taking runs when idle.")
    parser.add_argument("--pool", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--limit", type=int, required=True, help="maximum number of runs at a time")
    parser.add_argument("--idle-seconds", type=float, required=True)
    parser.add_argument("--marker", type=Path, required=True, help="file to create when idle")
    args = parser.parse_args()
    setup_logging()
    worker = IdleWorker(
        work_pool_name=args.pool,
        name=args.name,
        limit=args.limit,
        idle_seconds=args.idle_seconds,
        marker=args.marker,
    )
    asyncio.run(_work(worker))


if __name__ == "__main__":
    main()
