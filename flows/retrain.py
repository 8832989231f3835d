"""Reproduce the pipeline of dvc.yaml as a Prefect flow, in a checkout of its own.

python -m flows.retrain --preset presets/laptop.yaml --set data.source=PATH --set alpha=0.3
"""

import argparse
import logging
import os
import shutil
import sys
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

from prefect import flow, get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.checkout import RUNS, checked_out, commit, find_repository, git, resolve, uncommitted
from flows.stages import Outcome, read_pipeline, run_stage, sort_lock, stop_stages
from tasks.cli import InputError, stage_main
from tasks.cores import available_cores
from tasks.params import Params, add_change_arguments, fault_line, load_params, read_changes, with_changes

RESULTS = ("params.yaml", "dvc.lock", "metrics.json")


class RetrainRequest(BaseModel):
    """What to run: a revision of the repository and changes to its params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="of the run and its branch")
    revision: str = Field("HEAD", description="the commit to start from")
    changes: dict[str, dict[str, Any]] = Field(
        {}, description="changes to params.yaml, by where they came from"
    )


class Published(NamedTuple):
    """Where the results of a run are."""

    report: Path
    metrics: Path
    branch: str
    commit: str


@flow(name="retrain", flow_run_name="{request.name}")
def retrain(request: RetrainRequest, repository: Path) -> Published | State[Any]:
    """Run every stage of dvc.yaml at a revision with changed params, and commit what came out.

    Works in a git worktree on the new branch `retrain/NAME`; the params are committed there before
    anything runs, dvc.lock and the metrics afterwards. Copies the report and the metrics to
    `runs/NAME` of the repository.
    """
    logger = get_run_logger()
    branch = f"retrain/{request.name}"
    try:
        with checked_out(repository, request.revision, branch) as checkout:
            path = checkout / "params.yaml"
            path.write_text(with_changes(path.read_text(encoding="utf-8"), request.changes), encoding="utf-8")
            commit(checkout, _summary(request), *RESULTS)
            pipeline = read_pipeline(checkout)
            try:
                run_stages(pipeline.upstream, checkout, repository, compute_slots(load_params(path)))
            finally:
                stop_stages()  # none is left, unless the flow itself was stopped
            sort_lock(checkout, pipeline.order)
            results = _collect(checkout, repository / RUNS / request.name)
            final = commit(checkout, f"Results of {request.name}", *RESULTS)
    except InputError as error:
        return Failed(message=str(error))
    published = Published(results / "index.html", results / "metrics.json", branch, final)
    logger.info("report: %s", published.report)
    return published


def run_stages(
    upstream: Mapping[str, set[str]], checkout: Path, repository: Path, slots: list[dict[str, str]]
) -> None:
    """Run the stages in the order that `upstream` asks for, as many side by side as there are slots.

    After a failure nothing new starts and what runs is waited for.

    Raises:
        InputError: a stage failed; the text holds the stage's own last lines.
    """
    order = TopologicalSorter(upstream)
    order.prepare()
    ready: deque[str] = deque()
    futures: dict[str, PrefectFuture[Any]] = {}
    running: dict[PrefectFuture[Any], tuple[str, dict[str, str]]] = {}
    failure = None
    while order.is_active():
        ready.extend(sorted(order.get_ready()))
        while ready and slots and not failure:
            stage, slot = ready.popleft(), slots.pop()
            before = [futures[name] for name in sorted(upstream[stage])]
            variables = {"RETRAIN_SOURCE_ROOT": str(repository), **slot}
            future = reproduce.submit(
                stage=stage, checkout=checkout, variables=variables, wait_for=before, return_state=False
            )
            futures[stage] = future
            running[future] = (stage, slot)
        if not running:
            break
        finished = next(as_completed(list(running)))
        stage, slot = running.pop(finished)
        slots.append(slot)
        order.done(stage)
        finished.wait()  # only then is its state the final one
        if not finished.state.is_completed():
            failure = failure or f"{stage} failed: {finished.state.message}"
    if failure:
        raise InputError(failure)


@task(task_run_name="{stage}", persist_result=False)
def reproduce(stage: str, checkout: Path, variables: dict[str, str]) -> State[Any]:
    """Bring one stage up to date; a stage that had nothing to do ends as Cached."""
    logger = get_run_logger()
    done = run_stage(checkout, stage, tell=logger.info, **variables)
    match done.outcome:
        case Outcome.RAN:
            return Completed()
        case Outcome.CACHED:
            return Completed(name="Cached", message="unchanged")
        case Outcome.FAILED:
            return Failed(message=done.tail)


def _without_empty_traceback(record: logging.LogRecord) -> bool:
    """Prefect logs a task that returned Failed with the traceback of an exception that never was."""
    if record.exc_info == (None, None, None):
        record.exc_info = None
    return True


logging.getLogger("prefect.task_runs").addFilter(_without_empty_traceback)


def compute_slots(params: Params) -> list[dict[str, str]]:
    """One entry for each stage that may run at the same time, holding its environment variables.

    With GPUs there is one a GPU, which the stage then has to itself. On the CPU there are as many as
    fit by the threads that a training takes, which params.yaml sets, since they change its last digits.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = _gpu_ids() if visible is None else [gpu for gpu in visible.split(",") if gpu]
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus]
    cores = available_cores()
    threads = max(plan.threads or cores for plan in params.experiments.values())
    return [{} for _ in range(max(1, cores // threads))]


def _gpu_ids() -> list[str]:
    """The NVIDIA GPUs of this machine, as the driver lists them."""
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number, _ in enumerate(folder.iterdir())] if folder.is_dir() else []


def _summary(request: RetrainRequest) -> str:
    return "\n\n".join([f"Params of {request.name}", *request.changes])


def _collect(checkout: Path, results: Path) -> Path:
    """Copy the report and the metrics out of the checkout, which is about to go."""
    shutil.copytree(checkout / "reports", results, dirs_exist_ok=True, copy_function=shutil.copyfile)
    shutil.copyfile(checkout / "metrics.json", results / "metrics.json")
    return results


def make_request(**values: Any) -> RetrainRequest:
    """A checked request.

    Raises:
        InputError: a value won't do; one line a fault.
    """
    try:
        return RetrainRequest(**values)
    except ValidationError as error:
        raise InputError("\n".join(fault_line(fault) for fault in error.errors())) from None


def _check_params(request: RetrainRequest, repository: Path) -> None:
    """Refuse what the schema of params.yaml refuses before a server is started for it."""
    commit = resolve(repository, request.revision)
    with_changes(git(repository, "show", f"{commit}:params.yaml"), request.changes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Reproduce the pipeline in a checkout of its own, on a branch retrain/NAME."
    )
    add_change_arguments(parser)
    parser.add_argument("--revision", default="HEAD", help="the commit to start from")
    parser.add_argument("--name", help="of the run and its branch; by default the preset and the time")
    args = parser.parse_args()

    repository = find_repository()
    stem = args.preset.stem if args.preset else "params"
    request = make_request(
        name=args.name or f"{stem}-{datetime.now():%Y%m%d-%H%M%S}",
        revision=args.revision,
        changes=read_changes(args.preset, args.assignments),
    )
    _check_params(request, repository)
    if args.revision == "HEAD" and (changed := uncommitted(repository)):
        print(f"not part of this run, since not committed: {', '.join(changed)}", file=sys.stderr)
    state = retrain(request, repository, return_state=True)
    if not state.is_completed():
        raise InputError(state.message or "the flow did not complete")
    published = state.result()
    assert isinstance(published, Published)
    logging.getLogger("prefect").setLevel(logging.WARNING)  # the end of its server is not the last word
    print(f"report:  {published.report}")
    print(f"metrics: {published.metrics}")
    print(f"commit:  {published.commit} on {published.branch}")


if __name__ == "__main__":
    stage_main(main)
