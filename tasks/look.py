"""Look at the source of the dataset without fetching it: is anything new there since data/raw was made?"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tasks.download import how_to_accept
from tasks.settings.schema import load_params
from tasks.sources.listing import find_images, fingerprint, list_files, open_earlier
from tasks.sources.open import open_source
from tasks.support.cli import without_secrets


class News(NamedTuple):
    """What a source holds, beside an earlier dataset."""

    fingerprint: str | None
    """What `data.fingerprint` would pin it by; None for a source that never changes."""
    total: int
    """How many files of the dataset it holds."""
    new: int
    changed: int
    gone: int
    known: bool
    """Whether there was a whole earlier dataset to compare with; where not, every file is new."""

    @property
    def differs(self) -> bool:
        """Whether a download would give something else than the earlier dataset."""
        return self.new + self.changed + self.gone > 0

    @property
    def text(self) -> str:
        if self.fingerprint is None:
            return f"never changes: {self.total} files"
        if not self.known:
            return f"{self.total} files, and no earlier dataset to compare them with"
        if not self.differs:
            return f"unchanged: {self.total} files"
        return f"{self.new} new, {self.changed} changed and {self.gone} gone of {self.total} files"


def look(source: str, relative_to: Path, raw: Path | None) -> News:
    """List the source and compare it with an earlier `data/raw`, if that is there.

    Of a zip this reads the directory alone, of a bucket its listing, of a folder every file. What a bucket
    holds under an ETag that is no MD5 counts as changed.

    Args:
        source: `data.source` of params.yaml.
        relative_to: the folder that a relative path counts from.
        raw: an earlier dataset; one that is missing or damaged counts as none.

    Raises:
        InputError: there is no such source, or it holds no files of the dataset.
        OSError: a file can't be read, or what is far away can't be reached.
    """
    files = open_source(source, relative_to)
    images = find_images(files, without_secrets(source))
    listing = list_files(files, images)
    earlier = open_earlier(raw)
    if listing is None:
        total = sum(len(kinds) for kinds in images.values())
        return News(None, total, new=0, changed=0, gone=0, known=earlier is not None)
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
    )


def describe(params: Path, raw: Path) -> Iterator[str]:
    """What `cxr data look` prints: what differs from data/raw, and which fingerprint would pin it.

    A relative path in `data.source` counts from the folder of params.yaml.
    """
    data = load_params(params).data
    news = look(data.source, params.parent, raw)
    yield f"{without_secrets(data.source)}: {news.text}"
    if news.fingerprint:
        yield f"fingerprint {news.fingerprint}, {_pin(news.fingerprint, data.fingerprint)}"


def _pin(found: str, pinned: str | None) -> str:
    if found == pinned:
        return "as data.fingerprint pins it"
    there = f"data.fingerprint pins {pinned}" if pinned else "nothing is pinned"
    return f"{there}; to accept what is there now: {how_to_accept(found)}"
