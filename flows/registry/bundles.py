"""The data of a bundle: found in dvc.lock of a commit, and copied out of the DVC cache or the DVC remote.

Nothing of the commit is executed, and DVC neither reads its dvc.yaml nor its configuration. What is missing
in the cache is downloaded in a process that can be killed:

    python -m flows.registry.bundles fetch FOLDER
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

from flows.repository.git import git, run
from tasks.support.cli import InputError

PROJECT = Path(__file__).parents[2]

#: Where the stage `export` writes bundles.
BUNDLES = "artifacts/bundles"

#: Seconds after which a download or upload of a bundle ends. A bundle has up to a few hundred megabytes.
TIMEOUT = 1800.0

#: The file with which DVC tracks the bundle in a temporary folder.
TRACKED = "bundle.dvc"

HASH = re.compile(r"[0-9a-f]{32}\.dir")

#: Names of the files in a bundle, relative to its folder.
NAME = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)


def recorded_hash(repository: Path, commit: str, model: str) -> str:
    """Return DVC's hash of a model's bundle at a commit.

    Raises:
        InputError: that commit has no such bundle.
    """
    from tasks.settings.reading import parse_yaml

    place = f"{BUNDLES}/{model}"
    try:
        lock = parse_yaml(git(repository, "show", f"{commit}:dvc.lock"))
        outs = [out for stage in lock["stages"].values() for out in stage.get("outs", ())]
        found = [str(out["md5"]) for out in outs if out["path"] == place and "md5" in out]
    except (ValueError, AttributeError, KeyError, TypeError):  # ValueError: also those of git
        found = []
    if not found or not HASH.fullmatch(found[0]):
        raise InputError(
            f"{commit[:12]} has no bundle {place}; name {model} in export.experiments of params.yaml, "
            "and retrain"
        )
    return found[0]


def prepare(folder: Path, tracked: str) -> None:
    """Make a folder of DVC in which `bundle` is the data of a hash."""
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    text = f"outs:\n- md5: {tracked}\n  hash: md5\n  path: bundle\n"
    (folder / TRACKED).write_text(text, encoding="utf-8")


def copy_bundle(folder: Path, cache: Path, tracked: str, to: Path) -> None:
    """Copy the data of a hash to a folder, from a cache, after what the cache lacks was downloaded to it.

    Raises:
        InputError: the data is nowhere to be found, or its list names files outside the folder.
    """
    if not _is_complete(cache, tracked):
        transfer("fetch", folder)
    files = _files(cache, tracked)
    if missing := [name for name, path in files.items() if not path.is_file()]:
        raise InputError(f"the DVC remote lacks {len(missing)} files of the bundle, such as {missing[0]!r}")
    for name, path in files.items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to / name)


def transfer(action: str, folder: Path) -> None:
    """Fetch or push the bundle of a prepared folder."""
    words = "download" if action == "fetch" else "upload"
    command = (sys.executable, "-m", "flows.registry.bundles", action, str(folder))
    try:
        run(PROJECT, *command, timeout=TIMEOUT)
    except InputError as error:
        line = (str(error).splitlines() or [""])[-1]
        message = line.partition("error: ")[2] or line
        raise InputError(f"{words} of the bundle failed: {message}") from None


def _object(cache: Path, md5: str) -> Path:
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def _is_complete(cache: Path, tracked: str) -> bool:
    return _object(cache, tracked).is_file() and all(p.is_file() for p in _files(cache, tracked).values())


def _files(cache: Path, tracked: str) -> dict[str, Path]:
    """Return the files of the data of a hash, by their names relative to its folder.

    Raises:
        InputError: the list of files is missing, or not one of ours.
    """
    try:
        listed = json.loads(_object(cache, tracked).read_bytes())
        files = {str(each["relpath"]): str(each["md5"]) for each in listed}
    except FileNotFoundError:
        raise InputError("the DVC cache and the DVC remote have no data of this bundle") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError("the list of the bundle's files is invalid") from None
    for name, md5 in files.items():
        is_name = NAME.fullmatch(name) and not {".", ".."} & set(name.split("/"))
        if not is_name or not re.fullmatch("[0-9a-f]{32}", md5):
            raise InputError(f"the list of the bundle's files has an invalid entry: {name!r}")
    return {name: _object(cache, md5) for name, md5 in files.items()}


def _transfer(action: str, folder: Path) -> None:
    from flows.repository.dvc_internals import fetch, open_repo

    os.chdir(folder)
    with open_repo(folder) as repo:
        if action == "push":
            repo.push([TRACKED])
            return
        (bundle,) = repo.index.outs
        fetch(repo, {bundle.hash_info})  # only the list of files
        _files(Path(repo.cache.local_cache_dir), str(bundle.hash_info.value))  # DVC makes paths of its hashes
        repo.fetch([TRACKED])


if __name__ == "__main__":
    from flows.repository.retry import one_line

    try:
        _transfer(sys.argv[1], Path(sys.argv[2]))
    except Exception as error:  # each storage has its own errors
        sys.exit(f"error: {one_line(error)}")
