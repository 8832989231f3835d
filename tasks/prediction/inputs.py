"""Finds the files that INPUT arguments mean: files, folders, patterns, zip archives, prefixes on S3.

Names and contents are not trusted. A file is read only when its turn comes.
"""

import glob
import hashlib
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from tasks.sources.archives import ZipSource
from tasks.sources.source import refuse_large
from tasks.support.cli import InputError, user_path

if TYPE_CHECKING:
    from tasks.sources.bucket import Bucket, Object

S3 = "s3://"

#: Endings of the files that are taken from a folder or an archive. DICOM files often have none.
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom", ".ima", "")
#: The file that makes a folder one with results of `cxr predict`, which are not its inputs.
PROGRESS = ".progress.jsonl"

#: Characters that are kept in names of output files.
_UNSAFE = re.compile(r"[^\w. ()+=,@-]")
#: Longest part of such a name, and longest name, in bytes of UTF-8. File systems allow 255, and 4095 for a
#: path, but endings, numbers and the output folder are added.
_LONGEST_PART, _LONGEST_NAME = 200, 1000
#: Controls, line and paragraph separators, changes of direction, and bytes that are not UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Item(NamedTuple):
    """An input file."""

    source: str
    """What the user knows it as, in printable characters."""
    name: str
    """Its path below the argument that led to it, without the ending, safe as the name of output files."""
    read: Callable[[], bytes]


class Arrival(NamedTuple):
    """A file in an inbox."""

    item: Item
    stamp: str
    """Size and time of its last change, or its ETag on S3: the same as long as nobody writes the file."""
    modified: float
    """Time of the last change in seconds since 1970; 0 on S3, where files appear at once and complete."""


def find_items(inputs: Sequence[str]) -> list[Item]:
    """All files that the arguments mean, each once, in the order of the arguments and of their names.

    Raises:
        InputError: an argument means no file, or an archive is damaged or unsafe.
    """
    items: dict[str, Item] = {}
    for argument in inputs:
        found = list(_items(argument))
        if not found:
            raise InputError(f"{argument}: no image found; expected PNG, JPEG, TIFF, BMP or DICOM files")
        for item in found:
            items.setdefault(item.source, item)
    return with_distinct_names(list(items.values()))


def _items(argument: str) -> Iterator[Item]:
    if argument.startswith(S3):
        yield from _in_bucket(argument)
        return
    if not argument:  # as of a variable of the shell that is not set
        raise InputError("INPUT is an empty word; . is the current folder")
    path = user_path(argument)
    if path.is_dir():
        files = {file.relative_to(path): file for file in _files_below(path, _say_that_it_is_left_out)}
        yield from (_of_file(files[name], name) for name in sorted(files) if _is_candidate(name))
    elif path.is_file():
        if path.suffix.lower() == ".zip":
            yield from _in_archive(path)
        else:
            yield _of_file(path, Path(path.name))
    elif glob.has_magic(argument):
        for found in sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207 (absolute patterns too)
            if Path(found).is_file() and not any(_has_results(each) for each in Path(found).parents):
                yield from _items(found)
    else:
        raise InputError(f"{argument}: no such file or folder")


