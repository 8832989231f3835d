"""Renders the page of a prediction run."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import jinja2

from tasks.bundles.card import score_words
from tasks.bundles.schema import Bundle
from tasks.prediction.folder import OVERLAYS, Record

TEMPLATE = Path(__file__).parent / "page.html.j2"


class Failure(NamedTuple):
    """A file that could not be predicted."""

    source: str
    reason: str
    sha256: str
    """Of its content; empty if that could not be read."""


class Shown(NamedTuple):
    """An image on the page."""

    name: str
    overlay: str | None
    words: str
    warnings: str


def render(bundle: Bundle, records: Sequence[Record], failed: Sequence[Failure]) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    shown = [_shown(record) for record in records]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        bundle=bundle,
        records=shown,
        failed=failed,
        unusual=sum(bool(one.warnings) for one in shown),
        scores=list(score_words(bundle)),
    )


def _shown(record: Record) -> Shown:
    overlay = next((quote(name) for name in record.files if name.startswith(f"{OVERLAYS}/")), None)
    return Shown(record.image, overlay, _words(record), str(record.row.get("warnings") or ""))


def _words(record: Record) -> str:
    row = record.row
    share, infection, lung = row.get("infected_share"), row.get("infection_pixels"), row.get("lung_pixels")
    size = f"{row['width']}×{row['height']} px"
    if infection == 0:
        return f"no infection marked, {size}"
    if isinstance(share, float):
        return f"{share:.1%} of the lung infected, {size}"
    if infection is not None:
        return f"{infection:,} pixels infected, {size}"
    return f"{lung:,} pixels of lung, {size}"
