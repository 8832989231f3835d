"""Renders the model card of a bundle: what bundle.json says, for people."""

from collections.abc import Iterator, Mapping

from tasks.bundles.schema import Bundle, NetworkRecord, Point, ScoreRecord, Step
from tasks.settings.training import Target

#: Heading and decimals of each metric.
METRIC_WORDS = {
    "iou": ("IoU", 3),
    "dice": ("Dice", 3),
    "hd95": ("HD95 (pixels)", 1),
    "missed": ("missed images", 3),
    "false_positive_rate": ("images falsely marked", 3),
    "ece": ("calibration error", 3),
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
    classes = ", ".join(step.classes)
    yield f"**{step.experiment}** predicts {' and '.join(step.targets)}. Trained on {classes}."
    yield f"Post-processing: {', '.join(words for words, used in on.items() if used) or 'none'}."
    yield ""
    yield "| training | weights | thresholds | least mean probability | ONNX Runtime against torch |"
    yield "| --- | ---: | --- | --- | --- |"
    for network in step.networks:
        yield _network(network)
    if step.ensemble is not None:
        thresholds, presence = _points(step.ensemble)
        yield f"| the average of all, of which masks are made | | {thresholds} | {presence} | |"
    yield ""


def _network(network: NetworkRecord) -> str:
    thresholds, presence = _points(network.points)
    parity = network.parity
    differing = f"{parity.onnx_pixels} of {parity.pixels} mask pixels differ, {parity.images} images"
    return f"| {network.training} | {network.parameters:,} | {thresholds} | {presence} | {differing} |"


def _points(points: Mapping[Target, Point]) -> tuple[str, str]:
    """The thresholds and the least mean probabilities."""
    thresholds = ", ".join(f"{target} {point.threshold:g}" for target, point in points.items())
    return thresholds, ", ".join(f"{target} {point.presence:g}" for target, point in points.items())


def _scores(bundle: Bundle) -> Iterator[str]:
    yield "| target | images | number | metric | score |"
    yield "| --- | --- | ---: | --- | ---: |"
    for score in bundle.scores:
        words, _ = METRIC_WORDS[score.metric]
        yield f"| {score.target} | {score.image_set} | {score.images} | {words} | {_value(score)} |"


def _value(score: ScoreRecord) -> str:
    _, decimals = METRIC_WORDS[score.metric]
    value = f"{score.value:.{decimals}f}"
    if score.low is None or score.high is None:
        return value
    return f"{value} ({score.low:.{decimals}f} to {score.high:.{decimals}f})"


def _provenance(bundle: Bundle) -> Iterator[str]:
    dataset = bundle.dataset
    counts = ", ".join(f"{count} {split}" for split, count in dataset.images.items())
    yield f"- Dataset: {dataset.source}, {dataset.half} half, {counts} images; table {dataset.fingerprint}"
    yield f"- Plans of all trainings: {bundle.plans}"
    yield f"- Software: {', '.join(f'{name} {version}' for name, version in bundle.versions.items())}"
