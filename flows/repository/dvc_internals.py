"""What the flows use of DVC beyond its commands and the public API.

DVC promises none of this, so a new version may change it. The tests of this module say what has changed.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager, suppress
from pathlib import Path
from typing import Any

from dvc.config import Config, merge
from dvc.exceptions import CollectCacheError, DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.repo.reproduce import plan_repro
from dvc.stage import PipelineStage
from dvc.stage.cache import RunCacheNotFoundError, _get_cache_hash, _get_stage_hash
from dvc.stage.serialize import to_lockfile, to_single_stage_lockfile
from dvc.utils.serialize import dumps_yaml, load_yaml

from tasks.support.cli import InputError

#: What an entry of the run cache is called.
ENTRY = re.compile("[0-9a-f]{64}")

#: DVC's own API counts paths from the current folder, which all threads of a process share.
ONE_AT_A_TIME = threading.RLock()


@contextmanager
def opened(folder: Path) -> Iterator[Repo]:
    """DVC's own API on a repository or checkout, in one thread at a time."""
    with ONE_AT_A_TIME, chdir(folder), waiting(folder) as repo:
        yield repo


def waiting(folder: Path) -> Repo:
    """DVC's own API, which waits for its lock where another process of DVC holds it."""
    return Repo(str(folder), _wait_for_lock=True)


def planned(repo: Repo) -> dict[PipelineStage, set[PipelineStage]]:
    """All stages in the order in which `dvc repro` runs them, each with those whose outputs it reads."""
    graph = repo.index.graph
    return {stage: set(graph.successors(stage)) for stage in plan_repro(graph)}


def share_cache(repository: Path, checkout: Path) -> None:
    """Let DVC in the checkout use the repository's own cache, remotes and credentials."""
    with Repo(str(repository)) as repo:
        cache, ours = repo.cache.local_cache_dir, repo.config
        levels = [ours.load_one("repo"), ours.load_one("local")]
    config = Config(str(checkout / ".dvc"))
    with config.edit("local") as local:
        for level in levels:
            merge(local, level)
        local["cache"]["dir"] = cache
        # What DVC remembers of the files here is of no use to any other checkout.
        local["core"]["site_cache_dir"] = str(checkout / ".dvc" / "tmp" / "site")
    Path(config.files["local"]).chmod(0o600)


@contextmanager
def locked(repository: Path) -> Iterator[Path]:
    """The folder of the repository's DVC cache, while no other command of DVC uses the repository.

    Raises:
        InputError: one does, or DVC can't be used here.
    """
    with ExitStack() as stack:
        try:
            repo = stack.enter_context(Repo(str(repository)))
            stack.enter_context(repo.lock)
        except LockError:
            raise InputError(f"{repository}: DVC is in use here; try again when it has finished") from None
        except DvcException as error:
            raise InputError(f"{repository}: {error}") from None
        yield Path(repo.cache.local_cache_dir)


# --- the run cache ------------------------------------------------------------------------------------------


def stage_key(stage: PipelineStage) -> str:
    stage.save_deps()
    key: str = _get_stage_hash(stage)
    return key


def stage_value(stage: PipelineStage) -> str:
    """What the entry of a stage's last run is called: a hash over all that it read and made."""
    value: str = _get_cache_hash(to_single_stage_lockfile(stage))
    return value


def entry_folder(key: str) -> tuple[str, ...]:
    return "runs", key[:2], key


def cached_entries(repo: Repo, key: str) -> Path:
    """Where this machine's DVC cache has the entries of a key."""
    return Path(repo.stage_cache.cache_dir).parent.joinpath(*entry_folder(key))


def entries(files: Any, folder: str) -> list[str]:
    return [path for path in find_files(files, folder) if ENTRY.fullmatch(files.name(path))]


def lacks_data(repo: Repo, stage: PipelineStage, entry: str) -> bool:
    """Whether data of the stage's entry are gone from the remote: it may just have been away for a while."""
    files, _ = remote_files(repo)
    path = cached_entries(repo, stage_key(stage)) / files.name(entry)
    get_file(files, entry, path)
    made = repo.stage_cache._create_stage(load_yaml(str(path)), wdir=stage.wdir)
    try:
        states = [repo.cloud.status(objects) for objects in made.get_used_objs().values()]
    except CollectCacheError:  # the list of a folder's files
        return True
    return any(state.missing or state.new for state in states)


def remote_files(repo: Repo) -> tuple[Any, str]:
    """The remote's file system, and its folder there."""
    odb = repo.cloud.get_remote_odb(None, "push", hash_name="md5-dos2unix")
    return odb.fs, odb.path


def find_files(files: Any, folder: str) -> list[str]:
    with suppress(FileNotFoundError):
        return sorted(files.find(folder))
    return []


def get_file(files: Any, path: str, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    # Not in the same folder: DVC takes whatever lies among its entries for one.
    beside = to.parent.with_name(f".{to.name}.{os.getpid()}")
    files.get_file(path, str(beside))
    beside.replace(to)


# --- dvc.lock -----------------------------------------------------------------------------------------------

LOCK = "dvc.lock"


def is_restored(stage: PipelineStage, pull: bool = False) -> bool:
    """Do for one stage what `dvc repro` does, up to where it would run the stage's command.

    With `pull` its outputs may come from the DVC remote.
    """
    if not stage.changed():
        return True
    stage.remove_outs(ignore_remove=False, force=False)
    try:
        stage.repo.stage_cache.restore(stage, pull=pull)
    except RunCacheNotFoundError:
        return False
    stage.save()
    stage.commit()
    _write_lock(stage)
    return True


def _write_lock(stage: PipelineStage) -> None:
    """Put the stage's entry into dvc.lock.

    DVC parses and prints the file as a whole for it, by its slowest parser: six seconds where there are a
    hundred experiments. An entry is the line of its name and what is indented below.
    """
    lock = Path(stage.repo.root_dir) / LOCK
    text = dumps_yaml({"schema": "2.0", "stages": to_lockfile(stage)})
    if lock.exists():
        before = lock.read_text(encoding="utf-8")
        name, _, entry = text.partition("stages:\n")[2].partition("\n")
        place = re.compile(rf"^{re.escape(name)}\n(?:(?:    .*)?\n)*", re.MULTILINE)
        sections = re.findall(r"^\w.*", before, re.MULTILINE)
        if not (before.endswith("\n") and sections[-1:] == ["stages:"]):
            stage.dump(update_pipeline=False)
            return
        new = f"{name}\n{entry}"
        text = place.sub(lambda _: new, before) if place.search(before) else before + new
    beside = lock.with_name(f".{LOCK}.partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(lock)
