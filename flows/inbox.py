"""Predict what is new in an inbox as a Prefect flow, and report when its images have drifted.

`cxr inbox` does one pass from a command line. `make serve` deploys the flow, with a schedule that is off.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import deployment
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from flows.deployment.drift import send_drift
from flows.registry.registry import CHAMPION, FETCHED, fetch_named
from flows.repository.git import find_repository
from flows.run import show
from tasks.support.cli import InputError, user_path

if TYPE_CHECKING:
    from tasks.prediction.ledger import Batch

#: In the results folder: the server knows that the last images have drifted.
REPORTED = ".drift-reported"

#: Most rows of the table of warnings.
MOST_WARNINGS = 200

S3 = "s3://"


class PredictRequest(BaseModel):
    """What to predict, with which bundle, and where to write."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inbox: str = Field(
        "", description="Where images arrive: a folder on the worker's machine, or s3://BUCKET/PREFIX."
    )
    results: str = Field(
        "", description="The folder of all batches on the worker's machine, outside the inbox."
    )
    model: str = Field(
        "",
        description="The folder of a bundle, such as artifacts/bundles/combined, or a version of the "
        "repository's registry, such as combined@v1.0.0. If empty: the champion.",
    )
    limit: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="The largest number of images in a run. Further images wait for the next run.",
    )
    last: int = Field(
        100,
        ge=10,
        le=10_000,
        title="Last images",
        description="How many of the last images are compared with the Val images of the bundle.",
    )


DEFAULT_REQUEST = PredictRequest()


@flow(name="predict")
def predict(request: PredictRequest = DEFAULT_REQUEST) -> list[str] | State[Any]:
    """Predict images that no earlier run has predicted, each once, and check for drift.

    A run that was killed is continued by the next one. Its results are a folder for each batch. Drift of the
    last images is emitted as the event `prediction.drift`.

    Args:
        request: Where images arrive, which bundle predicts them, and where results are written.
    """
    try:
        return _predict(request, find_repository())
    except InputError as error:
        return Failed(message=str(error))


def _predict(request: PredictRequest, repository: Path) -> list[str] | State[Any]:
    from tasks.prediction.inbox import last_batch, process  # ONNX Runtime, which most workers never need

    for name in ("inbox", "results"):
        if not getattr(request, name):
            raise InputError(f"{name}: is empty; set it in the run's form or in the deployment's parameters")
    inbox = request.inbox if request.inbox.startswith(S3) else str(_place(request.inbox, repository))
    results = _place(request.results, repository)
    model = find_model(repository, request.model)
    batches = process(inbox, results, model, request.limit, request.last)
    for batch in batches:
        get_run_logger().info("%s: %s", results / batch.name, batch.describe())
    if batches:
        show(
            partial(_show_counts, batches, results),
            partial(_show_warnings, batches),
            partial(_show_drift, batches[-1]),
        )
    if latest := last_batch(results):
        report_drift(results, latest)
    return [str(results / batch.name) for batch in batches] or Completed(
        name="Nothing new", message="no new images"
    )


def find_model(repository: Path, model: str) -> Path:
    """The folder of the bundle that predicts: `model` itself, or what the registry has under this name.

    Raises:
        InputError: there is no such version, or its bundle cannot be had.
    """
    folder = _place(model, repository)
    if model and (folder.exists() or Path(model).parent != Path()):
        return folder
    return fetch_named(repository, model or CHAMPION, repository / FETCHED)


def _place(path: str, repository: Path) -> Path:
    return repository / user_path(path)


def report_drift(results: Path, latest: "Batch") -> None:
    """Emit an event when the images have drifted, once until they are like Val again.

    It is emitted in the next run if this one is killed before, and twice if it is killed right afterwards.
    """
    reported = results / REPORTED
    if latest.drift.verdict == "like Val":
        reported.unlink(missing_ok=True)
    if latest.drift.verdict != "drifted" or reported.exists():
        return
    get_run_logger().warning("%s", latest.drift.describe())
    drifted = [row.measure for row in latest.drift.rows if row.drifted]
    payload = {"batch": latest.name, "bundle": latest.bundle, "images": latest.drift.images}
    try:
        send_drift(str(results), deployment.id, payload | {"measures": drifted})
    except httpx.HTTPError as error:
        get_run_logger().warning("could not emit the drift event; the next run will try again: %s", error)
        return
    reported.write_text(f"{latest.name}\n", encoding="utf-8")


def _show_counts(batches: list["Batch"], results: Path) -> None:
    rows = [
        {
            "batch": batch.name,
            "predicted": batch.predicted,
            "with warnings": batch.unusual,
            "failed": len(batch.failed),
            "bundle": batch.bundle,
        }
        for batch in batches
    ]
    create_table_artifact(rows, key="predict-counts", description=f"# Predicted images\n\nIn {results}")


def _show_warnings(batches: list["Batch"]) -> None:
    rows = [{"image": source, "warning": f"failed: {why}"} for one in batches for source, why in one.failed]
    rows += [{"image": source, "warning": why} for one in batches for source, why in one.warned]
    shown = f"The first {MOST_WARNINGS} of {len(rows)}." if len(rows) > MOST_WARNINGS else ""
    create_table_artifact(rows[:MOST_WARNINGS], key="predict-warnings", description=f"# Warnings\n\n{shown}")


def _show_drift(batch: "Batch") -> None:
    rows = [
        {
            "measure": row.measure,
            "Val median": round(row.val_median, 3),
            "median of the last images": round(row.last_median, 3),
            "distance": round(row.distance, 3),
            "threshold": round(row.threshold, 3),
            "drifted": "yes" if row.drifted else "no",
        }
        for row in batch.drift.rows
    ]
    words = batch.drift.describe()
    create_table_artifact(rows, key="predict-drift", description=f"# Drift\n\n{words[0].upper()}{words[1:]}.")
