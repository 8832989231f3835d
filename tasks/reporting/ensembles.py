"""Ensembles: what the average of an experiment's networks brings, and where its networks disagree.

Also the scores of a cross-validation, whose networks are an ensemble.
"""

from dataclasses import dataclass

from tasks.comparison.document import (
    CrossValidation,
    Difference,
    Document,
    Ensemble,
    EnsembleScore,
    EnsembleTarget,
    FoldedScore,
    FoldedTarget,
    Rejection,
    Score,
    ShownImage,
)
from tasks.reporting import charts as figures
from tasks.reporting.gallery import Gallery, PictureRow
from tasks.reporting.words import (
    IMAGE_SET_NAMES,
    IMAGE_SET_WORDS,
    bounds_words,
    formatted,
    percentage,
    signed,
    signed_span,
    with_span,
)

METRIC_WORDS = {
    "iou": "IoU",
    "dice": "Dice",
    "missed": "Missed",
    "false_positive_rate": "Falsely marked",
    "balanced": "Balanced score",
}
SHARES = ("missed", "false_positive_rate")
#: The share of the images that the sentence about disagreement keeps.
KEPT = 0.8


@dataclass(frozen=True)
class EnsembleRow:
    name: str
    cells: tuple[tuple[str, str], ...]  # value and interval


@dataclass(frozen=True)
class EnsembleCard:
    """One target of one ensemble."""

    key: str  # part of the page's ids
    title: str
    networks: int
    sentences: tuple[str, ...]
    headings: tuple[str, ...]
    rows: tuple[EnsembleRow, ...]
    chart: figures.Chart
    cases: tuple[PictureRow, ...]


def ensemble_cards(document: Document, gallery: Gallery) -> list[EnsembleCard]:
    return [_card(document, of, found, gallery) for of in document.ensembles for found in of.targets]


def on_ensembles(document: Document) -> list[str]:
    """What each ensemble brings, and whether the disagreement of its networks tells bad masks."""
    return [
        sentence for of in document.ensembles for found in of.targets for sentence in _sentences(of, found)
    ]


def _card(document: Document, of: Ensemble, found: EnsembleTarget, gallery: Gallery) -> EnsembleCard:
    half = f", {found.half} half" if len(document.halves) > 1 else ""
    key = found.target if len(document.halves) == 1 else f"{found.half}-{found.target}"
    return EnsembleCard(
        key=f"ensemble-{of.experiment}-{key}",
        title=f"{of.experiment}, {found.target}{half}",
        networks=of.networks,
        sentences=_sentences(of, found),
        headings=tuple(_heading(score) for score in found.scores),
        rows=(
            EnsembleRow("one network", tuple(_cell(score, score.networks) for score in found.scores)),
            EnsembleRow("ensemble", tuple(_cell(score, score.ensemble) for score in found.scores)),
            EnsembleRow("difference", tuple(_change(score.change) for score in found.scores)),
        ),
        chart=_chart(of.experiment, found),
        cases=tuple(_case(of.experiment, found.target, shown, gallery) for shown in found.shown),
    )


@dataclass(frozen=True)
class FoldsCard:
    """One target of one cross-validation."""

    key: str  # part of the page's ids
    title: str
    headings: tuple[str, ...]
    rows: tuple[EnsembleRow, ...]


def folds_cards(document: Document) -> list[FoldsCard]:
    return [
        FoldsCard(
            key=f"folds-{of.experiment}-{found.half}-{found.target}",
            title=f"{of.experiment}, {found.target}",
            headings=tuple(_folds_heading(score) for score in found.scores),
            rows=(
                EnsembleRow("all folds", tuple(_cell(each, each.score) for each in found.scores)),
                *(
                    EnsembleRow(
                        f"fold {fold}, {images:,} images",
                        tuple((formatted(each.folds[fold]), "") for each in found.scores),
                    )
                    for fold, images in enumerate(of.images)
                ),
            ),
        )
        for of in document.cross_validations
        for found in of.targets
    ]


def _folds_heading(score: FoldedScore) -> str:
    where = f"{IMAGE_SET_NAMES[score.image_set]} ({score.images:,})"
    return f"{METRIC_WORDS[score.metric]}, {where}"


