"""The report's section on the dataset: what the audit found, with pictures of the pairs across splits."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pandas as pd

from tasks.common.raw import CLASSES
from tasks.reporting.charts import Picture
from tasks.reporting.gallery import Gallery
from tasks.reporting.inputs import Inputs
from tasks.reporting.words import formatted

#: Pairs of images that the page shows.
SHOWN = 20

ALL = "all"  # the sums in counts.csv


class Cell(NamedTuple):
    text: str
    notes: tuple[str, ...] = ()  # what differs from it


@dataclass(frozen=True)
class CountRow:
    label: str
    cells: tuple[Cell, ...]
    is_sum: bool


def count_rows(inputs: Inputs) -> list[CountRow]:
    """Usable images: a row a half and class, a column a split, with sums; last the published sum."""
    counts = inputs.audit.counts
    halves = list(dict.fromkeys(counts["half"]))
    rows = []
    for half in halves:
        for image_class in (*CLASSES, ALL):
            # The audit's rows are in the order of the splits, their sum last.
            of_class = counts[(counts["half"] == half) & (counts["class"] == image_class)]
            cells = [_cell(row) for _, row in of_class.iterrows()]
            if has_published(inputs):
                cells.append(Cell(formatted(of_class["published"].iloc[-1], 0)))
            label = image_class.capitalize() if image_class == ALL else image_class
            label = label if len(halves) == 1 else f"{label}, {half} half"
            rows.append(CountRow(label, tuple(cells), image_class == ALL))
    return rows


def has_published(inputs: Inputs) -> bool:
    return bool(inputs.audit.counts["published"].notna().any())


def _cell(row: "pd.Series[float]") -> Cell:
    notes = []
    if row["usable"] != row["images"]:
        notes.append(f"of {row['images']:,.0f} found")
    if pd.notna(row["published"]) and row["published"] != row["images"]:
        notes.append(f"{row['published']:,.0f} published")
    return Cell(f"{row['usable']:,.0f}", tuple(notes))


@dataclass(frozen=True)
class Leak:
    """Two images in different splits that are the same or nearly so."""

    splits: str
    touches_test: bool
    words: str
    pictures: tuple[Picture, Picture]


def leaks(inputs: Inputs, gallery: Gallery) -> list[Leak]:
    """The most alike first; at most `SHOWN`."""
    several_halves = inputs.audit.counts["half"].nunique() > 1
    pairs = inputs.audit.leaking[:SHOWN]
    return [_leak(pair, gallery, several_halves) for _, pair in pairs.iterrows()]


def _leak(pair: "pd.Series[Any]", gallery: Gallery, several_halves: bool) -> Leak:
    first, second = str(pair["first"]), str(pair["second"])
    splits = [image_id.split("/")[1] for image_id in (first, second)]
    return Leak(
        splits=" and ".join(splits),
        touches_test="Test" in splits,
        words="the same, pixel for pixel" if pair["exact"] else f"correlation {pair['correlation']:.4f}",
        pictures=(_picture(first, gallery, several_halves), _picture(second, gallery, several_halves)),
    )


def _picture(image_id: str, gallery: Gallery, several_halves: bool) -> Picture:
    half, split, image_class, name = image_id.split("/")
    note = f"{split}, {image_class}" + (f", {half} half" if several_halves else "")
    return replace(gallery.xray(image_id), caption=name, note=note)


def findings(inputs: Inputs) -> list[str]:
    """What the audit says of the dataset, in sentences."""
    figures = inputs.audit.figures
    on_dropped = [] if inputs.audit.leaking.empty else [_on_dropped(inputs)]
    return [_on_leaks(inputs), *_on_other_pairs(figures), *on_dropped]


def _on_leaks(inputs: Inputs) -> str:
    figures, least = inputs.audit.figures, inputs.audit.params["correlation"]
    exact, near = figures["exact_pairs_across_splits"], figures["near_pairs_across_splits"]
    if not exact + near:
        return f"No image has a twin in another split, nor one that correlates by {least:g} or more with it."
    touched = figures["test_images_touched"]
    on_test = "No Test image is among them."
    if touched:
        verb = "is" if touched == 1 else "are"
        flattered = "" if _drops(inputs) else " and may score better than a new one would"
        on_test = f"{_some(touched, 'Test image')} {verb} among them{flattered}."
    return (
        f"{_some(exact + near, 'pair')} of images in different splits: {exact:,} the same pixel for pixel, "
        f"{near:,} of a correlation of {least:g} or more at 32x32 pixels. {on_test}"
    )


def _on_other_pairs(figures: dict[str, int]) -> list[str]:
    within, halves = figures["pairs_within_splits"], figures["pairs_across_halves"]
    said = [f"{_some(within, 'such pair')} within a split, where nothing leaks."] if within else []
    if halves:
        said.append(
            f"{_some(halves, 'such pair')} across the two halves and in one split, "
            "as the infection half is made of images of the lung half."
        )
    return said


def _on_dropped(inputs: Inputs) -> str:
    if not _drops(inputs):
        return "Nothing is left out of training for that: audit.duplicates is report, not drop."
    dropped = _some(len(inputs.audit.dropped), "image")
    return f"{dropped} left out of training and validation: audit.duplicates is drop."


def _drops(inputs: Inputs) -> bool:
    return bool(inputs.audit.params["duplicates"] == "drop")


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