def _files_below(folder: Path, leave_out: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """The files below a folder. Linked folders go to `leave_out`; pipes and folders with results are skipped.

    Raises:
        OSError: a folder cannot be read. Its images would be missing.
    """
    for parent, folders, files in os.walk(folder, onerror=_fail):
        inner = [Path(parent, name) for name in sorted(folders) if not _is_hidden(name)]
        if leave_out:
            for linked in filter(Path.is_symlink, inner):
                leave_out(linked)
        folders[:] = [path.name for path in inner if not path.is_symlink() and not _has_results(path)]
        for name in files:
            if Path(parent, name).is_file() or not Path(parent, name).exists():  # a broken link has a reason
                yield Path(parent, name)


def _fail(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # was removed in the meantime
        raise error


def _say_that_it_is_left_out(linked: Path) -> None:
    text = f"left out: {printable(str(linked))}: linked folders are not followed; name the folder itself too"
    print(text, file=sys.stderr, flush=True)


def _has_results(folder: Path) -> bool:
    with suppress(PermissionError):  # said when the folder is listed
        return (folder / PROGRESS).exists()
    return False


def list_inbox(inbox: str) -> list[Arrival]:
    """The images in a folder or below a prefix on S3, oldest first; archives are left out.

    Raises:
        InputError: there is no such folder or bucket.
    """
    if inbox.startswith(S3):
        return list(_listed(inbox, may_be_empty=True))
    path = Path(inbox)
    if not path.is_dir():
        raise InputError(f"{inbox}: no such folder")
    found = []
    for file in _files_below(path):
        relative = file.relative_to(path)
        if not _is_candidate(relative):
            continue
        with suppress(FileNotFoundError):  # was moved away in the meantime
            facts = file.stat()
            if stat.S_ISREG(facts.st_mode):
                stamp = f"{facts.st_size} {facts.st_mtime_ns}"
                found.append(Arrival(_of_file(file, relative), stamp, facts.st_mtime))
    return sorted(found, key=lambda one: (one.modified, one.item.source))


def _is_candidate(name: PurePath) -> bool:
    """Whether a file below a folder may be an image: hidden files and other endings are left out."""
    hidden = any(map(_is_hidden, name.parts))
    return not hidden and name.suffix.lower() in ENDINGS and name.name != "DICOMDIR"


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def printable(name: str) -> str:
    """A name whose unprintable characters are escaped, safe for terminals and for files in UTF-8."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), name)


def _of_file(file: Path, relative: Path) -> Item:
    def read() -> bytes:
        refuse_large(printable(str(file.parent)), file.name, file.stat().st_size)
        return file.read_bytes()

    return Item(printable(str(file)), _safe(relative.as_posix()), read)


def _in_archive(path: Path) -> Iterator[Item]:
    archive = ZipSource(path)
    for name in sorted(archive.names()):
        if _is_candidate(PurePosixPath(name)):
            yield Item(printable(f"{path}/{name}"), _safe(name), lambda name=name: archive.read(name))  # type: ignore[misc]


def _in_bucket(argument: str) -> Iterator[Item]:
    """The objects below a prefix `s3://BUCKET/PREFIX`, or a single object."""
    yield from (arrival.item for arrival in _listed(argument))


def _listed(argument: str, may_be_empty: bool = False) -> Iterator[Arrival]:
    from tasks.sources.bucket import Bucket  # s3fs, which takes a second to import
    from tasks.sources.transfer import UnavailableError

    try:
        bucket, prefix = Bucket(argument), PurePosixPath(argument.removeprefix(S3))
        found = bucket.find(str(prefix), may_be_empty)
    except UnavailableError as error:
        raise InputError(str(error)) from None
    for name in sorted(found):
        relative = PurePosixPath(name).relative_to(prefix if name != str(prefix) else prefix.parent)
        if _is_candidate(relative):
            item = Item(
                printable(f"{S3}{name}"), _safe(relative.as_posix()), _reader(bucket, name, found[name])
            )
            yield Arrival(item, found[name].etag, 0.0)


def _reader(bucket: "Bucket", name: str, listed: "Object") -> Callable[[], bytes]:
    from tasks.sources.transfer import retrying

    def read() -> bytes:
        refuse_large(bucket.where, name, listed.size)
        return retrying(lambda: bucket.read(name, listed.etag))

    return read


def _safe(relative: str) -> str:
    """The name of an output file for an input file; never leads outside a folder."""
    parts = [_UNSAFE.sub("_", part).strip(". ") or "_" for part in PurePosixPath(relative).parts]
    stem, dot, ending = parts[-1].rpartition(".")
    if dot and f".{ending.lower()}" in ENDINGS:
        parts[-1] = stem.strip(". ") or "_"
    # A folder `a.png` would be in the place of the mask of an image `a`.
    folders = [f"{part}_" if part.lower().endswith((".png", ".jpg")) else part for part in parts[:-1]]
    name = "/".join(_cut(part) for part in (*folders, parts[-1]))
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    return f"{hashlib.sha256(relative.encode(errors='surrogateescape')).hexdigest()[:16]}/{_cut(parts[-1])}"


def _cut(part: str) -> str:
    return part[:120].encode()[:_LONGEST_PART].decode(errors="ignore").strip(". ")


def with_distinct_names(items: list[Item]) -> list[Item]:
    """Number the items whose names are the same, regardless of capital letters."""
    taken: set[str] = set()
    found = []
    for item in items:
        name, count = item.name, 1
        while name.lower() in taken:
            count += 1
            name = f"{item.name}-{count}"
        taken.add(name.lower())
        found.append(item._replace(name=name))
    return found
