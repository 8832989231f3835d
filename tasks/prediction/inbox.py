"""Predicts what is new in an inbox, each image once, however often it is killed.

The results folder:

    BATCH/           a batch: the files of `tasks.prediction.folder`, and batch.json
    ledger.json      the files of the inbox that were handled
    .unfinished/     the unfinished batch: plan.json and BATCH/
    .lock

A batch is complete when its folder is renamed into place. If a pass is killed before that, the next pass
continues from the plan, with the bundle that the plan names. The ledger is written last. If a kill prevents
that, the next pass writes it from batch.json.
"""

import fcntl
import hashlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tasks.bundles.drift import COMPARED, Reference
from tasks.bundles.files import BUNDLE_FILE, FINGERPRINT_FILE
from tasks.bundles.schema import open_bundle
from tasks.prediction.inputs import PROGRESS, S3, Arrival, Item, list_inbox, with_distinct_names
from tasks.prediction.ledger import BATCH_FILE, PLAN, Batch, Drift, Handled, Ledger, Plan, Verdict
from tasks.prediction.run import Options, Summary, predict_items
from tasks.support.cli import InputError, user_path
from tasks.support.locks import lock_file

UNFINISHED, LOCK = ".unfinished", ".lock"

#: Seconds for which a file must not have changed. A younger one may still be being written.
SETTLED = 5.0

#: How often a file is tried whose content cannot be read at all, as when a file system is away.
TRIES = 3

#: Images in a batch, images that drift looks at, and the fewest with which it does.
LIMIT, LAST, FEWEST = 1000, 100, 10


def process(
    inbox: str,
    results: Path,
    model: Path,
    limit: int = LIMIT,
    last: int = LAST,
    engine: Literal["onnx", "torch"] = "onnx",
) -> list[Batch]:
    """Finish a batch that was killed, then predict what is new in the inbox.

    The same bytes under the same name are predicted once, changed bytes again. A file that changed within
    the last five seconds waits for the next pass. A file that is no image is listed as failed, once.

    Args:
        inbox: a folder, or a prefix `s3://BUCKET/PREFIX`.
        results: the folder of all batches. It is not created while nothing was in the inbox.
        model: the folder of a bundle.
        limit: most images of the new batch; the rest waits for the next pass.
        last: how many images drift looks at.
        engine: what runs the networks.

    Returns:
        The batches that this pass finished: none, one or two.

    Raises:
        InputError: a number is out of range, there is no inbox or no bundle, another pass works in the
            folder, or that is in the inbox.
    """
    if limit < 1:
        raise InputError(f"--limit {limit}: must be at least 1")
    if last < FEWEST:
        raise InputError(f"--last {last}: drift needs at least {FEWEST} images")
    inbox, results = _checked(inbox, results)
    bundle = open_bundle(model)
    if not results.exists() and not list_inbox(inbox):
        return []
    results.mkdir(parents=True, exist_ok=True)
    with _locked(results):
        done = _finish_unfinished(results, model)
        if files := _new_files(results, inbox, limit):
            name = _free_name(results)
            items = with_distinct_names([one.item for one in files])
            named = [(item.source, item.name) for item in items]
            digest = _digest(model)
            plan = Plan(name, inbox, str(model.resolve()), bundle.name, digest, engine, last, named)
            plan.write(results / UNFINISHED)
            done.append(_finish(results, plan, model))
    return done


def last_batch(results: Path) -> Batch | None:
    """The newest batch of a results folder; None if there is none, or its folder was removed."""
    batches = Ledger.read(results).batches
    if not batches or not (results / batches[-1] / BATCH_FILE).is_file():
        return None
    return Batch.read(results / batches[-1])


def _checked(inbox: str, results: Path) -> tuple[str, Path]:
    results = user_path(results).resolve()
    if results.exists() and not results.is_dir():
        raise InputError(f"{results}: not a folder")
    if not inbox:  # as of a variable of the shell that is not set
        raise InputError("INBOX is an empty word; . is the current folder")
    if inbox.startswith(S3):
        return inbox, results
    folder = user_path(inbox).resolve()
    if results.is_relative_to(folder):
        raise InputError(f"{results}: is in the inbox; results there would count as new images")
    return str(folder), results


