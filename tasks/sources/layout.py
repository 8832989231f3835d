"""The layout of COVID-QU-Ex in the names of files: which names are in it, and why the others are not.

Capital and small letters are the same, as on the file systems of Windows and macOS.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tasks.common.raw import CLASSES, HALF_KINDS, KIND_FOLDERS, SPLITS, Kind

LAYOUT_EXAMPLE = "Infection Segmentation Data/Train/COVID-19/images/covid_1.png"
HALVES = ("Infection Segmentation Data", "Lung Segmentation Data")

#: Folders that systems and programs create, without those that start with a dot.
SYSTEM_FOLDERS = {
    "$recycle.bin",
    "#recycle",
    "#snapshot",
    "@eadir",
    "@recycle",
    "@recycle bin",
    "__macosx",
    "lost+found",
    "recycler",
    "system volume information",
}
#: Lines that say what was left out; further reasons share the last one.
MOST_LINES = 5

# ASCII: otherwise, some letters of other alphabets would equal Latin ones.
_FLAGS = re.IGNORECASE | re.ASCII | re.DOTALL
_HALF = re.compile(r"(?:^|.*/)(?P<half>Infection|Lung) Segmentation Data/(?P<rest>.*)", _FLAGS)
_SPLIT = re.compile(rf"(?:^|.*/)(?P<split>{'|'.join(SPLITS)})/(?P<rest>.*)", _FLAGS)

_SPLITS = {split.lower(): index for index, split in enumerate(SPLITS)}
_CLASSES = {image_class.lower(): index for index, image_class in enumerate(CLASSES)}
_KINDS = {folder: kind for kind, folder in KIND_FOLDERS.items()}


class Place(NamedTuple):
    """What a file is, according to its name."""

    half: str
    split: int
    image_class: int
    kind: Kind
    name: str


class LeftOut(NamedTuple):
    """Files that are not in the layout for one reason. The name of a folder ends in a slash."""

    reason: str
    number: int
    folders: int
    first: str


def place_of(name: str, base: str) -> Place | str:
    """The place of a file in the layout, or the reason why it has none.

    Args:
        name: the file, or a folder that was not entered, with a slash at its end.
        base: the beginning of the name that is the source's own, such as the name of its folder.
    """
    if hidden_part(name.removeprefix(base)):
        return "hidden, or made by a system"
    if name.endswith("/"):
        return "a linked folder, which is not followed"
    half = _HALF.fullmatch(name)
    if not half:
        return f"in neither {HALVES[0]!r} nor {HALVES[1]!r}"
    split = _SPLIT.fullmatch(half["rest"])
    if not split:
        return f"in none of the folders {', '.join(SPLITS)}"
    return _in_split(half["half"].lower(), split["split"], split["rest"].split("/"))


def _in_split(half: str, split: str, parts: list[str]) -> Place | str:
    stem, _, ending = parts[-1].rpartition(".")
    if ending.lower() != "png" or not stem:
        return "not named .png"
    if len(parts) < 3:
        return f"in none of the folders {', '.join(KIND_FOLDERS.values())}"
    image_class, kind = _CLASSES.get(parts[0].lower()), _KINDS.get(parts[1].lower())
    if image_class is None:
        return f"{parts[0]!r} is none of the classes {', '.join(CLASSES)}"
    if kind is None:
        return f"{parts[1]!r} is none of the folders {', '.join(KIND_FOLDERS.values())}"
    if len(parts) > 3:
        return "in a folder below those of the layout"
    if kind not in HALF_KINDS[half]:
        return f"the {half} half has no {KIND_FOLDERS[kind]}"
    return Place(half, _SPLITS[split.lower()], image_class, kind, stem)


def hidden_part(name: str) -> str | None:
    """The beginning of the name up to its first part that is hidden or that a system made.

    Examples are `.DS_Store`, `._NAME.png`, which macOS adds to an archive for each file, and a recycle bin.
    """
    parts = name.split("/")
    for end, part in enumerate(parts, start=1):
        if is_hidden(part, folder=end < len(parts)):
            return "/".join(parts[:end]) + "/" * (end < len(parts))
    return None


def is_hidden(part: str, folder: bool) -> bool:
    return part.startswith(".") or (folder and part.lower() in SYSTEM_FOLDERS)


def is_in_a_half(name: str) -> bool:
    """Whether a file or folder belongs to one of the dataset's halves, or is one."""
    return _HALF.fullmatch(f"{name}/") is not None


def left_out(names: Iterable[str], base: str) -> list[LeftOut]:
    """The files that are not in the layout, by reason, the most frequent reason first.

    A hidden folder, or one that a system made, counts as one.
    """
    found: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        reason = place_of(name, base)
        if isinstance(reason, str):
            own = name.removeprefix(base)
            found[reason].add(hidden_part(own) or own)
    groups = [
        LeftOut(reason, len(files), sum(name.endswith("/") for name in files), min(files))
        for reason, files in found.items()
    ]
    return sorted(groups, key=lambda group: (-group.number, group.reason))


def describe_left_out(groups: list[LeftOut], where: str) -> Iterator[str]:
    """At most MOST_LINES lines that say what was left out, and why."""
    shown = groups if len(groups) <= MOST_LINES else groups[: MOST_LINES - 1]
    for group in shown:
        which = "is not in the layout" if group.number == 1 else "are not in the layout, the first"
        yield f"{_counted(group)} below {where} {which}: {group.first!r} ({group.reason})"
    if rest := groups[len(shown) :]:
        number = sum(group.number for group in rest)
        yield f"{number} files below {where} are not in the layout, for {len(rest)} other reasons"


def _counted(group: LeftOut) -> str:
    if group.number == 1:
        return "1 folder" if group.folders else "1 file"
    kinds = {0: "files", group.number: "folders"}
    return f"{group.number} {kinds.get(group.folders, 'files and folders')}"
