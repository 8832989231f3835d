"""The document's findings as sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.comparison.document import (
    AgainstBaselines,
    Consistency,
    Document,
    ExperimentRecord,
    Lead,
    PrintedIou,
    PrintedMae,
    ScoreRow,
    Section,
)
from tasks.reporting.published import fault_words
from tasks.reporting.symptoms import symptom_words
from tasks.reporting.words import (
    IMAGE_SET_WORDS,
    formatted,
    listed,
    predictor_words,
    section_words,
    signed,
    signed_span,
)

ON_IMAGE_SET = {"covid": "the COVID-19 Test images", "all": "all Test images"}
METRIC_NAMES = {"iou": "IoU", "dice": "Dice", "mae": "MAE"}
NUMERALS = dict(enumerate(("Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten"), start=2))


def title(document: Document) -> str:
    kind = "synthetic chest X-rays" if document.phantoms else "chest X-rays"
    return f"{listed(_masks(document)).capitalize()} segmentation in {kind}"


def _masks(document: Document) -> list[str]:
    """The targets for which the dataset has masks."""
    return list(dict.fromkeys(section.target for section in document.predicted if section.has_masks))


def opening(document: Document) -> str:
    """What was trained, on what data, and how well the best experiment scores."""
    section = document.predicted[0]
    best = section.covid.experiments[0]
    count = len(document.experiments)
    what = "One network" if count == 1 else f"{NUMERALS.get(count, count)} networks"
    images = sorted({e.first.train_images for e in document.experiments})
    trained = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,} to {images[-1]:,}"
    kind = "synthetic phantoms" if document.phantoms else "chest X-rays from COVID-QU-Ex"
    were = "was" if count == 1 else "were"
    sentences = [
        f"{what} {were} trained on {trained} {kind} to segment {listed(_masks(document))}.",
        f"The best for {section_words(document, section)}, {best.name}, reaches {_iou_and_dice(best)} "
        f"on {best.images:,} COVID-19 Test images.",
    ]
    everywhere = section.image_set("all")
    if everywhere and everywhere.experiments and everywhere.experiments[0].name != best.name:
        other = everywhere.experiments[0]
        sentences.append(
            f"On all {other.images:,} Test images, controls included, the best is {other.name}, "
            f"with {_iou_and_dice(other)}."
        )
    return " ".join(sentences)


def _iou_and_dice(row: ScoreRow) -> str:
    return f"IoU {formatted(row.value('iou'))} and Dice {formatted(row.value('dice'))}"


@dataclass(frozen=True)
class SymptomSentence:
    text: str
    spoils: bool  # the kept network learned nothing, so its scores mean nothing


def on_trainings(document: Document) -> dict[str, list[SymptomSentence]]:
    """What went wrong in training, for each experiment that had a problem."""
    return {e.name: found for e in document.experiments if (found := _on_training(e))}


def _on_training(e: ExperimentRecord) -> list[SymptomSentence]:
    """The sentences name the seed if the experiment has several trainings."""
    return [
        SymptomSentence(
            f"Seed {training.seed}: {symptom_words(symptom)}"
            if len(e.trainings) > 1
            else symptom_words(symptom),
            symptom.spoils,
        )
        for training in e.trainings
        for symptom in training.symptoms
    ]


def on_printed(found: Consistency, phantoms: bool) -> list[str]:
    """What can be computed about the scores that the two reports printed."""
    on_iou = on_printed_iou(found.printed_iou, phantoms) if found.printed_iou else []
    return [*on_iou, *map(_on_printed_mae, found.printed_maes), *_on_printed_pairs(found)]


def _on_printed_pairs(found: Consistency) -> list[str]:
    final = [pair for pair in found.printed_pairs if pair.final]
    sentences = [f"{pair.where}: {fault_words(pair, pair.fault)}" for pair in final if pair.fault]
    if sentences and not found.finals_in_any_order:
        sentences.append(
            "No single set of predictions can produce such pairs. No other pairing of the "
            f"{2 * len(final)} scores is possible either, so swapped names do not explain them."
        )
    return sentences


def on_printed_iou(found: PrintedIou, phantoms: bool) -> list[str]:
    where = f"the {found.images:,} COVID-19 Test images"
    marking = f"Marking every pixel scores IoU {found.iou:.3f} on {where}"
    printed = found.printed_iou
    if phantoms:
        unlike = "but for real X-rays, so the two are not comparable"
        return [f"{marking}. Report 1 printed {printed} for both losses, {unlike}."]
    if not found.same:
        return [f"{marking}, which differs from the {printed} that report 1 printed for both losses."]
    return [
        f"{marking}. Report 1 printed {printed} for both losses, as a network that marks every pixel would.",
        f"The MAE of such a network would be {found.mae_255:.1f} on the 0–255 scale, not the printed "
        f"{found.printed_mae_255}.",
    ]


def _on_printed_mae(found: PrintedMae) -> str:
    return (
        "A mean absolute error cannot exceed the largest possible error of one pixel, "
        f"{found.bound:.0f} on the widest scale. The {found.mae_255:,.3f} printed as “{found.name}” "
        f"is {found.mae_255 / found.bound:,.0f} times that bound, so it is not a mean absolute error."
    )


def against_trivial(section: Section) -> list[str]:
    """Which experiments beat which trivial predictors on which metric."""
    return [
        f"On {ON_IMAGE_SET[image_set.name]}, {_verdict(_who(found), found.not_beaten)}"
        for image_set in section.image_sets
        for found in image_set.against_baselines
    ]


def _who(found: AgainstBaselines) -> Sequence[str]:
    names = found.experiments
    return [f"the {len(names)} experiments"] if found.everyone and len(names) > 2 else names


def _verdict(names: Sequence[str], not_beaten: Mapping[str, Sequence[str]]) -> str:
    """A sentence's end: the experiments beat each predictor on all metrics except the listed ones."""
    one = len(names) == 1 and not names[0].startswith("the ")
    unbeaten: dict[tuple[str, ...], list[str]] = {}
    for predictor, metrics in not_beaten.items():
        words = tuple(METRIC_NAMES[metric] for metric in metrics)
        unbeaten.setdefault(words, []).append(f"“{predictor_words(predictor)}”")
    beaten = unbeaten.pop((), [])
    parts = [f"{'beats' if one else 'beat'} {listed(beaten)} on IoU, Dice and MAE"] if beaten else []
    parts += [
        f"{'does' if one else 'do'} not beat {listed(predictors, 'or')} on {listed(metrics, 'or')}"
        for metrics, predictors in unbeaten.items()
    ]
    return f"{listed(names)} {('; it ' if one else '; they ').join(parts)}."


def on_the_lead(document: Document, section: Section) -> list[str]:
    """How the experiment with the highest IoU compares with the others on the COVID-19 Test images."""
    lead = section.covid.lead
    return [_on_the_lead(lead, _trainings(document, section))] if lead else []


def _on_the_lead(lead: Lead, trainings: str) -> str:
    parts = [f"is not significantly different from {listed(lead.level, 'or')}"] if lead.level else []
    if lead.nearest:
        count, nearest = len(lead.beaten), lead.nearest
        value, interval = signed(nearest.value), f"95 % CI {signed_span(nearest.interval)}"
        parts.append(
            f"beats {nearest.second} by {value} ({interval})"
            if count == 1
            else f"beats {count} others (the closest is {nearest.second}: {value}, {interval})"
        )
    where = f"{lead.images:,} {IMAGE_SET_WORDS['covid']}"
    return f"In IoU, {lead.best} {' and '.join(parts)}. Paired by image over {where}, {trainings}."


def _trainings(document: Document, section: Section) -> str:
    counts = sorted({len(document.experiment(name).trainings) for name in section.experiments})
    if counts == [1]:
        return "one training per experiment"
    return f"{' to '.join(str(count) for count in sorted({counts[0], counts[-1]}))} trainings per experiment"