@contextmanager
def _locked(results: Path) -> Iterator[None]:
    with (results / LOCK).open("ab") as lock:
        try:
            lock_file(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{results}: another pass is still at work here") from None
        yield


def _new_files(results: Path, inbox: str, limit: int) -> list[Arrival]:
    """The files of the inbox that the ledger lacks. It notes files that were written again unchanged."""
    ledger, found = Ledger.read(results), list[Arrival]()
    touched = False
    for arrival in list_inbox(inbox):
        before = ledger.files.get(arrival.item.source)
        if time.time() - arrival.modified < SETTLED:
            continue
        if before and _is_known(before, arrival):
            if before.stamp != arrival.stamp:
                ledger.files[arrival.item.source] = before._replace(stamp=arrival.stamp)
                touched = True
            continue
        found.append(arrival)
        if len(found) == limit:
            break
    if touched:
        ledger.write(results)
    return found


def _is_known(before: Handled, arrival: Arrival) -> bool:
    if before.stamp == arrival.stamp:
        return bool(before.sha256) or before.tries >= TRIES
    try:
        return hashlib.sha256(arrival.item.read()).hexdigest() == before.sha256
    except (InputError, OSError):
        return False  # its batch will say why


def _finish_unfinished(results: Path, model: Path) -> list[Batch]:
    """Finish the batch that an earlier pass left, if there is one."""
    unfinished = results / UNFINISHED
    try:
        plan = Plan.read(unfinished)
    except FileNotFoundError:
        _remove(unfinished)
        return []
    if (results / plan.name / BATCH_FILE).is_file():
        return [_enter(results, Batch.read(results / plan.name))]
    for candidate in (model, Path(plan.model)):
        if _digest(candidate) == plan.sha256:
            return [_finish(results, plan, candidate)]
    print(
        f"the batch {plan.name} was started with another bundle ({plan.bundle}, {plan.sha256[:10]}), which "
        f"is no longer at {plan.model}; its images are predicted from the start",
        file=sys.stderr,
        flush=True,
    )
    _remove(unfinished)
    return []


def _digest(model: Path) -> str:
    """The digest that identifies a bundle; empty if there is none."""
    try:
        return hashlib.sha256((model / BUNDLE_FILE).read_bytes()).hexdigest()
    except OSError:
        return ""


def _finish(results: Path, plan: Plan, model: Path) -> Batch:
    """Carry out a plan, from where an earlier pass was killed."""
    working = results / UNFINISHED / plan.name
    if not (working / BATCH_FILE).is_file():
        if not (working / PROGRESS).is_file():
            _remove(working)  # killed while the folder was made
        arrivals = {arrival.item.source: arrival for arrival in list_inbox(plan.inbox)}
        items = [_item(arrivals, source, name) for source, name in plan.files]
        summary = predict_items(items, model, working, Options(engine=plan.engine))
        _sweep(working, summary)
        _batch(results, plan, model, summary, arrivals).write(working)
    (working / PROGRESS).unlink(missing_ok=True)
    working.rename(results / plan.name)
    return _enter(results, Batch.read(results / plan.name))


def _enter(results: Path, batch: Batch) -> Batch:
    """Add a batch to the ledger once its folder is in its place, and delete its plan."""
    ledger = Ledger.read(results)
    ledger.add(batch)
    ledger.write(results)
    _remove(results / UNFINISHED)
    return batch


def _item(arrivals: dict[str, Arrival], source: str, name: str) -> Item:
    if source in arrivals:
        return arrivals[source].item._replace(name=name)

    def read() -> bytes:
        raise InputError("is no longer in the inbox")

    return Item(source, name, read)


def _sweep(folder: Path, summary: Summary) -> None:
    """Remove partial files of killed passes, and results of images that have changed or gone since."""
    kept = {name for record in summary.records for name in record.files}
    kept |= {"images.csv", "index.html", "run.json", PROGRESS}
    for file in list(folder.rglob("*")):
        if file.is_file() and file.relative_to(folder).as_posix() not in kept:
            file.unlink()


def _batch(results: Path, plan: Plan, model: Path, summary: Summary, arrivals: dict[str, Arrival]) -> Batch:
    def stamp(source: str) -> str:
        return arrivals[source].stamp if source in arrivals else ""

    files: list[dict[str, Any]] = [
        {
            "source": record.source,
            "stamp": stamp(record.source),
            "sha256": record.sha256,
            "image": record.image,
            "warnings": record.row["warnings"],
            "measures": record.measures,
        }
        for record in summary.records
    ]
    files += [
        {
            "source": failure.source,
            "stamp": stamp(failure.source),
            "sha256": failure.sha256,
            "reason": failure.reason,
        }
        for failure in summary.failed
    ]
    drift = _drift(results, plan, model, files)
    return Batch(
        plan.name,
        plan.inbox,
        plan.bundle,
        plan.sha256,
        summary.predicted,
        summary.unusual,
        files,
        drift,
    )


def _drift(results: Path, plan: Plan, model: Path, files: Sequence[dict[str, Any]]) -> Drift:
    """Compare the last images with Val: those of this batch, and of earlier ones with the same bundle."""
    reference = Reference.read(model / FINGERPRINT_FILE)
    if reference is None:
        return Drift("none", 0, "the bundle has no measures of Val images to compare with", [])
    measured = _measures(files)
    for name in reversed(Ledger.read(results).batches):
        if len(measured) >= plan.last or not (results / name / BATCH_FILE).is_file():
            break
        earlier = Batch.read(results / name)
        if earlier.sha256 != plan.sha256:
            break
        measured = _measures(earlier.files) + measured
    measured = measured[-plan.last :]
    if len(measured) < FEWEST:
        reason = f"{len(measured)} images are too few; {FEWEST} are needed"
        return Drift("none", len(measured), reason, [])
    rows = reference.compare(np.array(measured))
    verdict: Verdict = "drifted" if any(row.drifted for row in rows) else "like Val"
    return Drift(verdict, len(measured), "", rows)


def _measures(files: Sequence[dict[str, Any]]) -> list[list[float]]:
    return [[file["measures"][name] for name in COMPARED] for file in files if file.get("measures")]


def _free_name(results: Path) -> str:
    now = f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}"
    name, count = now, 1
    while (results / name).exists():
        count += 1
        name = f"{now}-{count}"
    return name


def _remove(folder: Path) -> None:
    """Remove a folder. The plan goes first, so that no kill leaves a plan without its files."""
    if folder.exists():
        (folder / PLAN).unlink(missing_ok=True)
        shutil.rmtree(folder)
