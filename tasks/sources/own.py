"""Finds the images and masks of a dataset of one's own, as `data.layout` describes it."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from tasks.common.raw import CLASSES, CONTROLS, KIND_WORDS, SPLITS, Half, Kind, Split
from tasks.settings.layout import ExternalLayout, Layout, placeholders
from tasks.sources.layout import LeftOut, hidden_part
from tasks.sources.listing import Image, Images, find_images, find_left_out, refuse_unusable_name
from tasks.sources.source import Source
from tasks.sources.splits import Lot, draw
from tasks.sources.table import Row, composed, image_name, read_table
from tasks.support.cli import InputError

#: ASCII: otherwise, some letters of other alphabets would equal Latin ones.
_FLAGS = re.IGNORECASE | re.ASCII | re.DOTALL
_WILD = re.compile(r"(\{[a-z]+\}|\*)")

#: Hexadecimal digits of a group's hash in the name of an image.
DIGITS = 10

Fields = dict[str, str]  # placeholder -> what it stands for
Key = tuple[str, ...]  # what stands for some placeholders, in the order of a pattern


class Groups(NamedTuple):
    """The groups of the images, such as patients."""

    number: int
    split: int
    """How many of them have images in several splits."""


class Found(NamedTuple):
    """The images of a source, and what is not taken from it."""

    images: Images
    left_out: list[LeftOut]
    groups: Groups | None = None
    """None if nothing is known of groups."""
    group_of: Mapping[Image, str] = {}
    """The group of each image, if groups are known."""
    notes: tuple[str, ...] = ()
    """Further lines for the user."""


def find(source: Source, where: str, layout: Layout | None, external: str | None = None) -> Found:
    """Find the images of a source, in the folders of COVID-QU-Ex or in a layout of one's own.

    Of the external dataset that `external` names, only Test images are found, and of the folders of
    COVID-QU-Ex only those of the infection half.

    Raises:
        InputError: no file is in the layout, two files have the same place in it, a file name cannot be
            stored, the table cannot be read, or a split has no image.
    """
    if layout:
        return _Search(source, where, layout, external).found()
    images = find_images(source, where)
    return Found(_test_images(images, where) if external else images, find_left_out(source))


def _test_images(images: Images, where: str) -> Images:
    """The Test images of the infection half."""
    test = {
        image: files
        for image, files in images.items()
        if image.half == "infection" and SPLITS[image.split] == "Test"
    }
    if not test:
        raise InputError(f"{where}: the infection half has no Test image, and only these are scored")
    return test


def compiled(pattern: str) -> "re.Pattern[str]":
    """A pattern as a regular expression. A placeholder or `*` stands for a part of a name without slashes.

    Each of them takes as few characters as possible; a placeholder that occurs twice stands for the same.
    """
    seen: set[str] = set()
    return re.compile("".join(_expression(part, seen) for part in _WILD.split(pattern)), _FLAGS)


def _expression(part: str, seen: set[str]) -> str:
    if part == "*":
        return "[^/]*?"
    if not _WILD.fullmatch(part):
        return re.escape(part)
    name = part[1:-1]
    if name in seen:
        return f"(?P={name})"
    seen.add(name)
    return f"(?P<{name}>[^/]+?)"


class _Candidate(NamedTuple):
    """An image with everything that is known of it, before splits are drawn."""

    file: str
    fields: Fields
    split: str
    image_class: int
    group: str | None


class _Search:
    """One pass over the files of a source."""

    def __init__(self, source: Source, where: str, layout: Layout, external: str | None) -> None:
        self._source, self._where, self._layout = source, where, layout
        self._key = f"external.{external}.layout" if external else "data.layout"
        #: The splits that images can have; the first is that of images whose split nothing names.
        self._wanted: tuple[Split, ...] = ("Test",) if external else SPLITS
        self._names = sorted(source.names())
        self._patterns = {
            kind: compiled(pattern) for kind, pattern in {**layout.masks, "image": layout.images}.items()
        }
        self._base = self._find_base()
        self._rows = self._read_table()
        self._reasons: defaultdict[str, set[str]] = defaultdict(set)
        self._notes: list[str] = []

    def found(self) -> Found:
        files = self._matched()
        candidates = self._candidates(files["image"])
        masks = self._masks(files, candidates)
        complete = self._with_masks(candidates, masks)
        splits = self._splits(complete)
        images: Images = {}
        groups: defaultdict[str, set[Split]] = defaultdict(set)
        group_of: dict[Image, str] = {}
        for key, candidate in complete.items():
            image = self._image(candidate, splits[key])
            if image in images:
                first, second = self._shown(images[image]["image"]), self._shown(candidate.file)
                raise InputError(
                    f"{self._where}: {first!r} and {second!r} have the same name, split and class; rename "
                    f"one of them, or tell them apart by {{group}} in {self._key}.images"
                )
            images[image] = {"image": candidate.file, **masks[key]}
            if candidate.group is not None:
                groups[candidate.group].add(splits[key])
                group_of[image] = candidate.group
        self._refuse_empty_split(images)
        apart = Groups(len(groups), sum(len(of_one) > 1 for of_one in groups.values()))
        known = apart if self._layout.knows("group") else None
        return Found(images, self._left_out(), known, group_of, tuple(self._notes))

    def _with_masks(
        self, candidates: Mapping[Key, _Candidate], masks: Mapping[Key, Mapping[Kind, str]]
    ) -> dict[Key, _Candidate]:
        """The images that have all of their masks. Controls need no infection mask."""
        complete, without = {}, 0
        for key, candidate in candidates.items():
            lacking = [kind for kind in self._layout.masks if kind not in masks[key]]
            if "infection" in lacking and CLASSES[candidate.image_class] in CONTROLS:
                lacking.remove("infection")
                without += not lacking
            missing = next(iter(lacking), None)
            if missing:
                self._leave_out(candidate.file, f"an image without {_a(KIND_WORDS[missing])}")
            else:
                complete[key] = candidate
        if without:
            self._notes.append(f"controls without an infection mask, which counts as empty: {without}")
        return complete

    def _left_out(self) -> list[LeftOut]:
        """The files that are left out by reason, the most frequent reason first."""
        reasons = sorted(self._reasons.items(), key=lambda found: (-len(found[1]), found[0]))
        return [
            LeftOut(reason, len(names), sum(name.endswith("/") for name in names), self._masked(min(names)))
            for reason, names in reasons
        ]

    def _shown(self, file: str) -> str:
        """The name of a file in messages, which logs keep."""
        return self._masked(file.removeprefix(self._base))

    def _masked(self, name: str) -> str:
        """The name with a hash in place of its group, which may be a patient.

        Where names have groups, only the ending is shown of a file that fits no pattern.
        """
        for regex in self._patterns.values():
            if match := regex.fullmatch(name):
                return self._masked_match(match)
        if "group" not in placeholders(self._layout.images):
            return name
        *folders, last = name.split("/")
        return "/".join([*("*" for _ in folders), f"*{PurePosixPath(last).suffix}" if last else ""])

    def _masked_match(self, match: "re.Match[str]") -> str:
        name = match.string
        if "group" in match.re.groupindex:
            start, end = match.span("group")
            return without_group(name[:start] + hashed(match["group"]) + name[end:], match["group"])
        row = (self._rows or {}).get(image_name(match["name"]))
        return without_group(name, row.values.get("group", "")) if row else name

    def _refuse_two(self, row: str, first: str, second: str) -> None:
        raise InputError(
            f"{self._where}: the row {self._masked_row(row)!r} of the table is about {self._shown(first)!r} "
            f"and {self._shown(second)!r}; rename one of them, because the table has only names of images"
        )

    def _masked_row(self, name: str) -> str:
        """The name that a row of the table has, with a hash in place of its group."""
        assert self._rows
        return without_group(name, self._rows[name].values.get("group", ""))

    def _leave_out(self, file: str, reason: str) -> None:
        self._reasons[reason].add(file.removeprefix(self._base))

    def _find_base(self) -> str:
        """The beginning of all names that is not in the patterns: the folder from which a zip was made."""
        names, base = self._names, self._source.base
        own = [name.removeprefix(base) for name in names]
        if any(self._patterns["image"].fullmatch(name) for name in own):
            return base
        tops = {name.partition("/")[0] for name in own if not hidden_part(name)}
        return f"{base}{tops.pop()}/" if len(tops) == 1 else base

    def _matched(self) -> dict[Kind, dict[str, Fields]]:
        """The files that fit each pattern. A file that fits the pattern of a mask is no image."""
        found: dict[Kind, dict[str, Fields]] = {kind: {} for kind in self._patterns}
        table = self._layout.table
        for file in self._names:
            name = file.removeprefix(self._base)
            if hidden := hidden_part(name):
                self._reasons["hidden, or made by a system"].add(hidden)
            elif name.endswith("/"):
                self._leave_out(file, "a linked folder, which is not followed")
            elif not table or name != table.file:
                self._match(file, name, found)
        if not found["image"]:
            first = next((self._masked(min(names)) for names in self._reasons.values()), None)
            hint = f"; a file that is there: {first!r}" if first else ""
            raise InputError(
                f"{self._where}: no file fits {self._key}.images, {self._layout.images!r}; a pattern is "
                f"relative to the source{hint}"
            )
        for kind in self._layout.masks:
            if not found[kind]:
                raise InputError(
                    f"{self._where}: no file fits {self._key}.{kind}, {self._layout.masks[kind]!r}; "
                    f"an image is {self._shown(next(iter(found['image'])))!r}"
                )
        return found

    def _match(self, file: str, name: str, found: dict[Kind, dict[str, Fields]]) -> None:
        matches = {kind: match for kind, regex in self._patterns.items() if (match := regex.fullmatch(name))}
        masks = [kind for kind in matches if kind != "image"]
        if len(masks) > 1:
            raise InputError(
                f"{self._where}: {self._shown(file)!r} fits the patterns of lung and infection masks; write "
                f"more of the names into {self._key}.lung and {self._key}.infection"
            )
        if not matches:
            self._leave_out(file, f"fits no pattern of {self._key}")
            return
        kind = masks[0] if masks else "image"
        fields = matches[kind].groupdict()
        refuse_unusable_name(fields["name"], self._shown(file), self._where)
        found[kind][file] = fields

    # What is known of each image

    def _candidates(self, files: Mapping[str, Fields]) -> dict[Key, _Candidate]:
        """The images by their keys. Those whose split or class is unknown are left out."""
        rows, used, about = self._rows, set(), dict[str, str]()
        found: dict[Key, _Candidate] = {}
        names = placeholders(self._layout.images)
        for file, fields in files.items():
            in_table = image_name(fields["name"])
            row = rows.get(in_table) if rows is not None else None
            if rows is not None and row is None:
                self._leave_out(file, "an image without a row in the table")
                continue
            used.add(in_table)
            known = {**fields, **(row.values if row else {})}
            if "group" in known:
                known["group"] = composed(known["group"])
            candidate = self._candidate(file, known)
            if isinstance(candidate, str):
                self._leave_out(file, candidate)
                continue
            key = _key(fields, names)
            if key in found:
                first, second = self._shown(found[key].file), self._shown(file)
                raise InputError(
                    f"{self._where}: {first!r} and {second!r} are the same image by {self._key}.images, "
                    f"{self._layout.images!r}"
                )
            if row and in_table in about:
                self._refuse_two(in_table, about[in_table], file)
            about[in_table] = file
            found[key] = candidate
        if unused := sorted((rows or {}).keys() - used):
            which = "1 row" if len(unused) == 1 else f"{len(unused)} rows"
            assert self._layout.table
            first = self._masked_row(unused[0])
            self._notes.append(f"{which} of {self._layout.table.file} without an image, the first: {first!r}")
        return found

    def _read_table(self) -> dict[str, Row] | None:
        table = self._layout.table
        if table is None:
            return None
        file = self._base + table.file
        if file not in self._names:
            raise InputError(
                f"{self._where}: {self._key}.table.file: there is no file {table.file!r}; its name is "
                "relative to the source"
            )
        return read_table(self._source.read(file), table, self._where)

    def _candidate(self, file: str, known: Fields) -> _Candidate | str:
        """The image, or the reason why it is left out."""
        layout = self._layout
        split = _found(known.get("split", self._wanted[0]), layout.splits.names, SPLITS)
        if split is None:
            return f"{known['split']!r} is none of the splits {_words(layout.splits.names, SPLITS)}"
        if split not in self._wanted:
            return f"in {split}, and only Test images are scored"
        classes = layout.classes
        if isinstance(classes, str):
            image_class: str | None = classes
        else:
            image_class = _found(known["class"], classes or {}, CLASSES)
        if image_class is None:
            names = classes if isinstance(classes, dict) else {}
            return f"{known['class']!r} is none of the classes {_words(names, CLASSES)}"
        if "group" in known and not known["group"]:
            return "its group in the table is empty"
        index = [str(name) for name in CLASSES].index(image_class)
        return _Candidate(file, known, split, index, known.get("group"))

    def _splits(self, candidates: Mapping[Key, _Candidate]) -> dict[Key, Split]:
        """The split of each image: as it is named, or drawn from those that are named Train."""
        found = {key: SPLITS[[str(s) for s in SPLITS].index(c.split)] for key, c in candidates.items()}
        if self._layout.splits.drawn:
            pool = [key for key, split in found.items() if split == "Train"]
            lots = [Lot(self._unit(candidates[key]), candidates[key].image_class) for key in pool]
            found |= dict(zip(pool, draw(lots, self._layout.splits), strict=True))
        return found

    def _unit(self, candidate: _Candidate) -> str:
        """What stays in one split: a group, or an image without a group."""
        if candidate.group is not None:
            return candidate.group
        names = placeholders(self._layout.images)
        return "/".join(candidate.fields[name] for name in names if name != "split")

    def _image(self, candidate: _Candidate, split: Split) -> Image:
        """The image in data/raw. A hash stands for a group in its name: it may be a patient."""
        group = candidate.group or ""
        name = without_group(candidate.fields["name"], group)
        if "group" in placeholders(self._layout.images):
            name = f"{hashed(group)}-{name}"
        half: Half = self._layout.half
        return Image(half, SPLITS.index(split), candidate.image_class, name)

    # Masks

    def _masks(
        self, files: Mapping[Kind, Mapping[str, Fields]], candidates: Mapping[Key, _Candidate]
    ) -> dict[Key, dict[Kind, str]]:
        """The masks of each image."""
        found: dict[Key, dict[Kind, str]] = {key: {} for key in candidates}
        names = placeholders(self._layout.images)
        for kind, pattern in self._layout.masks.items():
            own = placeholders(pattern)
            images: defaultdict[Key, list[Key]] = defaultdict(list)
            for key in candidates:
                images[_key(dict(zip(names, key, strict=True)), own)].append(key)
            left = {_key(fields, own) for fields in files["image"].values()} - images.keys()
            for file, fields in files[kind].items():
                key = _key(fields, own)
                if len(fitting := images.get(key, [])) > 1:
                    mask, first, second = map(self._shown, (file, *(candidates[i].file for i in fitting[:2])))
                    raise InputError(
                        f"{self._where}: the {KIND_WORDS[kind]} {mask!r} fits several images, such as "
                        f"{first!r} and {second!r}; write more placeholders into {self._key}.{kind}"
                    )
                if not fitting:
                    why = "of an image that is left out" if key in left else "without an image"
                    self._leave_out(file, f"{_a(KIND_WORDS[kind])} {why}")
                elif kind in found[fitting[0]]:
                    first, second = self._shown(found[fitting[0]][kind]), self._shown(file)
                    raise InputError(
                        f"{self._where}: {first!r} and {second!r} are both the {KIND_WORDS[kind]} of "
                        f"{self._shown(candidates[fitting[0]].file)!r}"
                    )
                else:
                    found[fitting[0]][kind] = file
        return found

    def _refuse_empty_split(self, images: Images) -> None:
        counts = Counter(SPLITS[image.split] for image in images)
        if missing := [split for split in self._wanted if not counts[split]]:
            numbers = ", ".join(f"{split} {counts[split]}" for split in self._wanted)
            reasons = "".join(f"; {len(names)} files: {reason}" for reason, names in self._reasons.items())
            raise InputError(
                f"{self._where}: no image is in {missing[0]} ({numbers}); {self._key}.splits names or draws "
                f"the splits{reasons}"
            )


def _key(fields: Fields, names: Iterable[str]) -> Key:
    """What stands for these placeholders. Words for splits and classes may differ in capital letters."""
    values = ((name, composed(fields[name])) for name in names)
    return tuple(value.casefold() if name in ("split", "class") else value for name, value in values)


def _found(word: str, named: Mapping[str, str], own: Iterable[str]) -> str | None:
    """What a word of the user stands for: by the user's mapping, or because it is the project's own word."""
    words = {name.casefold(): name for name in own}
    words |= {composed(key).casefold(): name for key, name in named.items()}
    return words.get(composed(word).strip().casefold())


def _words(named: Mapping[str, str], own: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys((*named, *own)))


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def hashed(group: str) -> str:
    """A short hash, which stands for a group in names of images."""
    return hashlib.sha256(composed(group).encode("utf-8", "surrogateescape")).hexdigest()[:DIGITS]


def without_group(text: str, group: str) -> str:
    """A text with a hash in place of each word that is the group."""
    if not group:
        return text
    word = rf"(?<![^\W_]){re.escape(composed(group))}(?![^\W_])"
    found, count = re.subn(word, hashed(group), composed(text))
    return found if count else text


def describe(found: Found, layout: Layout | None) -> Iterator[str]:
    """The lines that say how many images a layout finds, by split and class, and what is known of groups."""
    if layout is None:
        return
    masks = " and ".join(KIND_WORDS[kind] for kind in layout.masks)
    yield f"{len(found.images)} images with {masks}, as the {layout.half} half:"
    counts = Counter((image.split, image.image_class) for image in found.images)
    for split, name in enumerate(SPLITS):
        if isinstance(layout, ExternalLayout) and name != "Test":
            continue
        classes = [f"{counts[split, i]} {label}" for i, label in enumerate(CLASSES) if counts[split, i]]
        yield f"  {name}: {', '.join(classes)}"
    if found.groups:
        where = (
            f"{found.groups.split} of them have images in several splits"
            if found.groups.split
            else "each has all of its images in one split"
        )
        yield f"{found.groups.number} groups: {where}"
    yield from found.notes
