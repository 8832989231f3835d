"""Files as dvc.lock records them, with every byte checked.

DVC trusts its cache: it links a file into the checkout without reading it, and deletes one that it finds
changed. Here, each file is hashed in the cache, before DVC sees it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from dvc.dependency import ParamsDependency
from dvc.output import Output
from dvc.repo import Repo
from dvc.stage import PipelineStage
from dvc.utils.serialize import load_yaml
from dvc_data.hashfile.hash_info import HashInfo

from flows.repository.dvc_internals import Part, cached_file, check_out, fetch
from flows.repository.lock_text import LOCK
from flows.repository.retry import one_line
from tasks.support.cli import InputError
from tasks.support.cpus import available_cores

#: Maximum number of names in a message.
NAMED = 3


class OutdatedError(InputError):
    """dvc.lock does not describe the code, params or data of its own revision."""


class MissingDataError(InputError):
    """Data that dvc.lock names is neither in the DVC cache nor on the DVC remote."""


class ChangedDataError(InputError):
    """The content of a file is not what dvc.lock records."""


# --- dvc.lock and its revision ------------------------------------------------------------------------------


def check_lock(repo: Repo, stages: Iterable[PipelineStage]) -> None:
    """Check that dvc.lock describes the commands, code and params that are checked out. Reads no data.

    Raises:
        OutdatedError: a stage is missing there, or has changed since it ran.
    """
    locked = load_yaml(Path(repo.root_dir) / LOCK)["stages"]
    outs = {Path(out.fs_path): out for out in repo.index.outs}
    above = {parent for path in outs for parent in path.parents}
    for stage in stages:
        if stage.name not in locked:
            raise OutdatedError(f"{stage.name}: {LOCK} has no entry for this stage: it has never run here")
        if stage.changed_stage():
            raise OutdatedError(
                f"{stage.name} is out of date: {LOCK} records another command; `dvc repro` updates it"
            )
        for dep in stage.deps:
            changed, path = "", Path(dep.fs_path)
            if (made := outs.get(path)) and not isinstance(dep, ParamsDependency):
                changed = _name(repo, path) if dep.hash_info != made.hash_info else ""
            elif path not in above and outs.keys().isdisjoint(path.parents):  # else only the data shows it
                changed = _changed(dep)
            if changed:
                raise OutdatedError(_say_outdated(stage, changed))


def check_inputs(stages: Sequence[PipelineStage]) -> None:
    """Check that the files that stages read are those that dvc.lock records for them.

    Skips what one of these stages makes.

    Raises:
        OutdatedError: they are those of another run of an earlier stage.
    """
    made = {Path(out.fs_path) for stage in stages for out in stage.outs}
    above = {parent for path in made for parent in path.parents}
    for stage in stages:
        for dep in stage.deps:
            path = Path(dep.fs_path)
            if path in above or not made.isdisjoint((path, *path.parents)):
                continue
            if changed := _changed(dep):
                raise OutdatedError(_say_outdated(stage, changed))


def _say_outdated(stage: PipelineStage, changed: str) -> str:
    return f"{stage.name} is out of date: {LOCK} records a run with another {changed}; `dvc repro` updates it"


def _changed(dep: Output) -> str:
    """Return what has changed in a dependency since the stage ran, or an empty text."""
    status = dep.workspace_status()
    if not status:
        return ""
    found = next(iter(status.values()))
    return f"{', '.join(map(str, found))} in {dep}" if isinstance(found, Mapping) else str(dep)


# --- data ---------------------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """A file, or the list of the files in a folder."""

    name: str
    """The path in the checkout."""
    hash_info: HashInfo


def bring(repo: Repo, parts: Sequence[Part]) -> int:
    """Check out parts of outputs, from the DVC cache or else the DVC remote, after hashing every byte.

    Returns:
        The number of files.

    Raises:
        ChangedDataError: the content of a file is not what dvc.lock records. The cache is left as it is.
        MissingDataError: neither the cache nor the remote has a file.
    """
    folders = {out.fs_path: out for out, _ in parts if out.is_dir_checksum}
    _ensure(repo, [Wanted(f"{_name(repo, path)}/", out.hash_info) for path, out in folders.items()])
    files = {wanted.name: wanted for part in parts for wanted in _files(repo, part)}
    _ensure(repo, [files[name] for name in sorted(files)])
    check_out(parts)
    return len(files)


def _files(repo: Repo, part: Part) -> Iterable[Wanted]:
    out, path = part
    if not out.is_dir_checksum:
        return [Wanted(_name(repo, path), out.hash_info)]
    root = Path(out.fs_path)
    listed = {
        root / entry["relpath"]: HashInfo("md5", entry["md5"])
        for entry in json.loads(cached_file(repo, out.hash_info).read_bytes())
    }
    return [
        Wanted(_name(repo, place), hash_info)
        for place, hash_info in listed.items()
        if place.is_relative_to(path)
    ]


def _ensure(repo: Repo, wanted: Sequence[Wanted]) -> None:
    """Have everything in the cache, with the right bytes."""
    places = {one: cached_file(repo, one.hash_info) for one in wanted}
    lacking = [one for one in wanted if not places[one].exists()]
    if changed := _find_changed({one: place for one, place in places.items() if place.exists()}):
        raise ChangedDataError(_say_changed(changed, f"in the DVC cache ({places[changed[0].wanted]})"))
    if not lacking:
        return
    try:
        fetch(repo, {one.hash_info for one in lacking})
    except Exception as error:  # each storage has its own errors
        raise InputError(f"DVC remote: {one_line(error)}") from None
    if missing := [one for one in lacking if not places[one].exists()]:
        raise MissingDataError(_say_missing(repo, missing))
    if changed := _find_changed({one: places[one] for one in lacking}):
        for each in changed:
            places[each.wanted].unlink(missing_ok=True)
        raise ChangedDataError(_say_changed(changed, "on the DVC remote"))


class Changed(NamedTuple):
    wanted: Wanted
    found: str
    """The MD5 of its content."""


def _find_changed(places: Mapping[Wanted, Path]) -> list[Changed]:
    with ThreadPoolExecutor(available_cores()) as pool:
        found = zip(places, pool.map(md5, places.values()), strict=True)
        return [Changed(one, digest) for one, digest in found if digest != _digest(one)]


def _digest(wanted: Wanted) -> str:
    assert wanted.hash_info.value
    return wanted.hash_info.value.removesuffix(".dir")


def _say_changed(changed: Sequence[Changed], where: str) -> str:
    first = changed[0]
    more = f"; {len(changed) - 1} more changed" if len(changed) > 1 else ""
    return (
        f"{first.wanted.name} has changed {where}: {LOCK} names md5 {_digest(first.wanted)}, "
        f"found {first.found}{more}"
    )


def _say_missing(repo: Repo, missing: Sequence[Wanted]) -> str:
    names = ", ".join(f"{one.name} (md5 {one.hash_info.value})" for one in missing[:NAMED])
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    if repo.config["core"].get("remote"):
        return (
            f"neither the DVC cache nor the DVC remote has {names}{more}; "
            "`dvc push --all-branches` uploads it, where the run was made"
        )
    return (
        f"the DVC cache does not have {names}{more}, and no default DVC remote is set; "
        "`dvc remote add --default NAME URL` sets one"
    )


def md5(path: Path) -> str:
    """Return the MD5 of a file's bytes, by which DVC names it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _name(repo: Repo, path: Path | str) -> str:
    return Path(path).relative_to(repo.root_dir).as_posix()
