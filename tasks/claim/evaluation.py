"""Items on evaluation: how networks were scored, and with what result."""

from collections.abc import Iterator

from tasks.claim.answer import Answer
from tasks.comparison.document import Document, ImageSet, Score, Section
from tasks.reporting.differences import on_external
from tasks.reporting.findings import on_training_variation
from tasks.reporting.score_tables import MAIN_COLUMNS, MORE_COLUMNS, fault_words
from tasks.reporting.words import (
    IMAGE_SET_NAMES,
    IMAGE_SET_WORDS,
    SELECTION_WORDS,
    formatted,
    listed,
    networks_word,
    percentage,
    section_words,
    signed,
    val_words,
    with_span,
)

COLUMNS = MAIN_COLUMNS | MORE_COLUMNS


def metrics(document: Document) -> Answer:
    found = {
        metric
        for section in document.predicted
        for image_set in section.image_sets
        for row in image_set.experiments
        for metric in row.scores
    }
    names = "; ".join(column.heading for metric, column in COLUMNS.items() if metric in found)
    section = document.predicted[0]
    assert section.choice
    published = "; ".join(dict.fromkeys(p.source for s in document.predicted for p in s.published))
    others = f" Published results beside them: {published}." if published else ""
    return Answer(
        f"{names}. Computed for each image and then averaged, unless pooled; index.html defines each, after "
        "Metrics Reloaded (Maier-Hein et al. 2024, doi 10.1038/s41592-023-02151-z). Experiments are "
        f"compared by their {SELECTION_WORDS[section.choice.selection]} on Val.{others}"
    )


def statistics(document: Document) -> Answer:
    family = document.predicted[0].main.family("iou")
    pairs = (
        f" For IoU, {len(family.differences)} pairs of experiments and trivial predictors, on "
        f"{family.images:,} images."
        if family
        else ""
    )
    return Answer(
        f"Scores and differences have 95% confidence intervals. {on_training_variation(document)} Images "
        "count as independent. Means: studentised bootstrap over images within classes (Hall 1988, doi "
        "10.1214/aos/1176350933). Shares of images: Wilson. Areas under ROC curves: DeLong. Differences: "
        "paired by image; significant if the interval excludes zero. The intervals of all pairs of one "
        "metric on one set of images are simultaneous (Romano and Wolf 2005, doi "
        f"10.1198/016214504000000539); several metrics or sets are not adjusted for.{pairs}"
    )


def robustness(document: Document) -> Answer:
    said = [sentence for section in document.predicted for sentence in _varied(document, section)]
    return Answer(" ".join(said), "How scores change with noise, exposure, view or scanner.")


def _varied(document: Document, section: Section) -> Iterator[str]:
    chosen, what = _chosen(section), section_words(document, section)
    spread = section.main.row(chosen).scores["iou"].seed_sd
    if spread is not None:
        e = document.experiment(chosen)
        yield (
            f"{what.capitalize()}: over {len(e.trainings)} {networks_word(e)}, the IoU of {chosen} has a "
            f"standard deviation of {spread:.3f}."
        )
    if section.sizes:
        few, many = (
            next(row for row in group.rows if row.name == chosen).scores["iou"]
            for group in (section.sizes[0], section.sizes[-1])
        )
        yield (
            f"{what.capitalize()}: in the quarter of the images with the smallest reference masks, {chosen} "
            f"has IoU {with_span(few)}; in that with the largest, {with_span(many)}."
        )
    if any(step.experiment == chosen for step in section.steps):
        yield f"{what.capitalize()}: index.html has the effect of each step of post-processing of {chosen}."


def explainability(_document: Document) -> Answer:
    return Answer(
        inapplicable="No method was applied. The output is a mask: it shows what networks mark, not why."
    )


def internal(document: Document) -> Answer:
    said = [sentence for section in document.predicted for sentence in _on_val_and_test(document, section)]
    return Answer(f"{' '.join(said)} On training images, only losses are known, see index.html.")


def _on_val_and_test(document: Document, section: Section) -> Iterator[str]:
    chosen, name = _chosen(section), section.main.name
    on_test = section.main.row(chosen)
    test = f"{with_span(on_test.scores['iou'])} on {on_test.images:,} {IMAGE_SET_WORDS[name]}"
    on_val = next((found.row(chosen) for found in section.val if found.name == name), None)
    val = (
        f", and {with_span(on_val.scores['iou'])} on {on_val.images:,} {val_words(document, section)} of "
        "the same classes"
        if on_val
        else ""
    )
    yield f"{section_words(document, section).capitalize()}: {chosen} has IoU {test}{val}."


