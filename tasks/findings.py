"""What the figures show, in sentences that are computed from them."""

import math
from collections.abc import Mapping, Sequence

from tasks.results import Inputs, Scores
from tasks.wording import formatted, listed, predictor_words, signed

HIGHER_IS_BETTER = {"iou": True, "dice": True, "mae": False}
METRIC_NAMES = {"iou": "IoU", "dice": "Dice", "mae": "MAE"}
NUMERALS = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six"}

# Report 1's Table 2: infection, one figure a loss; its test images and its empty-mask rule are not stated.
PRINTED_SCORES = {
    "Report 1, BCE": {"mae_255": 16.321, "iou": 0.138},
    "Report 1, BCE + IoU": {"mae_255": 102168.546, "iou": 0.138},
}
PRINTED_IOU = 0.138
SAME_IOU = 0.005  # how near a predictor's IoU is taken for the printed one
MAE_BOUND = 255.0  # the largest error of one pixel on the widest scale an 8 bit image has


def title(inputs: Inputs) -> str:
    kind = "synthetic chest X-rays" if inputs.phantoms else "chest X-rays"
    return f"{listed(inputs.targets).capitalize()} segmentation in {kind}"


def opening(inputs: Inputs) -> str:
    """One sentence: what was trained, on what, and how good it is."""
    target = inputs.targets[0]
    best = inputs.ranking(target)[0]
    own = best.results[target]["covid"]
    count = len(inputs.experiments)
    what = "One network" if count == 1 else f"{NUMERALS.get(count, count)} networks"
    images = sorted({int(e.model["train_images"]) for e in inputs.experiments})
    trained = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,} to {images[-1]:,}"
    kind = "synthetic phantoms" if inputs.phantoms else "chest X-rays of COVID-QU-Ex"
    return (
        f"{what} trained on {trained} {kind} to mark {listed(inputs.targets)}; "
        f"on {own['images']:,.0f} COVID-19 Test images the best one, {best.name}, "
        f"reaches IoU {formatted(own['iou'])} and Dice {formatted(own['dice'])}."
    )


def findings(inputs: Inputs, target: str) -> list[str]:
    """Sentences on the COVID-19 Test images, where they name no others, each computed from the scores."""
    trivial = inputs.trivial_scores(target, "covid")
    sentences = []
    if target == "infection" and "all_foreground" in trivial:
        sentences += _on_printed_iou(trivial["all_foreground"], inputs.phantoms)
    sentences += _against_trivial(inputs, target, "covid")
    sentences += [f"On all Test images, {said}" for said in _against_trivial(inputs, target, "all")]
    sentences += _on_the_lead(inputs, target)
    if target == "infection":
        sentences += _on_printed_mae()
    return sentences


def _on_printed_iou(scores: Scores, phantoms: bool) -> list[str]:
    said = f"Marking every pixel scores IoU {scores['iou']:.3f} on these {scores['images']:,.0f} images"
    if phantoms:
        return [
            f"{said}; report 1 printed {PRINTED_IOU} for both losses, on real X-rays: the two don't compare."
        ]
    if abs(scores["iou"] - PRINTED_IOU) > SAME_IOU:
        return [f"{said}, which differs from the {PRINTED_IOU} that report 1 printed for both losses."]
    return [
        f"{said}; report 1 printed {PRINTED_IOU} for both losses: "
        "the score of a network that marks every pixel.",
        f"Such a network's MAE would be {scores['mae_255']:.1f} on the 0–255 scale, not the printed "
        f"{PRINTED_SCORES['Report 1, BCE']['mae_255']}.",
    ]


def _on_printed_mae() -> list[str]:
    return [
        f"A mean absolute error cannot exceed the largest error of one pixel, {MAE_BOUND:.0f} on the widest "
        f"scale: the {scores['mae_255']:,.3f} printed as “{name}” is {scores['mae_255'] / MAE_BOUND:,.0f} "
        "times that bound, and no mean absolute error."
        for name, scores in PRINTED_SCORES.items()
        if scores["mae_255"] > MAE_BOUND
    ]


def _against_trivial(inputs: Inputs, target: str, image_set: str) -> list[str]:
    """Which experiments beat each trivial predictor on which measure; a tie beats nothing."""
    trivial = inputs.trivial_scores(target, image_set)
    alike: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for e in inputs.with_target(target):
        own = e.results[target][image_set]
        lost = tuple(
            tuple(METRIC_NAMES[metric] for metric in HIGHER_IS_BETTER if not _beats(own, scores, metric))
            for scores in trivial.values()
        )
        alike.setdefault(lost, []).append(e.name)
    return [_verdict(names, dict(zip(trivial, lost, strict=True))) for lost, names in alike.items() if lost]


def _verdict(names: Sequence[str], lost: Mapping[str, Sequence[str]]) -> str:
    """Say of experiments that they beat each predictor on all measures but the lost ones."""
    one = len(names) == 1
    unbeaten: dict[tuple[str, ...], list[str]] = {}
    for predictor, measures in lost.items():
        unbeaten.setdefault(tuple(measures), []).append(predictor_words(predictor))
    beaten = unbeaten.pop((), [])
    parts = [f"{'beats' if one else 'beat'} {listed(beaten)} on IoU, Dice and MAE"] if beaten else []
    parts += [
        f"{'does' if one else 'do'} not beat {listed(predictors, 'or')} on {listed(measures, 'or')}"
        for measures, predictors in unbeaten.items()
    ]
    return f"{listed(names)} {('; it ' if one else '; they ').join(parts)}."


def _beats(own: Scores, other: Scores, metric: str) -> bool:
    return own[metric] > other[metric] if HIGHER_IS_BETTER[metric] else own[metric] < other[metric]


def _on_the_lead(inputs: Inputs, target: str) -> list[str]:
    """The best experiment's mean lead in IoU over the next one, paired by image, with its 95 % interval."""
    ranking = inputs.ranking(target)
    if len(ranking) < 2:
        return []
    first, second = ranking[:2]
    scores = [e.covid_images(target).set_index("id")["iou"] for e in (first, second)]
    leads = (scores[0] - scores[1]).dropna()
    if len(leads) < 30:  # too few for the normal approximation
        return []
    lead, half = float(leads.mean()), 1.96 * float(leads.std()) / math.sqrt(len(leads))
    verdict = "" if lead > half else ": these images do not tell the two apart"
    return [
        f"{first.name} leads {second.name} by {lead:.3f} IoU an image (95 % interval over the images "
        f"{signed(lead - half)} to {signed(lead + half)}, one training each){verdict}."
    ]


def best_trivial(trivial: Mapping[str, Scores], metric: str) -> tuple[str, float]:
    """The trivial predictor that scores best by a metric, in words, and its score."""
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    name = max(trivial, key=lambda predictor: sign * trivial[predictor][metric])
    return predictor_words(name), trivial[name][metric]
