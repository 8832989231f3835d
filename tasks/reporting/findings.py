"""What the figures show, in sentences that are computed from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.reporting.consistency import PRINTED_PAIRS, check_pair, possible_pairs
from tasks.reporting.differences import against_best, differences
from tasks.reporting.inputs import Experiment, Inputs, Scores
from tasks.reporting.words import IMAGE_SET_WORDS, formatted, listed, predictor_words, target_words
from tasks.support.symptoms import Symptom, symptoms

HIGHER_IS_BETTER = {"iou": True, "dice": True, "mae": False}
ON_IMAGE_SET = {"covid": "the COVID-19 Test images", "all": "all Test images"}
METRIC_NAMES = {"iou": "IoU", "dice": "Dice", "mae": "MAE"}
NUMERALS = dict(enumerate(("Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten"), start=2))

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
    return f"{listed(inputs.masks).capitalize()} segmentation in {kind}"


def opening(inputs: Inputs) -> str:
    """One sentence: what was trained, on what, and how good it is."""
    target = inputs.targets[0]
    best = inputs.ranking(target)[0]
    own = best.results[target]["covid"]
    count = len(inputs.experiments)
    what = "One network" if count == 1 else f"{NUMERALS.get(count, count)} networks"
    images = sorted({int(e.network["train_images"]) for e in inputs.experiments})
    trained = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,} to {images[-1]:,}"
    kind = "synthetic phantoms" if inputs.phantoms else "chest X-rays of COVID-QU-Ex"
    return (
        f"{what} trained on {trained} {kind} to mark {listed(inputs.masks, 'or')}; "
        f"on {own['images']:,.0f} COVID-19 Test images the best one, {best.name}, "
        f"reaches IoU {formatted(own['iou'])} and Dice {formatted(own['dice'])} for {target_words(target)}."
    )


@dataclass(frozen=True)
class Sentences:
    """What the figures show, for the page and its summary."""

    on_the_lead: dict[str, list[str]]  # of each target
    against_trivial: dict[str, list[str]]
    on_printed: list[str]
    on_training: dict[str, list[Symptom]]  # of each experiment whose training went wrong

    @property
    def on_spoilt(self) -> list[tuple[str, Symptom]]:
        """The experiments, with what says so, whose figures are no network's that learnt anything."""
        return [(name, s) for name, found in self.on_training.items() for s in found if s.spoils]


def sentences(inputs: Inputs) -> Sentences:
    return Sentences(
        {target: _on_the_lead(inputs, target, "covid") for target in inputs.targets},
        {target: _on_each_set(inputs, target) for target in inputs.targets},
        _on_printed(inputs),
        {e.name: found for e in inputs.experiments if (found := _on_training(e))},
    )


def _on_training(e: Experiment) -> list[Symptom]:
    """What went wrong in the trainings of an experiment; of several, each says which."""
    return [
        symptom._replace(text=f"Seed {seed}: {symptom.text}") if len(e.seeds) > 1 else symptom
        for seed in e.seeds
        for symptom in symptoms(e.history[e.history["seed"] == seed])
    ]


def _on_each_set(inputs: Inputs, target: str) -> list[str]:
    return [said for image_set in ON_IMAGE_SET for said in _against_trivial(inputs, target, image_set)]


def _on_printed(inputs: Inputs) -> list[str]:
    """What computing shows of the figures that the two reports printed."""
    if "infection" not in inputs.targets:
        return _on_printed_pairs()
    trivial = inputs.trivial_scores("infection", "covid")
    said = _on_printed_iou(trivial["all_foreground"], inputs.phantoms) if "all_foreground" in trivial else []
    return [*said, *_on_printed_mae(), *_on_printed_pairs()]


def _on_printed_pairs() -> list[str]:
    final = [pair for pair in PRINTED_PAIRS if pair.where in ("Report 2, lung", "Report 2, infection")]
    said = [
        f"{pair.where}: {fault}"
        for pair in final
        if (fault := check_pair(pair.iou, pair.dice, pair.decimals))
    ]
    scores = [score for pair in final for score in (pair.iou, pair.dice)]
    if said and not possible_pairs(scores, final[0].decimals):
        said.append(
            f"One set of predictions can’t give such pairs; nor can any two of the {len(scores)} scores "
            "belong together, so no mix-up of names explains them."
        )
    return said


def _on_printed_iou(scores: Scores, phantoms: bool) -> list[str]:
    where = f"the {scores['images']:,.0f} COVID-19 Test images"
    said = f"Marking every pixel scores IoU {scores['iou']:.3f} on {where}"
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
    """Which experiments beat each trivial predictor on which measure, for sure; a tie beats nothing."""
    trivial = list(inputs.trivial_scores(target, image_set))
    names = [e.name for e in inputs.with_target(target) if image_set in e.results[target]]
    pairs = [(name, predictor) for name in names for predictor in trivial]
    lost: dict[tuple[str, str], list[str]] = {pair: [] for pair in pairs}
    for metric in HIGHER_IS_BETTER:
        for difference in differences(inputs, target, image_set, metric, pairs):
            if not _better(difference.interval.low, difference.interval.high, metric):
                lost[difference.first, difference.second].append(METRIC_NAMES[metric])
    alike: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for name in names:
        alike.setdefault(tuple(tuple(lost[name, predictor]) for predictor in trivial), []).append(name)
    if len(alike) == 1 and len(names) > 2:
        alike = {of: [f"the {len(names)} experiments"] for of in alike}
    return [
        f"On {ON_IMAGE_SET[image_set]}, {_verdict(who, dict(zip(trivial, of, strict=True)))}"
        for of, who in alike.items()
        if of
    ]


def _verdict(names: Sequence[str], lost: Mapping[str, Sequence[str]]) -> str:
    """Say of experiments that they beat each predictor on all measures but the lost ones."""
    one = len(names) == 1 and not names[0].startswith("the ")
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


def _better(low: float, high: float, metric: str) -> bool:
    """Whether a difference that lies between these is a gain."""
    return low > 0 if HIGHER_IS_BETTER[metric] else high < 0


def _on_the_lead(inputs: Inputs, target: str, image_set: str) -> list[str]:
    """What the experiment of the highest IoU beats, and what it can't be told apart from."""
    found = against_best(inputs, target, image_set)
    if not found:
        return []
    best, where = found[0].first, f"{found[0].images:,} {IMAGE_SET_WORDS[image_set]}"
    level = [d.second for d in found if not d.interval.excludes_zero]
    said = [f"can’t be told apart from {listed(level, 'or')}"] if level else []
    if beaten := [d for d in found if d.interval.excludes_zero]:
        whom = beaten[0].second if len(beaten) == 1 else f"{len(beaten)} others"
        nearest = "" if len(beaten) == 1 else f"the nearest, {beaten[0].second}, "
        said.append(f"beats {whom}, {nearest}by {beaten[0].words} ({beaten[0].span})")
    return [
        f"On IoU {best} {' and '.join(said)}; paired by image, 95 % intervals over {where}, "
        f"{_trainings(inputs, target)}."
    ]


def _trainings(inputs: Inputs, target: str) -> str:
    counts = sorted({len(e.seeds) for e in inputs.with_target(target)})
    if counts == [1]:
        return "one training each"
    return f"{' to '.join(str(count) for count in sorted({counts[0], counts[-1]}))} trainings each"


def best_trivial(trivial: Mapping[str, Scores], metric: str) -> tuple[str, float]:
    """The trivial predictor that scores best by a metric, in words, and its score."""
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    name = max(trivial, key=lambda predictor: sign * trivial[predictor][metric])
    return predictor_words(name), trivial[name][metric]
