"""Compares the source of the dataset with data/raw without downloading it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tasks.settings.data import DataSource
from tasks.settings.layout import Layout
from tasks.settings.params import load_data, load_external
from tasks.sources.layout import LeftOut, describe_left_out
from tasks.sources.listing import fingerprint, list_files, open_earlier
from tasks.sources.open import how_to_accept, open_source, section_of
from tasks.sources.own import describe as describe_found
from tasks.sources.own import find
from tasks.support.cli import without_secrets


class News(NamedTuple):
    """The files of a source, compared with an earlier dataset."""

    fingerprint: str | None
    """The value of `data.fingerprint` that pins these files; None for a source that never changes."""
    total: int
    """Number of dataset files in the source."""
    new: int
    changed: int
    gone: int
    known: bool
    """Whether there was a complete earlier dataset to compare with; if not, every file counts as new."""
    left_out: list[LeftOut]
    """The files of the source that are not in the layout."""
    counts: tuple[str, ...] = ()
    """Lines that say what a layout of one's own finds, by split and class."""

    @property
    def differs(self) -> bool:
        """Whether a download would differ from the earlier dataset."""
        return self.new + self.changed + self.gone > 0

    @property
    def text(self) -> str:
        if self.fingerprint is None:
            return f"never changes: {self.total} files"
        if not self.known:
            return f"{self.total} files; there is no earlier dataset to compare with"
        if not self.differs:
            return f"unchanged: {self.total} files"
        return f"{self.new} new, {self.changed} changed and {self.gone} removed of {self.total} files"


def look(
    source: str,
    relative_to: Path,
    raw: Path | None,
    layout: Layout | None = None,
    external: str | None = None,
) -> News:
    """List the source and compare it with an earlier `data/raw`, if there is one.

    For a zip file this reads only its directory, for a bucket its listing, for a folder every file. A file
    in a bucket whose ETag is not an MD5 counts as changed.

    Args:
        source: `data.source` of params.yaml.
        relative_to: the folder to which a relative path refers.
        raw: an earlier dataset; a missing or damaged one is ignored.
        layout: `data.layout` of params.yaml.
        external: the name of the external dataset, if it is one.

    Raises:
        InputError: the source does not exist, or contains no files of the dataset.
        OSError: a file cannot be read, or a remote source cannot be reached.
    """
    files = open_source(source, relative_to, own_layout=layout is not None, section=section_of(external))
    found = find(files, without_secrets(source), layout, external)
    images, others, lines = found.images, found.left_out, tuple(describe_found(found, layout))
    listing = list_files(files, images)
    earlier = open_earlier(raw)
    if listing is None:
        total = sum(len(kinds) for kinds in images.values())
        return News(
            None, total, new=0, changed=0, gone=0, known=earlier is not None, left_out=others, counts=lines
        )
    before = earlier.listing if earlier else {}
    changed = (
        sum(not earlier.holds(place, listing[place]) for place in listing if place in before)
        if earlier
        else 0
    )
    return News(
        fingerprint(listing),
        len(listing),
        new=len(listing.keys() - before.keys()),
        changed=changed,
        gone=len(before.keys() - listing.keys()),
        known=earlier is not None,
        left_out=others,
        counts=lines,
    )


def describe(params: Path, raw: Path, external: str | None = None) -> Iterator[str]:
    """The output lines of `cxr data look`: differences from data/raw, files that are not in the layout,
    what a layout of one's own finds, and the fingerprint of the source.

    A relative path in `data.source` refers to the folder of params.yaml. `external` names an external dataset
    to look at instead of the main one.
    """
    data: DataSource = load_external(params, external) if external else load_data(params)
    news = look(data.source, params.parent, raw, data.layout, external)
    where = without_secrets(data.source)
    yield f"{where}: {news.text}"
    yield from describe_left_out(news.left_out, where)
    yield from news.counts
    if news.fingerprint:
        pin = _pin(news.fingerprint, data.fingerprint, section_of(external))
        yield f"fingerprint {news.fingerprint}, {pin}"


def _pin(found: str, pinned: str | None, section: str) -> str:
    if found == pinned:
        return f"as pinned by {section}.fingerprint"
    there = f"{section}.fingerprint pins {pinned}" if pinned else f"{section}.fingerprint is not set"
    return f"{there}; to accept the current files, run: {how_to_accept(found, section)}"