def on_folds(document: Document) -> list[str]:
    """The score of each cross-validation on the images that its networks did not see."""
    return [_on_folds(of, found) for of in document.cross_validations for found in of.targets]


def _on_folds(of: CrossValidation, found: FoldedTarget) -> str:
    main = next(each for each in found.scores if each.metric == "iou")
    of_folds = [value for value in main.folds if value is not None]
    return (
        f"{found.target.capitalize()}: over the {of.folds} folds of {of.experiment}, the IoU on "
        f"{main.images:,} Train and Val images ({IMAGE_SET_NAMES[main.image_set]}) is "
        f"{with_span(main.score)}, each scored by the network that did not see it; from "
        f"{formatted(min(of_folds))} to {formatted(max(of_folds))} by fold."
    )


def _heading(score: EnsembleScore) -> str:
    return f"{METRIC_WORDS[score.metric]}, {score.split}, {IMAGE_SET_NAMES[score.image_set]}"


def _cell(of: EnsembleScore | FoldedScore, score: Score) -> tuple[str, str]:
    show = percentage if of.metric in SHARES else formatted
    return show(score.value), bounds_words(score.interval, show) if score.interval else ""


def _change(change: Difference | None) -> tuple[str, str]:
    return (signed(change.value), signed_span(change.interval)) if change else ("–", "")


def _sentences(of: Ensemble, found: EnsembleTarget) -> tuple[str, ...]:
    main = next(score for score in found.scores if score.metric == "iou")
    reached = (
        f"{found.target.capitalize()}: the average of the {of.networks} networks of {of.experiment} reaches "
        f"an IoU of {with_span(main.ensemble)} on the {IMAGE_SET_WORDS[main.image_set]}; a single network "
        f"reaches {formatted(main.networks.value)} on average"
    )
    assert main.change
    change, span = _change(main.change)
    verdict = "" if main.change.winner else ", which is not significant"
    interval = f" (95% CI {span})" if span else ""
    return (f"{reached}. The difference is {change}{interval}{verdict}.", _on_rejection(found))


def _on_rejection(found: EnsembleTarget) -> str:
    of = found.rejection
    if of.ratio is None:
        return f"{found.target.capitalize()}: all masks are equally good, so disagreement can tell nothing."
    kept = _risk_at(of, KEPT)
    worth = "helps" if of.ratio.interval and of.ratio.interval.low > 0 else "is not shown to help"
    return (
        f"{found.target.capitalize()}: disagreement {worth} to find bad masks. Without the "
        f"{100 * (1 - KEPT):.0f}% of the Test images on which the networks disagree most, the mean of "
        f"1 − Dice is {formatted(kept)} instead of {formatted(of.random)}. The rejection ratio is "
        f"{with_span(of.ratio)}; 1 is the best order of the images, 0 a random one."
    )


def _risk_at(found: Rejection, coverage: float) -> float:
    """The risk at the smallest coverage that is at least this one."""
    return next(r for share, r in zip(found.coverage, found.risk, strict=True) if share >= coverage)


def _chart(experiment: str, found: EnsembleTarget) -> figures.Chart:
    of = found.rejection
    lines = (
        figures.Curve("validation", of.coverage, of.risk),
        figures.Curve("train", of.coverage, of.best),
        figures.Curve("diagonal", (0, 1), (of.random, of.random)),
    )
    words = (
        f"{experiment}, {found.target}: mean of 1 − Dice against the share of the images that remain; "
        f"rejection ratio {formatted(of.ratio.value if of.ratio else None)}"
    )
    high = max(of.random, *of.risk, *of.best)
    return figures.over_share(f"{experiment}, {found.target}", words, "share of images", lines, high)


def _case(experiment: str, target: str, shown: ShownImage, gallery: Gallery) -> PictureRow:
    pictures = (
        gallery.xray(shown.image_id),
        gallery.prediction(shown.image_id, shown.predictions[0], "Ensemble"),
        gallery.spread(shown.image_id, experiment, target),
    )
    return PictureRow("", shown.image_id, pictures)
