"""Find data in the DVC cache that is no longer referenced.

    CACHE/files/md5/HA/SH            the bytes of a file
    CACHE/files/md5/HA/SH.dir        the files of a folder, as JSON
    CACHE/runs/KE/KEY/VALUE          the run cache: the inputs and outputs of one stage run, as YAML

https://dvc.org/doc/user-guide/project-structure/internal-files documents this layout. `dvc gc` would remove
too much, because it ignores references from the run cache. Only the run cache refers to the finished stages
of a cancelled run, and to each result's metrics.json, without which DVC cannot restore `report` from the run
cache.
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
from tasks.support.repository import EXPERIMENTS

#: A hash of data, as it appears in dvc.lock, .dvc files and the run cache.
HASH = re.compile(r"\b[0-9a-f]{32}(?:\.dir)?\b")

#: Pathspecs of the files in which DVC records hashes.
RECORDS = (":(glob)**/dvc.lock", ":(glob)**/*.dvc")


class Unreferenced(NamedTuple):
    """The files that can be removed from a cache."""

    entries: list[Path]
    """Entries of the run cache."""
    objects: list[Path]
    """Data objects. Folder lists come before the files that they list."""

    def remove(self) -> None:
        """Delete the files. The order is safe to interrupt: no remaining file refers to a deleted one."""
        for path in (*self.entries, *self.objects):
            path.unlink(missing_ok=True)
        for parent in {path.parent for path in self.entries}:
            with suppress(OSError):  # other entries remain in the folder
                parent.rmdir()


def find_unreferenced(
    repository: Path, cache: Path, worktrees: Iterable[Path], refs: Iterable[str], before: float
) -> Unreferenced:
    """Find what was written before a time and is referenced by no commit of `refs` and by no worktree.

    Args:
        repository: The repository.
        cache: The folder of its DVC cache.
        worktrees: Worktrees whose recorded hashes count as referenced, committed or not.
        refs: Git revisions whose whole history counts as referenced.
        before: Only files modified before this time are returned, in seconds since 1970. Data that newer
            entries of the run cache refer to count as referenced.
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
    """Return the hashes recorded in any commit that is reachable from `refs`."""
    # Without --full-history, git omits branches whose changes were dropped by a merge.
    command = ("rev-list", "--objects", "--full-history", "--stdin")
    listed = git(repository, *command, stdin="\n".join([*refs, "--", *RECORDS])).splitlines()
    # The pattern must not match DVC's own folder, .dvc.
    blobs = [line.split()[0] for line in listed if re.search(r"(^|[ /])dvc\.lock$|[^ /]\.dvc$", line)]
    return (
        set(HASH.findall(git(repository, "cat-file", "--batch", stdin="\n".join(blobs)))) if blobs else set()
    )


def _on_disk(repository: Path, worktrees: Iterable[Path]) -> set[str]:
    """Return the hashes recorded in worktrees, committed or not, and in running or queued experiments."""
    names = ("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *RECORDS)
    paths = [tree / name for tree in worktrees for name in git(tree, *names).split("\0") if name]
    paths += [tree / "dvc.lock" for tree in worktrees]
    paths += (repository / EXPERIMENTS).rglob("dvc.lock")
    return {
        each for path in paths if path.is_file() for each in HASH.findall(path.read_text(encoding="utf-8"))
    }


def _listed(cache: Path, folder: str) -> Iterator[str]:
    """Return the hashes of the files in a folder."""
    with suppress(FileNotFoundError):
        for file in json.loads((cache / "files" / "md5" / folder[:2] / folder[2:]).read_bytes()):
            yield file["md5"]


def _made(entry: Path) -> set[str]:
    """Return the hashes of the outputs in an entry of the run cache."""
    return {out["md5"] for out in load_yaml(str(entry)).get("outs", []) if "md5" in out}


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_file())


def _written(path: Path) -> float:
    return path.stat().st_mtime
