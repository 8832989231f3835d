"""The parts of DVC that the flows use beyond its commands and public API.

DVC may change these in any version. The tests of this module show what has changed.
"""

import fcntl
import os
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from configobj import ConfigObj
from dvc.config import Config, NoRemoteError, _pack_named, merge
from dvc.dvcfile import PROJECT_FILE, ProjectFile
from dvc.exceptions import CollectCacheError, DvcException
from dvc.lock import LockError
from dvc.output import Output
from dvc.repo import Repo
from dvc.repo.reproduce import plan_repro
from dvc.stage import PipelineStage
from dvc.stage.cache import RunCacheNotFoundError, _get_cache_hash, _get_stage_hash
from dvc.stage.loader import StageLoader
from dvc.stage.serialize import to_lockfile, to_single_stage_lockfile
from dvc.utils.serialize import load_yaml
from dvc_data.hashfile.hash_info import HashInfo

from flows.repository.lock_text import read_entry, write_entry
from tasks.support.cli import InputError
from tasks.support.locks import lock_file

#: The file name of an entry in the run cache.
ENTRY = re.compile("[0-9a-f]{64}")

#: DVC's API resolves paths against the current folder, which all threads of a process share.
DVC_LOCK = threading.RLock()


@contextmanager
def open_repo(folder: Path) -> Iterator[Repo]:
    """Open DVC's API on a repository or checkout, in one thread at a time."""
    with DVC_LOCK, chdir(folder), open_waiting(folder) as repo:
        yield repo


def open_waiting(folder: Path) -> Repo:
    """Open DVC's API. It waits for DVC's lock while another process holds it."""
    return Repo(str(folder), _wait_for_lock=True)


class Project:
    """A checkout in which dvc.yaml and params.yaml do not change, opened with DVC's API for many operations.

    DVC itself reads dvc.yaml, params.yaml and all of dvc.lock for each stage, and connects to the remote for
    each operation.

    with project.open() as repo:
        stage = project.stage("train@report2-seed0")
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._repo: Repo | None = None

    @contextmanager
    def open(self) -> Iterator[Repo]:
        """Open it, in one thread at a time. Waits for DVC's lock while another process holds it."""
        with DVC_LOCK, chdir(self._folder):
            repo = self._repo or self._first_opened()
            self._repo = None  # after an error, nothing is reused: it may be the connection's
            with repo:
                yield repo
            self._repo = repo

    def _first_opened(self) -> Repo:
        repo = open_waiting(self._folder)
        self._file = ProjectFile(repo, PROJECT_FILE)
        _connect_once(repo)
        return repo

    def stage(self, name: str) -> PipelineStage:
        """Return a stage as dvc.yaml and dvc.lock have it now. Call it while the project is open."""
        locked = {"stages": {name: entry}} if (entry := read_entry(self._folder, name)) else {}
        stage: PipelineStage = StageLoader(self._file, self._file.contents, locked)[name]
        return stage


def _connect_once(repo: Repo) -> None:
    """Have all operations share one connection to each remote."""
    find, known = repo.cloud.get_remote, dict[str, Any]()

    def get_remote(*args: Any, **options: Any) -> Any:
        remote = find(*args, **options)
        remote.fs = known.setdefault(remote.name, remote.fs)
        remote.fs.fs.invalidate_cache()  # other machines may have pushed in between
        return remote

    repo.cloud.get_remote = get_remote


def stages_in_order(repo: Repo) -> dict[PipelineStage, set[PipelineStage]]:
    """Return all stages in the order of `dvc repro`, each with the stages whose outputs it reads."""
    graph = repo.index.graph
    return {stage: set(graph.successors(stage)) for stage in plan_repro(graph)}


def share_cache(repository: Path, checkout: Path) -> None:
    """Configure DVC in the checkout to use the repository's cache, remotes and credentials."""
    with Repo(str(repository)) as repo:
        cache, ours = repo.cache.local_cache_dir, repo.config
        levels = [ours.load_one("repo"), ours.load_one("local")]
    config = Config(str(checkout / ".dvc"))
    # It holds credentials, so nobody else may read it from the moment it exists.
    Path(config.files["local"]).touch(mode=0o600)
    local = config.load_one("local")
    for level in levels:
        merge(local, level)
    local["cache"]["dir"] = cache
    # DVC's state database describes the files of one checkout and is useless for others.
    local["core"]["site_cache_dir"] = str(checkout / ".dvc" / "tmp" / "site")
    _write_settings(config, local)


def _write_settings(config: Config, local: dict[str, Any]) -> None:
    """Write the level `local` of DVC's settings.

    DVC itself writes ASCII, and fails if the path of the repository has other letters. It reads UTF-8.
    """
    path = config.files["local"]
    packed = _pack_named(Config._save_paths(local, path))
    with Path(path).open("wb") as file:
        ConfigObj(packed, encoding="utf-8").write(file)


