"""Compare a run's Test metrics with those of the revision that it started from."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

#: The compared metrics, few enough to read in a table: name, and whether a larger value is better.
#: `dvc metrics diff` compares all metrics.
METRICS = {"iou": ("IoU", True), "dice": ("Dice", True), "mae": ("MAE", False)}
IMAGE_SETS = {"covid": "COVID-19", "all": "all"}


class MetricChange(NamedTuple):
    """The change of one metric of one experiment on one set of Test images."""

    experiment: str
    target: str
    images: str
    metric: str
    now: float
    before: float | None
    better_is_more: bool

    @property
    def verdict(self) -> str:
        if self.before is None:
            return "new"
        if self.now == self.before:
            return "same"
        return "better" if (self.now > self.before) == self.better_is_more else "worse"

    @property
    def change(self) -> str:
        """The difference from the revision, with its sign: "0" if equal, empty if the metric is new."""
        if self.before is None:
            return ""
        return "0" if self.now == self.before else f"{self.now - self.before:+.4f}"


def metric_changes(
    now: Mapping[str, Any], before: Mapping[str, Any], experiments: Iterable[str]
) -> list[MetricChange]:
    """Compare two contents of metrics.json for some experiments. `before` may lack any of them."""
    return [
        MetricChange(
            experiment,
            target,
            words,
            name,
            sets[images][metric],
            before.get(experiment, {}).get(target, {}).get(images, {}).get(metric),
            better_is_more,
        )
        for experiment in experiments
        for target, sets in now[experiment].items()
        for images, words in IMAGE_SETS.items()
        if images in sets
        for metric, (name, better_is_more) in METRICS.items()
    ]


def as_rows(scores: list[MetricChange], base: str) -> list[dict[str, str]]:
    """Return the rows of a table for the Prefect UI. `base` names the revision in the column header."""
    marks = {"better": "▲ better", "worse": "▼ worse"}
    return [
        {
            "experiment": score.experiment,
            "target": score.target,
            "Test images": score.images,
            "metric": score.metric,
            "this run": f"{score.now:.4f}",
            base: "–" if score.before is None else f"{score.before:.4f}",
            "change": score.change or "–",
            "verdict": marks.get(score.verdict, score.verdict),
        }
        for score in scores
    ]


def as_lines(scores: list[MetricChange]) -> list[str]:
    """Return one line per experiment, target and image set, for a commit message."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for score in scores:
        change = f" ({score.change})" if score.change else ""
        text = f"{score.metric} {score.now:.4f}{change}"
        groups.setdefault((score.experiment, score.target, score.images), []).append(text)
    return [
        f"{experiment}, {target} on {images} Test images: {', '.join(texts)}"
        for (experiment, target, images), texts in groups.items()
    ]
