"""Compare two revisions of the dataset image by image. DVC itself only compares shards.

Reads only the manifests, from the DVC cache or the remote.
"""

import io
import itertools
import signal
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from botocore.exceptions import BotoCoreError
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.index import DataIndexDirError

from flows.repository.git import resolve
from tasks.common.raw import KIND_WORDS, MANIFEST, Kind, read_manifest
from tasks.support.cli import InputError

RAW = "data/raw"
WORKSPACE = "the workspace"

#: The sha256 of an image and of each of its masks. Empty if it has no such mask.
Hashes = dict[Kind, str]


class DatasetDifference(NamedTuple):
    """The images in which two manifests differ, by id. Each id is in one of the four lists."""

    added: list[str]
    removed: list[str]
    moved: list[tuple[str, str, list[str]]]
    """The same image under another id: id before, id after, and which of its masks differ."""
    changed: list[tuple[str, list[str]]]
    """A different file under the same id: which of image, lung mask and infection mask differ."""


def dataset_difference(before: pd.DataFrame, after: pd.DataFrame) -> DatasetDifference:
    """Compare two manifests.

    If an image has several ids, removed and added ids are paired in sorted order.
    """
    old, new = _hashes(before), _hashes(after)
    gone: defaultdict[str, deque[str]] = defaultdict(deque)
    for image_id in sorted(old.keys() - new.keys()):
        gone[old[image_id]["image"]].append(image_id)
    added, moved = [], []
    for image_id in sorted(new.keys() - old.keys()):
        sha256 = new[image_id]["image"]
        if sha256 and gone[sha256]:
            origin = gone[sha256].popleft()
            moved.append((origin, image_id, _what_differs(old[origin], new[image_id])))
        else:
            added.append(image_id)
    return DatasetDifference(
        added,
        removed=sorted(itertools.chain(*gone.values())),
        moved=moved,
        changed=[
            (image_id, _what_differs(old[image_id], new[image_id]))
            for image_id in sorted(old.keys() & new.keys())
            if old[image_id] != new[image_id]
        ],
    )


def _hashes(manifest: pd.DataFrame) -> dict[str, Hashes]:
    columns = [manifest[f"{kind}_sha256"] for kind in KIND_WORDS]
    rows = zip(manifest["id"], *columns, strict=True)
    return {image_id: dict(zip(KIND_WORDS, hashes, strict=True)) for image_id, *hashes in rows}


def _what_differs(old: Hashes, new: Hashes) -> list[str]:
    def become(kind: Kind) -> str:
        return "" if old[kind] and new[kind] else " added" if new[kind] else " removed"

    return [words + become(kind) for kind, words in KIND_WORDS.items() if old[kind] != new[kind]]


def count(before: pd.DataFrame, after: pd.DataFrame, difference: DatasetDifference) -> pd.DataFrame:
    """Count the images of each half, split and class before, after, and by kind of change, with totals."""
    ids: dict[str, Iterable[str]] = {
        "before": before["id"],
        "added": difference.added,
        "removed": difference.removed,
        "moved in": [target for _, target, _ in difference.moved],
        "moved out": [origin for origin, _, _ in difference.moved],
        "changed": [image_id for image_id, _ in difference.changed],
        "after": after["id"],
    }
    groups = dict.fromkeys(map(_group, [*before["id"], *after["id"]]))
    table = pd.DataFrame({name: Counter(map(_group, some)) for name, some in ids.items()}, index=list(groups))
    table.loc["all"] = table.sum()
    return table.fillna(0).astype(int)


def _group(image_id: str) -> str:
    """Return the part of an id with half, split and class."""
    return image_id.rpartition("/")[0]


def lines(old: str, new: str, before: pd.DataFrame, after: pd.DataFrame) -> Iterator[str]:
    """Yield the printed lines: counts first, then each image that differs."""
    difference = dataset_difference(before, after)
    if not any(difference):
        yield f"{RAW}: the same {len(before)} images in {old} and {new}"
        return
    yield f"{RAW}: from {old} to {new}"
    yield count(before, after, difference).to_string()
    yield from (f"added    {image_id}" for image_id in difference.added)
    yield from (f"removed  {image_id}" for image_id in difference.removed)
    for origin, target, what in difference.moved:
        yield f"moved    {origin} -> {target}" + (f": {', '.join(what)}" if what else "")
    yield from (f"changed  {image_id}: {', '.join(what)}" for image_id, what in difference.changed)


def manifest_of(repository: Path, revision: str | None) -> pd.DataFrame:
    """Read the manifest of a revision, or of the workspace if it is None, without fetching anything else.

    Raises:
        InputError: the revision does not exist or has no data/raw, or neither the DVC cache nor the remote
            has its manifest.
    """
    if revision is not None:
        return read_manifest(io.BytesIO(_fetch(repository, revision)))
    try:
        return read_manifest(repository / RAW / MANIFEST)
    except FileNotFoundError:
        raise InputError(f"{RAW}/{MANIFEST}: not found; run `dvc pull {RAW}` or `dvc repro`") from None


def _fetch(repository: Path, revision: str) -> bytes:
    commit = resolve(repository, revision)
    with Repo(str(repository)) as repo:
        ours = dict(repo.config)
        try:
            with repo.switch(commit):
                repo.config.merge(ours)  # the remote may have been added after the revision
                if not any(out.def_path == RAW and out.hash_info for out in repo.index.outs):
                    raise InputError(f"revision: {revision!r}: its dvc.lock has no {RAW}")
                with repo.dvcfs.open(f"/{RAW}/{MANIFEST}", "rb") as file:
                    content: bytes = file.read()
                    return content
        except (DvcException, DataIndexDirError, OSError, BotoCoreError) as error:
            remote = ours["core"].get("remote")
            why = (
                f"could not read it from the DVC remote {remote}: {error.__cause__ or error}"
                if remote
                else "no DVC remote is set"
            )
            raise InputError(
                f"revision: {revision!r}: its {RAW}/{MANIFEST} is not in the DVC cache, and {why}"
            ) from None


def print_difference(repository: Path, old: str, new: str | None) -> None:
    """Print the differences between two revisions. None as the new one means the workspace."""
    before, after = (manifest_of(repository, revision) for revision in (old, new))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly when the reader does, as with `| head`
    for line in lines(old, new or WORKSPACE, before, after):
        print(line)
