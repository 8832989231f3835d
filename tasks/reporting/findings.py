"""The document's findings as sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.comparison.document import (
    AgainstBaselines,
    Consistency,
    Document,
    ExperimentRecord,
    Fault,
    OwnPair,
    PrintedIou,
    PrintedMae,
    PrintedPair,
    Report2Scores,
    Section,
)
from tasks.reporting.words import (
    IMAGE_SET_NAMES,
    IMAGE_SET_WORDS,
    SELECTION_WORDS,
    formatted,
    listed,
    percentage,
    predictor_words,
    row_words,
    section_words,
    val_words,
    with_span,
)
from tasks.support.symptoms import AnySymptom, DeadEpochs, DivergedEpochs, NonFiniteLoss, pixel_words

METRIC_NAMES = {"iou": "IoU", "dice": "Dice", "mae": "MAE"}
NUMERALS = dict(enumerate(("Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten"), start=2))


def title(document: Document) -> str:
    kind = "synthetic chest X-rays" if document.phantoms else "chest X-rays"
    return f"{listed(_masks(document)).capitalize()} segmentation in {kind}"


def _masks(document: Document) -> list[str]:
    """The targets that are predicted."""
    return list(dict.fromkeys(section.target for section in document.predicted))


def opening(document: Document) -> list[str]:
    """Which network to use, how good it is, and how sure that is."""
    section = document.predicted[0]
    assert section.choice
    return [
        _what_was_trained(document),
        on_use(document, section),
        _how_good(section, section.choice.chosen),
    ]


def _what_was_trained(document: Document) -> str:
    count = sum(len(e.trainings) for e in document.experiments)
    what = "One network was" if count == 1 else f"{NUMERALS.get(count, count)} networks were"
    images = sorted({e.first.train_images for e in document.experiments})
    trained = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,} to {images[-1]:,}"
    kind = "synthetic phantoms" if document.phantoms else "chest X-rays"
    kind += " from COVID-QU-Ex" if document.published else ""
    return f"{what} trained on {trained} {kind} to segment {listed(_masks(document))}."


def on_use(document: Document, section: Section) -> str:
    """Which experiment to use for a target, why, and how sure that is."""
    assert section.choice
    return (
        f"For {section_words(document, section)}, use {section.choice.chosen}. {on_choice(document, section)}"
    )


def on_choice(document: Document, section: Section) -> str:
    """Why this experiment was chosen, and how sure the choice is."""
    choice = section.choice
    assert choice
    words, score = SELECTION_WORDS[choice.selection], choice.scores[choice.chosen]
    images = f"{choice.images:,} {val_words(document, section)}"
    if len(choice.scores) == 1:
        return f"Its {words} on {images} is {with_span(score)}."
    best = f"Its {words} on {images}, {with_span(score)}, is the highest"
    parts = []
    if choice.beaten:
        parts.append(f"beats {_named(choice.beaten)}")
    if choice.level:
        parts.append(f"is not significantly higher than that of {_named(choice.level, 'or')}")
    return f"{best}; it {', but '.join(parts)}."


def _named(names: Sequence[str], last: str = "and") -> str:
    """Up to three names, or their number."""
    return listed(names, last) if len(names) <= 3 else f"{len(names)} other experiments"


def _how_good(section: Section, chosen: str) -> str:
    row = section.main.row(chosen)
    where = f"{row.images:,} {IMAGE_SET_WORDS[section.main.name]}"
    sentence = (
        f"On {where} it reaches IoU {with_span(row.scores['iou'])} and Dice {with_span(row.scores['dice'])}"
    )
    controls = section.image_set("controls")
    rate = controls and controls.row(chosen).scores.get("false_positive_rate")
    if not controls or not rate:
        return f"{sentence}."
    images = rate.images or controls.row(chosen).images
    return f"{sentence}. It marks something on {with_span(rate, percentage)} of {images:,} control images."


def on_training_variation(document: Document) -> str:
    """What the intervals say about another training with the same settings."""
    family = document.predicted[0].main.family("iou")
    if family and family.covers_training:
        return (
            "They include the variation between trainings: the variance between seeds is pooled over the "
            "experiments with several seeds, and applied to those with one."
            + (" The networks of a cross-validation count as seeds." if document.cross_validations else "")
        )
    return (
        "No experiment has several seeds, so they do not include the variation between trainings: with "
        "another seed, a small difference may change its sign."
    )


@dataclass(frozen=True)
class SymptomSentence:
    text: str
    spoils: bool  # the kept network learned nothing, so its scores mean nothing


def on_trainings(document: Document) -> dict[str, list[SymptomSentence]]:
    """What went wrong in training, for each experiment that had a problem."""
    found = {e.name: _on_training(e, document.useless_masks(e.name)) for e in document.experiments}
    return {name: sentences for name, sentences in found.items() if sentences}


def _on_training(e: ExperimentRecord, useless: set[str]) -> list[SymptomSentence]:
    """The sentences name the seed or the fold if the experiment has several trainings."""
    found = []
    for number, training in enumerate(e.trainings):
        which = f"Fold {number}" if e.folds > 1 else f"Seed {training.seed}"
        seed = f"{which}: " if len(e.trainings) > 1 else ""
        for symptom in training.symptoms:
            if isinstance(symptom, DeadEpochs) and symptom.spoils and not symptom.concerns(useless):
                found.append(SymptomSentence(seed + _dead_at_a_half(symptom), spoils=False))
            else:
                found.append(SymptomSentence(seed + symptom_words(symptom), symptom.spoils))
    return found


def _dead_at_a_half(s: DeadEpochs) -> str:
    """History is recorded at a threshold of 0.5; the scores are at the one that was chosen on Val."""
    return (
        f"At a threshold of 0.5, the kept epoch, {s.kept_epoch}, marks {pixel_words(s.marks, s.targets)}. "
        "The threshold chosen on Val corrects this: the scores are valid, but the probabilities are poorly "
        "calibrated."
    )


def symptom_words(symptom: AnySymptom) -> str:
    match symptom:
        case DeadEpochs():
            return _dead(symptom)
        case DivergedEpochs():
            return _diverged(symptom)
        case NonFiniteLoss():
            return _non_finite(symptom)


def _dead(s: DeadEpochs) -> str:
    epochs, pixels, kept = f"{s.first_epoch} to {s.last_epoch}", pixel_words(s.marks, s.targets), s.kept_epoch
    if s.spoils:
        several = f"Epochs {epochs}, including the kept epoch {kept}, mark"
        which = several if s.last_epoch > s.first_epoch else f"The kept epoch, {kept}, marks"
        sentence = f"{which} {pixels}, so the scores say nothing about the network or the loss"
    elif s.ended:
        sentence = f"Epochs {epochs} mark {pixels}; training then recovered"
    else:
        sentence = f"Epochs {epochs} (the last) mark {pixels}; the kept epoch, {kept}, is an earlier one"
    change = "more steps (more epochs, a smaller batch_size), another" if s.throughout else "a lower"
    return f"{sentence}. Try {change} learning_rate or another loss."


def _diverged(s: DivergedEpochs) -> str:
    end = "; training then recovered" if s.ended else ", and did not recover"
    return (
        f"The training loss diverged: it was {s.lowest_loss:.4g} in epoch {s.lowest_loss_epoch}, then up to "
        f"{s.highest_loss:.4g} in epochs {s.first_epoch} to {s.last_epoch}{end}. Try a lower learning_rate."
    )


def _non_finite(s: NonFiniteLoss) -> str:
    kept = (
        f"epoch {s.kept_epoch} is kept"
        if s.kept_epoch
        else "no epoch had ended before, so the scores are those of an untrained network"
    )
    return f"The loss became NaN or infinite in epoch {s.epoch}, which ended training; {kept}. " + (
        "Try a lower learning_rate."
    )


def on_printed(found: Consistency, published: bool) -> list[str]:
    """What can be computed about the scores that the two reports printed.

    `published`: whether the images are those of COVID-QU-Ex.
    """
    on_iou = on_printed_iou(found.printed_iou, published) if found.printed_iou else []
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


def on_printed_iou(found: PrintedIou, published: bool) -> list[str]:
    where = f"the {found.images:,} COVID-19 Test images"
    marking = f"Marking every pixel scores IoU {found.iou:.3f} on {where}"
    printed = found.printed_iou
    if not published:
        unlike = "but for other X-rays, so the two are not comparable"
        return [f"{marking}. Report 1 printed {printed} for both losses, {unlike}."]
    if not found.same:
        return [f"{marking}, which differs from the {printed} that report 1 printed for both losses."]
    return [
        f"{marking}. Report 1 printed {printed} for both losses, about the score of a network that marks "
        "every pixel.",
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
        f"On {_the(IMAGE_SET_WORDS[image_set.name])}, {_verdict(_who(found), found.not_beaten)}"
        for image_set in section.image_sets
        for found in image_set.against_baselines
    ]


def _the(words: str) -> str:
    return words if words.startswith("all ") else f"the {words}"


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
    lost = [
        f"{listed(predictors, 'or')} on {listed(metrics, 'or')}" for metrics, predictors in unbeaten.items()
    ]
    parts += [f"{'does' if one else 'do'} not beat {', or '.join(lost)}"] if lost else []
    return f"{listed(names)} {('; it ' if one else '; they ').join(parts)}."


def on_chosen(section: Section) -> list[str]:
    """How the experiment chosen on Val compares with the others on Test images."""
    family = section.main.family("iou")
    if not section.choice or not family or len(section.experiments) < 2:
        return []
    chosen = section.choice.chosen
    found = family.of(chosen, section.experiments)
    better = [d.second for d in found if d.winner == d.second]
    groups = {
        "beats {}": [d.second for d in found if d.winner == chosen],
        "is not significantly different from {}": [d.second for d in found if d.winner is None],
        "is beaten by {}": better,
    }
    parts = [words.format(_named(names)) for words, names in groups.items() if names]
    where = f"{family.images:,} {IMAGE_SET_WORDS[section.main.name]}"
    return [f"In IoU on {where}, {chosen} {listed(parts)}.", *_price(section, chosen, better)]


def _price(section: Section, chosen: str, better: Sequence[str]) -> list[str]:
    """How many controls the experiments with a better IoU on images with a mask mark falsely."""
    controls = section.image_set("controls")
    if not controls or not better or "false_positive_rate" not in controls.row(chosen).scores:
        return []
    shares = sorted(controls.row(name).scores["false_positive_rate"].value for name in better)
    own = controls.row(chosen).scores["false_positive_rate"].value
    spread = listed(list(dict.fromkeys(map(percentage, (shares[0], shares[-1])))), "to")
    which = better[0] if len(better) == 1 else f"these {len(better)} experiments"
    verb = "marks" if len(better) == 1 else "mark"
    return [f"Of the control images, {which} {verb} {spread} falsely, {chosen} {percentage(own)}."]


# --- printed scores

REPORT_2_COLUMNS = {
    "dice_lung": "Dice, lung",
    "iou_lung": "IoU, lung",
    "dice_infection": "Dice, infection",
    "iou_infection": "IoU, infection",
    "last_train_loss": "Last epoch: loss",
    "last_val_loss": "Last epoch: Val loss",
    "last_val_dice": "Last epoch: Dice",
    "last_val_iou": "Last epoch: IoU",
}


def report_2_cells(scores: Report2Scores) -> list[str]:
    return [formatted(getattr(scores, field), 4) for field in REPORT_2_COLUMNS]


def fault_words(pair: PrintedPair | OwnPair, fault: Fault) -> str:
    broken = "is below the IoU" if fault.kind == "below" else "is above 2 IoU / (1 + IoU)"
    iou, dice, most = (f"{score:.{pair.decimals}f}" for score in (pair.iou, pair.dice, fault.highest_dice))
    allowed = f"over the same images, an IoU of {iou} allows only a Dice of {iou} to {most}"
    return f"Dice {dice} {broken}: {allowed}."


@dataclass(frozen=True)
class PairRow:
    where: str
    iou: float
    dice: float
    fault: str  # empty where the pair is possible


def printed_pairs(found: Consistency) -> list[PairRow]:
    """Pairs from report 2, and pairs from the literature, which a report on phantoms does not show."""
    return [
        PairRow(pair.where, pair.iou, pair.dice, fault_words(pair, pair.fault) if pair.fault else "")
        for pair in found.printed_pairs
    ]


AVERAGES = {"mean": "mean per image", "nonempty": "non-empty reference", "pooled": "pooled"}


def broken_pairs(pairs: Sequence[OwnPair]) -> list[str]:
    """What is wrong with scores of this report, one sentence each."""
    return [
        f"{row_words(pair.name, pair.kind)}, {pair.target}, {pair.split}, {IMAGE_SET_NAMES[pair.image_set]}, "
        f"{AVERAGES[pair.average]}: {fault_words(pair, pair.fault)}"
        for pair in pairs
    ]
