"""dvc.lock as text.

DVC parses the whole file for each stage, and changes it with a parser that is slower still. With the entries
of a hundred experiments, that takes 0.5 s and 6 s. Here, only entries that are needed are parsed.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvc.utils.serialize import dumps_yaml, load_yaml, loads_yaml, modify_yaml

from tasks.common.files import replacing

LOCK = "dvc.lock"

HEAD = "schema: '2.0'\nstages:\n"

#: The line with a stage's name, and the indented lines below it.
ENTRY = re.compile(r"^  (?P<name>[A-Za-z_][\w@.-]*):\n(?P<lines>(?:(?:    .*)?\n)*)", re.MULTILINE)


def read_entry(folder: Path, stage: str) -> dict[str, Any]:
    """Return what dvc.lock in a folder records for a stage, or an empty dictionary."""
    entries = _split(folder)
    if entries is None:
        found: dict[str, Any] = load_yaml(folder / LOCK).get("stages", {}).get(stage, {})
    else:
        found = loads_yaml(entries.get(stage, "{}"))
    return found


def write_entry(folder: Path, stage: str, entry: Mapping[str, Any]) -> None:
    """Replace the entry of a stage in dvc.lock, or add it at the end."""
    entries = _split(folder)
    if entries is None:
        with modify_yaml(folder / LOCK) as lock:
            lock.setdefault("stages", {})[stage] = entry
    else:
        text = dumps_yaml({"schema": "2.0", "stages": {stage: entry}})
        _write(folder, entries | _entries(text))


def select_entries(folder: Path, stages: list[str]) -> None:
    """Keep only the entries of these stages in dvc.lock, in this order."""
    entries = _split(folder)
    if entries is None:
        with modify_yaml(folder / LOCK) as lock:
            found = lock.get("stages", {})
            lock["stages"] = {name: found[name] for name in stages if name in found}
    else:
        _write(folder, {name: entries[name] for name in stages if name in entries})


def _split(folder: Path) -> dict[str, str] | None:
    """Return the lines of each entry, or None if the file is not as DVC writes it."""
    path = folder / LOCK
    text = path.read_text(encoding="utf-8") if path.exists() else HEAD
    entries = _entries(text)
    return entries if text == _joined(entries) else None


def _entries(text: str) -> dict[str, str]:
    return {found["name"]: found["lines"] for found in ENTRY.finditer(text)}


def _joined(entries: Mapping[str, str]) -> str:
    return HEAD + "".join(f"  {name}:\n{lines}" for name, lines in entries.items())


def _write(folder: Path, entries: Mapping[str, str]) -> None:
    if not entries:  # DVC wants a file with entries, or none
        (folder / LOCK).unlink(missing_ok=True)
        return
    with replacing(folder / LOCK) as beside:
        beside.write_text(_joined(entries), encoding="utf-8")
