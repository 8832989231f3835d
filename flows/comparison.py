"""A run's test metrics beside those of the revision that it started from."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

#: The metrics that are compared, few enough to look through, with their names for people, and whether more of
#: one is better. `dvc metrics diff` compares them all.
METRICS = {"iou": ("IoU", True), "dice": ("Dice", True), "mae": ("MAE", False)}
IMAGE_SETS = {"covid": "COVID-19", "all": "all"}


class MetricChange(NamedTuple):
    """One metric of one experiment on one set of Test images."""

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
        """What it gained, with its sign; 0 where it is the same, empty where it is new."""
        if self.before is None:
            return ""
        return "0" if self.now == self.before else f"{self.now - self.before:+.4f}"


def metric_changes(
    now: Mapping[str, Any], before: Mapping[str, Any], experiments: Iterable[str]
) -> list[MetricChange]:
    """The scores of `experiments` in two contents of metrics.json; `before` may lack any."""
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
    """The rows of a table for the Prefect UI; `base` names the revision compared with."""
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
    """What came out, a line for each experiment, target and set of images, for a commit message."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for score in scores:
        change = f" ({score.change})" if score.change else ""
        text = f"{score.metric} {score.now:.4f}{change}"
        groups.setdefault((score.experiment, score.target, score.images), []).append(text)
    return [
        f"{experiment}, {target} on {images} Test images: {', '.join(texts)}"
        for (experiment, target, images), texts in groups.items()
    ]
