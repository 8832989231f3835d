"""The data in the DVC cache that nothing refers to any more.

    CACHE/files/md5/HA/SH            the bytes of a file
    CACHE/files/md5/HA/SH.dir        the files of a folder, as JSON
    CACHE/runs/KE/KEY/VALUE          the run cache: what a stage made of what, as YAML

https://dvc.org/doc/user-guide/project-structure/internal-files documents this layout. `dvc gc` would remove
too much: it does not count what the run cache refers to. That is what a cancelled run has trained so far, and
each result's metrics.json, without which DVC restores no `report` from the run cache.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dvc.utils.serialize import load_yaml

from flows.repository.dvc_internals import ENTRY
from flows.repository.git import git

#: A hash of data as dvc.lock, .dvc files and the run cache name it.
HASH = re.compile(r"\b[0-9a-f]{32}(?:\.dir)?\b")

#: The files in which DVC records hashes, as git's path patterns.
RECORDS = (":(glob)**/dvc.lock", ":(glob)**/*.dvc")

#: Where `dvc exp run --temp` and `--queue` work.
EXPERIMENTS = Path(".dvc/tmp/exps")


class Unreferenced(NamedTuple):
    """What can be removed from a cache."""

    entries: list[Path]
    """Of the run cache."""
    objects: list[Path]
    """Data; the lists of folders before their files."""

    def remove(self) -> None:
        """Remove it in an order that can be interrupted: nothing that stays refers to what is gone."""
        for path in (*self.entries, *self.objects):
            path.unlink(missing_ok=True)
        for parent in {path.parent for path in self.entries}:
            with suppress(OSError):  # it has other entries
                parent.rmdir()


def find_unreferenced(
    repository: Path, cache: Path, worktrees: Iterable[Path], refs: Iterable[str], before: float
) -> Unreferenced:
    """Find what was written before a moment, and no commit of the refs and no worktree refers to.

    What younger entries of the run cache refer to counts as referred to.
    """
    used = _committed(repository, refs) | _on_disk(repository, worktrees)
    found = [path for path in _files(cache / "runs", "*/*/*") if ENTRY.fullmatch(path.name)]
    entries = {path: path.read_text(encoding="utf-8") for path in found}
    old = [path for path in entries if _written(path) < before]
    for path in entries.keys() - set(old):
        used.update(HASH.findall(entries[path]))
    used |= {each for name in used if name.endswith(".dir") for each in _listed(cache, name)}
    objects = [
        path
        for path in _files(cache / "files" / "md5", "*/*")
        if HASH.fullmatch(name := path.parent.name + path.name)
        and name not in used
        and _written(path) < before
    ]
    return Unreferenced(
        [path for path in old if not _made(path) <= used],
        sorted(objects, key=lambda path: path.suffix != ".dir"),
    )


def _committed(repository: Path, refs: Iterable[str]) -> set[str]:
    """The hashes in all commits that refs reach, in the past too."""
    # Without --full-history git leaves out branches whose changes a merge has dropped.
    command = ("rev-list", "--objects", "--full-history", "--stdin")
    listed = git(repository, *command, stdin="\n".join([*refs, "--", *RECORDS])).splitlines()
    # A folder's name ends so too: DVC's own, .dvc.
    blobs = [line.split()[0] for line in listed if re.search(r"(^|[ /])dvc\.lock$|[^ /]\.dvc$", line)]
    return (
        set(HASH.findall(git(repository, "cat-file", "--batch", stdin="\n".join(blobs)))) if blobs else set()
    )


def _on_disk(repository: Path, worktrees: Iterable[Path]) -> set[str]:
    """The hashes that worktrees record, uncommitted too, and experiments that run or wait."""
    names = ("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *RECORDS)
    paths = [tree / name for tree in worktrees for name in git(tree, *names).split("\0") if name]
    paths += [tree / "dvc.lock" for tree in worktrees]
    paths += (repository / EXPERIMENTS).rglob("dvc.lock")
    return {
        each for path in paths if path.is_file() for each in HASH.findall(path.read_text(encoding="utf-8"))
    }


def _listed(cache: Path, folder: str) -> Iterator[str]:
    """The hashes of a folder's files."""
    with suppress(FileNotFoundError):
        for file in json.loads((cache / "files" / "md5" / folder[:2] / folder[2:]).read_bytes()):
            yield file["md5"]


def _made(entry: Path) -> set[str]:
    """The hashes of what a stage made."""
    return {out["md5"] for out in load_yaml(str(entry)).get("outs", []) if "md5" in out}


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_file())


def _written(path: Path) -> float:
    return path.stat().st_mtime
