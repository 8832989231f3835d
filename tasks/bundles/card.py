"""Renders the model card of a bundle: what bundle.json says, for people."""

from collections.abc import Callable, Iterator, Mapping

from tasks.bundles.schema import Bundle, NetworkRecord, Point, ScoreRecord, Step
from tasks.reporting.words import IMAGE_SET_NAMES, listed
from tasks.settings.training import Target

#: Heading and format of each metric.
METRIC_WORDS = {
    "iou": ("IoU", ".3f"),
    "dice": ("Dice", ".3f"),
    "hd95": ("HD95 (pixels)", ".1f"),
    "missed": ("missed images", ".1%"),
    "false_positive_rate": ("images falsely marked", ".1%"),
    "ece": ("calibration error", ".4f"),
}


def card(bundle: Bundle) -> str:
    """The card as Markdown; equal bundles give equal text."""
    parts = [
        f"# {bundle.name}",
        bundle.intended_use,
        "## Use",
        f"```text\ncxr predict IMAGE... --model {bundle.name} --out RESULTS\n```",
        "## Input and output",
        "\n".join(_input(bundle)),
        "## Networks",
        "\n".join(line for step in bundle.steps for line in _step(step)),
        "## Scores on Test images",
        f"{_of_what(bundle)}, with 95% confidence intervals. They hold for images like these only.",
        "\n".join(_scores(bundle)),
        "## Limitations",
        "\n".join(f"- {sentence}" for sentence in bundle.limitations),
        "## Provenance",
        "\n".join(_provenance(bundle)),
        "## Licence",
        f"Code and networks: {bundle.licence.code}. {bundle.licence.data}",
    ]
    return "\n\n".join(parts) + "\n"


def _of_what(bundle: Bundle) -> str:
    return "Means over the seeds" if bundle.main.ensemble is None else "Scores of the average of the networks"


def _input(bundle: Bundle) -> Iterator[str]:
    size = bundle.input.image_size
    yield f"- Image: one channel, {size}x{size}, from 0 (black) to 1 (white), bones bright."
    yield "- An image of another size is resized bilinearly, whatever its aspect ratio."
    yield f"- Output: a mask of {' and of '.join(bundle.main.targets)}, at the image's own size."


def _step(step: Step) -> Iterator[str]:
    prediction = step.prediction
    on = {
        "average over the mirror image": prediction.flip_average,
        "infection only within the lungs": prediction.within_lungs,
        f"components below {prediction.min_area:g} of the image removed": prediction.min_area,
        "holes filled": prediction.fill_holes,
    }
    classes = listed(step.classes)
    yield f"**{step.experiment}** predicts {listed(step.targets)}. Trained on images of {classes}."
    yield f"Post-processing: {', '.join(words for words, used in on.items() if used) or 'none'}."
    yield ""
    yield "A pixel is marked from the threshold on, but only if the image reaches the least mean probability."
    yield ""
    yield "| training | parameters | thresholds | least mean probability | ONNX Runtime against torch |"
    yield "| --- | ---: | --- | --- | --- |"
    for network in step.networks:
        yield _network(network)
    if step.ensemble is not None:
        thresholds, presence = _points(step.ensemble)
        yield f"| average of all, which makes the masks | | {thresholds} | {presence} | |"
    yield ""


def _network(network: NetworkRecord) -> str:
    thresholds, presence = _points(network.points)
    parity = network.parity
    differing = f"{parity.onnx_pixels:,} of {parity.pixels:,} mask pixels differ, {parity.images:,} images"
    return f"| {network.training} | {network.parameters:,} | {thresholds} | {presence} | {differing} |"


def _points(points: Mapping[Target, Point]) -> tuple[str, str]:
    """The thresholds and the least mean probabilities."""
    thresholds = ", ".join(f"{target} {point.threshold:g}" for target, point in points.items())
    presence = ", ".join(f"{target} {point.presence:g}" for target, point in points.items() if point.presence)
    return thresholds, presence or "–"


def _scores(bundle: Bundle) -> Iterator[str]:
    yield "| target | images | number | metric | score |"
    yield "| --- | --- | ---: | --- | ---: |"
    for score in bundle.scores:
        words, _ = METRIC_WORDS[score.metric]
        where = IMAGE_SET_NAMES.get(score.image_set, score.image_set)
        yield f"| {score.target} | {where} | {score.images:,} | {words} | {_value(score)} |"


def score_words(bundle: Bundle) -> Iterator[str]:
    """The main scores on Test images, for each target."""
    for target in bundle.main.targets:
        found = {score.metric: score for score in bundle.scores if score.target == target}
        said = [MAIN_SCORES[name](found[name]) for name in MAIN_SCORES if name in found]
        if said:
            yield f"{target}: {', '.join(said)}"


MAIN_SCORES: dict[str, Callable[[ScoreRecord], str]] = {
    "dice": lambda score: f"Dice {score.value:.3f} on {_images(score)}",
    "missed": lambda score: f"{score.value:.1%} of them missed",
    "false_positive_rate": lambda score: f"{score.value:.1%} of {_images(score)} falsely marked",
}


def _images(score: ScoreRecord) -> str:
    words = {"controls": "controls", "all": "images"}
    name = IMAGE_SET_NAMES.get(score.image_set, score.image_set)
    return f"{score.images:,} {words.get(score.image_set, f'{name} images')}"


def _value(score: ScoreRecord) -> str:
    _, how = METRIC_WORDS[score.metric]
    value = f"{score.value:{how}}"
    if score.low is None or score.high is None:
        return value
    return f"{value} ({score.low:{how}} to {score.high:{how}})"


def _provenance(bundle: Bundle) -> Iterator[str]:
    dataset = bundle.dataset
    counts = ", ".join(f"{count:,} {split}" for split, count in dataset.images.items())
    yield f"- Dataset: {dataset.source}, {dataset.half} half, {counts} images; table {dataset.fingerprint}"
    yield f"- Plans of all trainings: {bundle.plans}"
    yield f"- Software: {', '.join(f'{name} {version}' for name, version in bundle.versions.items())}"