def external(document: Document) -> Answer:
    if document.external:
        return Answer(" ".join(on_external(document)))
    if document.phantoms:
        return Answer(
            inapplicable="The images are synthetic. Scores on them support no conclusion about patients."
        )
    return Answer(
        missing="A test on images of another hospital, or why there is none. `external` in params.yaml adds "
        "one to this report."
    )


def scores(document: Document) -> Answer:
    said = [sentence for section in document.predicted for sentence in _scores(document, section)]
    return Answer(f"{' '.join(said)} Table 3 has all experiments.")


def _scores(document: Document, section: Section) -> Iterator[str]:
    chosen = _chosen(section)
    sets = "; ".join(_on_images(image_set, chosen) for image_set in section.image_sets)
    fault = fault_words(document, section, chosen)
    name = f"{chosen} ({fault})" if fault else chosen
    yield f"{section_words(document, section).capitalize()}, {name}, {sets}."


def _on_images(image_set: ImageSet, chosen: str) -> str:
    row = image_set.row(chosen)
    shown = {"iou": "IoU", "dice": "Dice", "balanced": "balanced score"}
    words = [
        f"{label} {with_span(row.scores[metric])}" for metric, label in shown.items() if metric in row.scores
    ]
    rate = row.scores.get("false_positive_rate")
    if rate and rate.images in (None, row.images):  # and not of a part of these images
        words.append(f"falsely marked {_rate(rate)}")
    return f"{IMAGE_SET_WORDS[image_set.name]} ({row.images:,}): {listed(words)}"


def diagnosis(document: Document) -> Answer:
    said = [sentence for section in document.predicted for sentence in _diagnosis(document, section)]
    if not said:
        return Answer(inapplicable="No experiment tells images with an infection from images without one.")
    return Answer(" ".join(said))


def _diagnosis(document: Document, section: Section) -> Iterator[str]:
    chosen = _chosen(section)
    what = section_words(document, section).capitalize()
    found = next((found for found in section.detection if found.experiment == chosen), None)
    if found:
        against = [
            f"specificity on {IMAGE_SET_WORDS[name]} {_rate(rate)}"
            for name, rate in found.specificity.items()
        ]
        areas = [
            f"area under the ROC curve against {IMAGE_SET_NAMES[curve.image_set]} {with_span(curve.area)}"
            for curve in found.curves
        ]
        yield (
            f"{what}, {chosen}. An image counts as positive if any pixel is marked. Sensitivity on "
            f"{IMAGE_SET_WORDS['covid']} {_rate(found.sensitivity)}; {'; '.join([*against, *areas])}."
        )
    agreed = next((found for found in section.limits if found.experiment == chosen), None)
    if agreed:
        yield (
            f"Infected share of the lung, predicted minus reference, on {agreed.images:,} images: bias "
            f"{signed(agreed.bias.value)}, limits of agreement {signed(agreed.lower.value)} to "
            f"{signed(agreed.upper.value)} (Bland and Altman)."
        )


def _rate(score: Score) -> str:
    return with_span(score, percentage)


def failures(document: Document) -> Answer:
    said = [sentence for section in document.predicted for sentence in _failures(document, section)]
    return Answer(" ".join(said), "A reader's account of these images: what was marked wrongly, and why.")


def _failures(document: Document, section: Section) -> Iterator[str]:
    chosen = _chosen(section)
    words = f"{section_words(document, section).capitalize()}, {chosen}"
    row = section.main.row(chosen)
    if missed := row.scores.get("missed"):
        yield f"{words}: nothing is marked in {_rate(missed)} of the images with a reference mask."
    spread = next((found for found in section.spreads if found.experiment == chosen), None)
    if spread:
        yield (
            f"Of {spread.images:,} {IMAGE_SET_WORDS[section.main.name]}, "
            f"{percentage(spread.share_below_half)} have an IoU below 0.5 and {spread.zeros:,} an IoU of 0; "
            f"the median is {formatted(spread.median)}."
        )
    cases = [found for found in section.worst if found.experiment == chosen and found.shown]
    if cases:
        shown = listed([f"{len(found.shown)} {found.image_class}" for found in cases])
        yield f"index.html shows the worst images of each class: {shown}."


def _chosen(section: Section) -> str:
    assert section.choice
    return section.choice.chosen
