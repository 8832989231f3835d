"""Renders the page and its figures from the document and the archive of pictures."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from tasks.common.raw import SPLITS
from tasks.comparison.document import MOST_SPREADS, Document, ImageSet, Section
from tasks.reporting import charts as figures
from tasks.reporting import dataset as dataset_page
from tasks.reporting.curves import loss_charts, reliability_charts, share_chart
from tasks.reporting.differences import LeadRow, Matrix, Steps, against_best, lead_rows, matrix, steps
from tasks.reporting.findings import (
    against_trivial,
    on_printed,
    on_the_lead,
    on_trainings,
    opening,
    title,
)
from tasks.reporting.gallery import Gallery, SpreadCard, class_cases, figure_cases, spread_cards
from tasks.reporting.published import REPORT_2_COLUMNS, broken_pairs, printed_pairs, report_2_cells
from tasks.reporting.score_tables import (
    MAIN_COLUMNS,
    NSD_TOLERANCE,
    POOLED_COLUMNS,
    IouBar,
    Table,
    iou_bars,
    score_table,
    score_tiles,
)
from tasks.reporting.settings import NUMERIC_COLUMNS, published_rows, settings
from tasks.reporting.words import IMAGE_SET_WORDS, formatted, section_words

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
    return _template(FIGURES).render(cases=cases, xrays=list(gallery.xrays.values()))


@dataclass(frozen=True)
class ImageSetView:
    """The tables of one set of Test images."""

    name: str
    words: str
    key: str  # part of the page's ids
    main: Table
    pooled: Table
    has_printed: bool
    best: str
    images: int  # number of images compared
    leads: list[LeadRow]
    matrix: Matrix | None


@dataclass(frozen=True)
class SectionView:
    """What the page shows for one section."""

    target: str
    words: str
    key: str  # part of the page's ids
    bars: list[IouBar]
    on_the_lead: list[str]
    against_trivial: list[str]
    image_sets: list[ImageSetView]
    reliability: list[figures.Chart]
    published: list[tuple[object, tuple[str, ...]]]
    steps: Steps
    spreads: list[SpreadCard]


def render_page(document: Document, pictures: Path) -> str:
    gallery = Gallery(pictures)
    main = document.predicted[0]
    differing, common = settings(document.experiments)
    trainings = on_trainings(document)
    # Built in page order, because X-rays are numbered as they are first used.
    leaks = dataset_page.leaks(document.dataset, gallery)
    report_2 = document.report_2
    of_classes = class_cases(report_2.shown, gallery) if report_2 else []
    of_figures = figure_cases(document, gallery)
    sections = [_section(document, section, gallery) for section in document.predicted]
    page = _template(TEMPLATE).render(
        document=document,
        title=title(document),
        lead=opening(document),
        best=main.covid.experiments[0].name,
        tiles=score_tiles(main.covid),
        sections=sections,
        compared=[section for section in sections if any(s.leads for s in section.image_sets)],
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
        shares=[
            (s.infected_share, share_chart(s.infected_share)) for s in document.predicted if s.infected_share
        ],
        one_training=min(len(e.trainings) for e in document.experiments) == 1,
        on_printed=on_printed(document.consistency, document.phantoms),
        printed_pairs=printed_pairs(document.consistency),
        broken_pairs=broken_pairs(document.consistency.broken_pairs),
        report_2_columns=REPORT_2_COLUMNS,
        report_2_cells=report_2_cells,
        class_cases=of_classes,
        figure_cases=of_figures,
        figures=[section.figures for section in document.predicted if section.figures],
        xrays=list(gallery.xrays.values()),
        most_spreads=MOST_SPREADS,
        box=figures,
    )
    return _unbroken(page)


def _section(document: Document, section: Section, gallery: Gallery) -> SectionView:
    key = section.target if len(document.halves) == 1 else f"{section.half}-{section.target}"
    return SectionView(
        target=section.target,
        words=section_words(document, section),
        key=key,
        bars=iou_bars(document, section),
        on_the_lead=on_the_lead(document, section),
        against_trivial=against_trivial(section),
        image_sets=[_image_set(document, section, found, key) for found in section.image_sets],
        reliability=reliability_charts(section),
        published=list(published_rows(section)),
        steps=steps(document, section),
        spreads=spread_cards(section, gallery),
    )


def _image_set(document: Document, section: Section, image_set: ImageSet, key: str) -> ImageSetView:
    found = against_best(image_set)
    return ImageSetView(
        name=image_set.name,
        words=IMAGE_SET_WORDS[image_set.name],
        key=f"{key}-{image_set.name}",
        main=score_table(document, section, image_set, MAIN_COLUMNS),
        pooled=score_table(document, section, image_set, POOLED_COLUMNS),
        has_printed=bool(section.printed) and image_set.name == "covid",
        best=image_set.experiments[0].name,
        images=found[0].images if found else 0,
        leads=lead_rows(found) if found else [],
        matrix=matrix(image_set),
    )


def _unbroken(page: str) -> str:
    """Replace the hyphen of "COVID-19" so that it does not wrap, except in ids and code."""
    words = re.compile(r"(<code>.*?</code>)|(?<!/)COVID-19(?!/)", re.DOTALL)
    return words.sub(lambda found: found[1] or "COVID\N{NON-BREAKING HYPHEN}19", page)