@contextmanager
def locked_cache(repository: Path) -> Iterator[Path]:
    """Hold DVC's lock on the repository, and yield the folder of its DVC cache.

    Raises:
        InputError: another DVC command is running in the repository, or DVC cannot open it.
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


# --- outputs ------------------------------------------------------------------------------------------------
#
# `dvc pull` and `dvc push` read dvc.yaml several times for each target, which takes seconds.


class Part(NamedTuple):
    """An output, or what it contains at a path."""

    out: Output
    path: str


def inputs_of(stage: PipelineStage, others: Iterable[PipelineStage]) -> list[Part]:
    """Return the outputs of other stages, or the parts of them, that a stage reads."""
    outs = [(out, Path(out.fs_path)) for other in others for out in other.outs]
    parts: dict[str, Part] = {}
    for path in (Path(dep.fs_path) for dep in stage.deps):
        for out, place in outs:
            if path.is_relative_to(place):
                parts[str(path)] = Part(out, str(path))
            elif place.is_relative_to(path):
                parts[str(place)] = Part(out, str(place))
    return [parts[path] for path in sorted(parts)]


def pull_parts(repo: Repo, parts: Sequence[Part]) -> None:
    """Check out parts of outputs, from this machine's cache, or else from the remote.

    Raises:
        ConnectionError: the remote lacks some of the data.
    """
    for part in parts:
        if part.out.is_dir_checksum:
            _pull(repo, {part.out.hash_info})  # the list of the folder's files
    used = (out.get_used_objs(filter_info=path).values() for out, path in parts)
    _pull(repo, {one for sets in used for found in sets for one in found})
    check_out(parts)


def _pull(repo: Repo, hashes: set[HashInfo]) -> None:
    def missing() -> set[HashInfo]:
        return {one for one in hashes if not repo.cache.local.exists(one.value)}

    if not missing():
        return
    with _only_download(repo):  # stages that start together on a machine need the same data
        if wanted := missing():
            repo.cloud.pull(wanted)
        if missing():  # DVC only logs this
            raise ConnectionError("some of the data could not be downloaded")


@contextmanager
def _only_download(repo: Repo) -> Iterator[None]:
    """Wait until no other process that uses the same DVC cache downloads inputs."""
    path = Path(repo.cache.local_cache_dir) / "downloading.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as lock:
        with suppress(InputError):  # a file system without locks
            lock_file(lock, fcntl.LOCK_EX)
        yield


def cached_file(repo: Repo, hash_info: HashInfo) -> Path:
    """Return the path in this machine's DVC cache at which data belongs, whether it is there or not."""
    return Path(repo.cache.local.oid_to_path(hash_info.value))


def fetch(repo: Repo, hashes: set[HashInfo]) -> None:
    """Download data from the DVC remote into the cache. What the remote lacks is skipped."""
    with suppress(NoRemoteError):
        repo.cloud.pull(hashes)


def check_out(parts: Sequence[Part]) -> None:
    """Put parts of outputs into the checkout, all of whose data the cache has."""
    for out, path in parts:
        out.checkout(force=True, filter_info=path)


def push_outputs(repo: Repo, stages: Collection[PipelineStage]) -> None:
    """Upload the outputs of stages, except what the remote has already.

    Raises:
        ConnectionError: some of the data was not uploaded.
    """
    try:
        used = [stage.get_used_objs(push=True).values() for stage in stages]
    except CollectCacheError:  # neither the cache nor the remote has the list of an output folder
        raise ConnectionError("the list of an output folder could not be uploaded") from None
    hashes = {one for sets in used for found in sets for one in found}
    remote = repo.cloud.get_remote_odb(None, "push")
    failed = repo.cloud.push(hashes, odb=remote).failed
    absent = [one for one in hashes if not repo.cache.local.exists(one.value)]
    if failed or not all(remote.exists(one.value) for one in absent):  # DVC only logs this
        raise ConnectionError("some of the data could not be uploaded")


# --- the run cache ------------------------------------------------------------------------------------------


def stage_key(stage: PipelineStage) -> str:
    stage.save_deps()
    key: str = _get_stage_hash(stage)
    return key


def stage_value(stage: PipelineStage) -> str:
    """Return the file name of the run-cache entry of a stage's last run: a hash of its inputs and outputs."""
    value: str = _get_cache_hash(to_single_stage_lockfile(stage))
    return value


def entry_folder(key: str) -> tuple[str, ...]:
    return "runs", key[:2], key


def cached_entries(repo: Repo, key: str) -> Path:
    """Return the folder of this machine's DVC cache that holds the entries of a key."""
    return Path(repo.stage_cache.cache_dir).parent.joinpath(*entry_folder(key))


def entries(files: Any, folder: str) -> list[str]:
    return [path for path in find_files(files, folder) if ENTRY.fullmatch(files.name(path))]


def is_data_missing(repo: Repo, stage: PipelineStage, entry: str) -> bool:
    """Return whether data of a run-cache entry is missing on the remote, rather than just unreachable."""
    files, _ = remote_files(repo)
    path = cached_entries(repo, stage_key(stage)) / files.name(entry)
    get_file(files, entry, path)
    made = repo.stage_cache._create_stage(load_yaml(str(path)), wdir=stage.wdir)
    try:
        states = [repo.cloud.status(objects) for objects in made.get_used_objs().values()]
    except CollectCacheError:  # the list of an output folder is missing
        return True
    return any(state.missing or state.new for state in states)


def remote_files(repo: Repo) -> tuple[Any, str]:
    """Return the remote's file system, and the path of the remote in it."""
    odb = repo.cloud.get_remote_odb(None, "push", hash_name="md5-dos2unix")
    return odb.fs, odb.path


def find_files(files: Any, folder: str) -> list[str]:
    with suppress(FileNotFoundError):
        return sorted(files.find(folder))
    return []


def get_file(files: Any, path: str, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    # Written outside the folder of entries, because DVC treats every file there as an entry.
    beside = to.parent.with_name(f".{to.name}.{os.getpid()}")
    files.get_file(path, str(beside))
    beside.replace(to)


def restore_stage(stage: PipelineStage, pull: bool = False) -> bool:
    """Bring a stage up to date as `dvc repro` does, but without running its command.

    With `pull`, outputs may come from the DVC remote. Returns False if the command would have to run.
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
    write_entry(Path(stage.repo.root_dir), stage.name, to_lockfile(stage)[stage.name])
    return True
