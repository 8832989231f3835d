"""The report's section on the dataset: the audit's findings, with pictures of duplicates across splits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from tasks.common.raw import CLASSES
from tasks.comparison.document import AlikePair, ClassCount, Dataset
from tasks.reporting.charts import Picture
from tasks.reporting.gallery import Gallery
from tasks.reporting.words import formatted

ALL = "all"  # name of the totals among the counts
MASK_FAULTS = (
    "controls_with_infection",
    "covid_without_infection",
    "empty_lung_masks",
    "infection_outside_lung",
)


class CountCell(NamedTuple):
    text: str
    notes: tuple[str, ...] = ()  # counts that differ from the text


@dataclass(frozen=True)
class CountRow:
    label: str
    cells: tuple[CountCell, ...]
    is_sum: bool


def count_rows(dataset: Dataset) -> list[CountRow]:
    """Usable images: a row per half and class; columns for each split, the total and the published total."""
    halves = list(dict.fromkeys(count.half for count in dataset.counts))
    rows = []
    for half in halves:
        for image_class in (*CLASSES, ALL):
            # The audit lists the rows in the order of the splits, with the total last.
            of_class = [c for c in dataset.counts if (c.half, c.image_class) == (half, image_class)]
            label = image_class.capitalize() if image_class == ALL else image_class
            label = label if len(halves) == 1 else f"{label}, {half} half"
            rows.append(CountRow(label, _cells(of_class, has_published(dataset)), image_class == ALL))
    return rows


def has_published(dataset: Dataset) -> bool:
    return any(count.published is not None for count in dataset.counts)


def _cells(of_class: Sequence[ClassCount], published: bool) -> tuple[CountCell, ...]:
    cells = [_cell(count) for count in of_class]
    return (*cells, CountCell(formatted(of_class[-1].published, 0))) if published else tuple(cells)


def _cell(count: ClassCount) -> CountCell:
    notes = []
    if count.usable != count.images:
        notes.append(f"of {count.images:,} found")
    if count.published is not None and count.published != count.images:
        notes.append(f"{count.published:,} published")
    return CountCell(f"{count.usable:,}", tuple(notes))


@dataclass(frozen=True)
class Leak:
    """Two duplicate or near-duplicate images in different splits."""

    splits: str
    touches_test: bool
    words: str
    pictures: tuple[Picture, Picture]


def leaks(dataset: Dataset, gallery: Gallery) -> list[Leak]:
    """The most similar pairs first."""
    several_halves = _has_several_halves(dataset)
    return [_leak(pair, gallery, several_halves) for pair in dataset.shown_pairs]


def _has_several_halves(dataset: Dataset) -> bool:
    return len({count.half for count in dataset.counts}) > 1


def _leak(pair: AlikePair, gallery: Gallery, several_halves: bool) -> Leak:
    splits = [image_id.split("/")[1] for image_id in (pair.first, pair.second)]
    return Leak(
        splits=" and ".join(splits),
        touches_test="Test" in splits,
        words="identical, pixel for pixel" if pair.exact else f"correlation {pair.correlation:.4f}",
        pictures=(
            _picture(pair.first, gallery, several_halves),
            _picture(pair.second, gallery, several_halves),
        ),
    )


def _picture(image_id: str, gallery: Gallery, several_halves: bool) -> Picture:
    half, split, image_class, name = image_id.split("/")
    note = f"{split}, {image_class}" + (f", {half} half" if several_halves else "")
    return replace(gallery.xray(image_id), caption=name, note=note)


def findings(dataset: Dataset) -> list[str]:
    """The audit's findings on the dataset, one sentence each."""
    on_dropped = [_on_dropped(dataset)] if dataset.pairs_across_splits else []
    return [
        on_leaks(dataset),
        *_on_groups(dataset),
        *_on_other_pairs(dataset.audit),
        *on_dropped,
        *_on_missing_masks(dataset),
        _on_masks(dataset),
        *_on_unusual(dataset.audit),
    ]


