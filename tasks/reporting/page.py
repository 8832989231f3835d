"""Renders the page and its figures from the document and the archive of pictures."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from tasks.common.raw import SPLITS
from tasks.comparison.document import MOST_SPREADS, Document, ImageSet, Section
from tasks.reporting import charts as figures
from tasks.reporting import dataset as dataset_page
from tasks.reporting.clinical import detection_table, limits_table, size_table
from tasks.reporting.curves import loss_charts, reliability_charts, roc_chart, share_chart
from tasks.reporting.differences import (
    ComparedRow,
    GroupRows,
    Matrix,
    Steps,
    compared_rows,
    elsewhere,
    group_rows,
    matrix,
    on_external,
    steps,
)
from tasks.reporting.ensembles import ensemble_cards, folds_cards, on_folds
from tasks.reporting.findings import (
    REPORT_2_COLUMNS,
    against_trivial,
    broken_pairs,
    on_chosen,
    on_printed,
    on_training_variation,
    on_trainings,
    on_use,
    opening,
    printed_pairs,
    report_2_cells,
    title,
)
from tasks.reporting.gallery import (
    Gallery,
    SpreadCard,
    WorstCard,
    class_cases,
    figure_cases,
    spread_cards,
    worst_cards,
)
from tasks.reporting.limitations import RESEARCH_USE, limitations
from tasks.reporting.score_tables import (
    MAIN_COLUMNS,
    MORE_COLUMNS,
    NSD_TOLERANCE,
    OverviewRow,
    Table,
    overview,
    score_table,
    score_tiles,
)
from tasks.reporting.settings import NUMERIC_COLUMNS, published_rows, settings, versions
from tasks.reporting.words import (
    IMAGE_SET_NAMES,
    IMAGE_SET_WORDS,
    SELECTION_WORDS,
    formatted,
    section_words,
    val_words,
)

TEMPLATE = Path(__file__).parent / "report.html.j2"
FIGURES = Path(__file__).parent / "figures.svg.j2"


@cache
def _template(path: Path) -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"breakable": _breakable, "number": formatted}
    return environment.from_string(path.read_text(encoding="utf-8"))


def _breakable(name: str) -> Markup:
    """A name that may wrap after its underscores."""
    return Markup("_<wbr>").join(name.split("_"))


def render_figures(document: Document, pictures: Path) -> str:
    """The figures as a standalone SVG, for places that cannot show the page."""
    gallery = Gallery(pictures)
    cases = figure_cases(document, gallery)
    return _template(FIGURES).render(
        cases=cases, xrays=list(gallery.xrays.values()), note=_picture_note(document)
    )


def _picture_note(document: Document) -> str:
    return f"Synthetic phantoms. {RESEARCH_USE}" if document.phantoms else RESEARCH_USE


@dataclass(frozen=True)
class ImageSetView:
    """The tables of one set of Test images."""

    name: str
    words: str
    key: str  # part of the page's ids
    main: Table
    more: Table
    has_printed: bool
    images: int
    opened: bool  # whether the table is shown at once


@dataclass(frozen=True)
class ComparedView:
    """All comparisons by IoU on one set of Test images."""

    words: str
    key: str
    images: int
    groups: list[GroupRows]
    others: list[ComparedRow]  # each other experiment compared with the chosen one
    matrix: Matrix | None


@dataclass(frozen=True)
class SectionView:
    """What the page shows for one section."""

    words: str
    main_words: str  # of the main Test images
    main_name: str
    key: str  # part of the page's ids
    chosen: str
    selection: str
    val_words: str  # the images on which experiments are compared
    on_use: str
    on_chosen: list[str]
    overview: list[OverviewRow]
    against_trivial: list[str]
    image_sets: list[ImageSetView]
    compared: list[ComparedView]
    reliability: list[figures.Chart]
    published: list[tuple[object, tuple[str, ...]]]
    detection: Table | None
    roc: list[figures.Chart]
    limits: Table | None
    share: figures.Chart | None
    sizes: Table | None
    steps: Steps
    spreads: list[SpreadCard]
    worst: list[WorstCard]


def render_page(document: Document, pictures: Path) -> str:
    gallery = Gallery(pictures)
    main = document.predicted[0]
    differing, common = settings(document.experiments)
    trainings = on_trainings(document)
    # Built in page order, because X-rays are numbered as they are first used.
    of_figures = figure_cases(document, gallery)
    report_2 = document.report_2
    of_classes = class_cases(report_2.shown, gallery) if report_2 else []
    sections = [_section(document, section, gallery) for section in document.predicted]
    ensembles = ensemble_cards(document, gallery)
    leaks = dataset_page.leaks(document.dataset, gallery)
    page = _template(TEMPLATE).render(
        document=document,
        title=title(document),
        opening=opening(document),
        tiles=score_tiles(main),
        sections=sections,
        compared=[section for section in sections if section.compared or section.against_trivial],
        on_training_variation=on_training_variation(document),
        on_trainings=trainings,
        spoilt=[
            (name, symptom.text) for name, of_one in trainings.items() for symptom in of_one if symptom.spoils
        ],
        differing=differing,
        common=common,
        numeric=NUMERIC_COLUMNS,
        splits=SPLITS,
        count_rows=dataset_page.count_rows(document.dataset),
        has_published=dataset_page.has_published(document.dataset),
        on_dataset=dataset_page.findings(document.dataset),
        leaks=leaks,
        charts=loss_charts(document.experiments),
        nsd_tolerance=NSD_TOLERANCE,
        on_printed=on_printed(document.consistency, document.published),
        printed_pairs=printed_pairs(document.consistency),
        broken_pairs=broken_pairs(document.consistency.broken_pairs),
        report_2_columns=REPORT_2_COLUMNS,
        report_2_cells=report_2_cells,
        class_cases=of_classes,
        figure_cases=of_figures,
        figures=[section.figures for section in document.predicted if section.figures],
        xrays=list(gallery.xrays.values()),
        most_spreads=MOST_SPREADS,
        limitations=limitations(document),
        elsewhere=elsewhere(document),
        on_external=on_external(document),
        ensembles=ensembles,
        folded=folds_cards(document),
        on_folds=on_folds(document),
        research_use=RESEARCH_USE,
        devices=_devices(document),
        versions=versions(document),
        box=figures,
    )
    return _unbroken(page)


def _devices(document: Document) -> list[str]:
    return sorted({training.device for e in document.experiments for training in e.trainings})


def _section(document: Document, section: Section, gallery: Gallery) -> SectionView:
    key = section.target if len(document.halves) == 1 else f"{section.half}-{section.target}"
    choice = section.choice
    assert choice
    chosen_limits = next((found for found in section.limits if found.experiment == choice.chosen), None)
    return SectionView(
        words=section_words(document, section),
        main_words=IMAGE_SET_WORDS[section.main.name],
        main_name=IMAGE_SET_NAMES[section.main.name],
        key=key,
        chosen=choice.chosen,
        selection=SELECTION_WORDS[choice.selection],
        val_words=f"{choice.images:,} {val_words(document, section)}",
        on_use=on_use(document, section),
        on_chosen=on_chosen(section),
        overview=overview(document, section),
        against_trivial=against_trivial(section),
        image_sets=[_image_set(document, section, found, key) for found in section.image_sets],
        compared=list(_compared(document, section, key)),
        reliability=reliability_charts(section),
        published=list(published_rows(section)),
        detection=detection_table(section),
        roc=[roc_chart(found) for found in section.detection],
        limits=limits_table(section),
        share=share_chart(chosen_limits) if chosen_limits else None,
        sizes=size_table(section),
        steps=steps(document, section),
        spreads=spread_cards(section, gallery),
        worst=worst_cards(section, gallery),
    )


def _image_set(document: Document, section: Section, image_set: ImageSet, key: str) -> ImageSetView:
    main = score_table(document, section, image_set, MAIN_COLUMNS)
    return ImageSetView(
        name=image_set.name,
        words=IMAGE_SET_WORDS[image_set.name],
        key=f"{key}-{image_set.name}",
        main=main,
        more=score_table(document, section, image_set, MORE_COLUMNS),
        has_printed=any(row.kind == "printed" for row in main.rows),
        images=image_set.rows[0].images,
        opened=image_set.name in (section.main.name, "all"),
    )


def _compared(document: Document, section: Section, key: str) -> Iterator[ComparedView]:
    """The comparisons on each image set that has any."""
    assert section.choice
    chosen = section.choice.chosen
    for image_set in section.image_sets:
        family = image_set.family("iou")
        if family and len(section.experiments) > 1:
            others = [d.reversed for d in family.of(chosen, section.choice.scores)]
            yield ComparedView(
                words=IMAGE_SET_WORDS[image_set.name],
                key=f"{key}-{image_set.name}",
                images=family.images,
                groups=group_rows(document, section, family),
                others=compared_rows(others),
                matrix=matrix(family, section.experiments),
            )


def _unbroken(page: str) -> str:
    """Replace the hyphen of "COVID-19" so that it does not wrap, except in ids and code."""
    words = re.compile(r"(<code>.*?</code>)|(?<!/)COVID-19(?!/)", re.DOTALL)
    return words.sub(lambda found: found[1] or "COVID\N{NON-BREAKING HYPHEN}19", page)