def on_leaks(dataset: Dataset) -> str:
    """How many images in different splits are duplicates or near-duplicates."""
    figures, least = dataset.audit, dataset.correlation
    exact, near = figures["exact_pairs_across_splits"], figures["near_pairs_across_splits"]
    place = "different splits of one half" if _has_several_halves(dataset) else "different splits"
    if not exact + near:
        return (
            f"No duplicate or near-duplicate images in {place} "
            f"(correlation of {least:g} or more at 32x32 pixels)."
        )
    touched = figures["test_images_touched"]
    on_test = "They include no Test image."
    if touched:
        flattered = "" if dataset.drops_duplicates else ", which may score better than new images would"
        on_test = f"They include {_some(touched, 'Test image')}{flattered}."
    return (
        f"{_some(exact + near, 'pair')} of duplicate or near-duplicate images in {place}: "
        f"{exact:,} identical pixel for pixel, {near:,} with a correlation of {least:g} or more at 32x32 "
        f"pixels. {on_test}"
    )


def _on_groups(dataset: Dataset) -> list[str]:
    groups = dataset.groups
    if not groups:
        return []
    number = _some(groups.number, "group")
    if groups.split:
        return [
            f"The images belong to {number}, such as patients. {groups.split:,} of them have images in "
            "several splits, so Test images may resemble training images."
        ]
    return [
        f"The images belong to {number}, such as patients, and each group is in one split. Pairs across "
        "splits are of different groups."
    ]


def _on_missing_masks(dataset: Dataset) -> list[str]:
    missing = [kind for kind in ("lung", "infection") if kind not in dataset.masks]
    unknown = {
        "lung": "their area, the brightness of the lungs, and the infected share of the lung are unknown",
        "infection": "nothing is known of infection",
    }
    return [f"There are no {kind} masks: {unknown[kind]}." for kind in missing]


def _on_other_pairs(figures: dict[str, int]) -> list[str]:
    within, halves = figures["pairs_within_splits"], figures["pairs_across_halves"]
    alike = "duplicate or near-duplicate pair"
    sentences = (
        [f"{_some(within, alike)} within a split, which cannot leak between splits."] if within else []
    )
    if halves:
        sentences.append(
            f"{_some(halves, alike)} across the two halves. They are no leak: each network is trained and "
            "tested on images of one half."
        )
    return sentences


def _on_masks(dataset: Dataset) -> str:
    figures = {**dict.fromkeys(MASK_FAULTS, 0), **dataset.audit}  # those that cannot be known are missing
    found = _listed(
        (figures["controls_with_infection"], "control with infection", "controls with infection"),
        (figures["covid_without_infection"], "COVID-19 image without", "COVID-19 images without"),
        (figures["empty_lung_masks"], "empty lung mask", "empty lung masks"),
        (
            figures["infection_outside_lung"],
            "image with more than 1% of its infection outside the lungs",
            "images with more than 1% of their infection outside the lungs",
        ),
    )
    if found:
        return f"Masks that contradict the classes or each other: {found}."
    if "infection" not in dataset.masks:
        return "No lung mask is empty."
    if "lung" not in dataset.masks:
        return "The masks agree with the classes: all COVID-19 images and no controls have infection."
    return (
        "The masks agree with the classes: all COVID-19 images and no controls have infection. No lung mask "
        "is empty, and at most 1% of any infection lies outside the lungs."
    )


def _on_unusual(figures: dict[str, int]) -> list[str]:
    found = _listed(
        (
            figures.get("bright_lungs", 0),
            "X-ray with lungs brighter than the rest of the chest",
            "X-rays with lungs brighter than the rest of the chest",
        ),
        (figures.get("unusual_lung_areas", 0), "lung mask of unusual area", "lung masks of unusual area"),
    )
    return [f"Images to look at: {found}."] if found else []


def _listed(*found: tuple[int, str, str]) -> str:
    """The counts that are not 0, each with its noun in the singular or plural."""
    return ", ".join(f"{count:,} {one if count == 1 else several}" for count, one, several in found if count)


def _on_dropped(dataset: Dataset) -> str:
    if not dataset.drops_duplicates:
        return "No image is dropped from training for this reason: audit.duplicates is report, not drop."
    dropped = _some(dataset.audit["dropped"], "image")
    return f"{dropped} dropped from training and validation: audit.duplicates is drop."


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
