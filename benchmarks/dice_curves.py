"""The runs of benchmarks/time_to_dice.py as a table and as curves."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

from output import ratios, spread_of

TITLES = {
    "ours": "ours",
    "plain": "plain PyTorch loop",
    "monai": "MONAI",
    "nnunet": "nnU-Net v2, 2d",
    "same": "plain loop, our network",
}


class Point(TypedDict):
    """A validation."""

    seconds: float
    """Seconds of training so far, by wall clock, without validations."""
    cpu: float
    """The same in CPU seconds of all threads and child processes."""
    steps: int
    dice: float
    """Mean over the Val images."""
    validation: float
    """Seconds that the validation took."""


class Run(NamedTuple):
    """What the file of a run says."""

    name: str
    repeat: int
    facts: dict[str, Any]
    load: float
    """Processes that were running or waiting on the machine just before, averaged over a minute."""
    points: list[Point]
    ended: str
    """target, limit or last epoch; empty if the run was interrupted."""

    def seconds(self, target: float) -> float:
        """Seconds of training until the target was reached; infinite if it was not."""
        return self.first(target, "seconds")

    def first(self, target: float, of: Literal["seconds", "cpu"]) -> float:
        """Seconds or CPU seconds until the target was reached; infinite if it was not."""
        return next((p[of] for p in self.points if p["dice"] >= target), math.inf)


COLUMNS = (
    "",
    "seconds to Dice {}",
    "times ours",
    "CPU seconds",
    "reached",
    "images/s",
    "validation, s",
    "parameters",
    "precision",
)


def table_of(
    names: Sequence[str], runs: Sequence[Run], failures: Mapping[str, str], target: float, limit: float
) -> Iterator[str]:
    """The results as Markdown: medians, with the lowest and highest in brackets."""
    yield "| " + " | ".join(COLUMNS).format(target) + " |"
    yield "| --- |" + " ---: |" * (len(COLUMNS) - 1)
    ended = {name: [of for of in runs if of.name == name and of.ended] for name in names}
    for name, of_name in ended.items():
        if of_name:
            yield (
                "| "
                + " | ".join([TITLES[name], *cells(of_name, ended.get("ours", []), target, limit)])
                + " |"
            )
        if name in failures:
            yield f"| {TITLES[name]} | {failures[name]} |" + " |" * (len(COLUMNS) - 2)
    for name, of_name in ended.items():
        if of_name:
            facts = of_name[0].facts
            yield f"\n{TITLES[name]}: {facts['network']}; {facts['loss']}; {facts['optimiser']}"


def cells(runs: Sequence[Run], ours: Sequence[Run], target: float, limit: float) -> Iterator[str]:
    facts, last = runs[0].facts, [of.points[-1] for of in runs]
    seconds = [of.seconds(target) for of in runs]
    missed = f"not in {limit:g} s"
    yield words(seconds, ".1f", missed)
    yield "" if runs[0].name == "ours" else words(ratios_to(ours, runs, target), ".2f", "")
    yield words([of.first(target, "cpu") for of in runs], ".1f", "")
    yield f"{sum(s < math.inf for s in seconds)} of {len(runs)}"
    yield spread_of([p["steps"] * facts["batch_size"] / p["seconds"] for p in last], ".0f")
    yield spread_of([sum(p["validation"] for p in of.points) for of in runs], ".0f")
    yield f"{facts['parameters'] / 1e6:.2f} M"
    yield facts["precision"]


def ratios_to(ours: Sequence[Run], runs: Sequence[Run], target: float) -> list[float]:
    """Seconds of each run divided by ours of the same repeat, of those that ours reached the target in."""
    own = {of.repeat: of.seconds(target) for of in ours if of.seconds(target) < math.inf}
    both = [of for of in runs if of.repeat in own]
    return ratios([of.seconds(target) for of in both], [own[of.repeat] for of in both])


def words(values: Sequence[float], form: str, none: str) -> str:
    """Format median, lowest and highest, where infinite values are `never`; `none` if all are."""
    if min(values, default=math.inf) == math.inf:
        return none
    return spread_of(values, form).replace("inf", "never")


#: Distinct for colour-blind readers (Okabe and Ito, 2008).
COLOURS = {
    "ours": "#0072b2",
    "plain": "#d55e00",
    "monai": "#009e73",
    "nnunet": "#cc79a7",
    "same": "#e69f00",
}
WIDTH, HEIGHT = 760, 420
#: Where the axes begin and end.
LEFT, AXIS_END, TOP, BASE = 56, 590, 24, 372


def svg(names: Sequence[str], runs: Sequence[Run], target: float) -> str:
    """Draw Val Dice against the logarithm of the seconds: a line per run, a colour per contestant."""
    axes = Axes.around([p["seconds"] for of in runs for p in of.points])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="system-ui, sans-serif" font-size="12" fill="#1d232b">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        *axes.drawn(),
        line(LEFT, axes.y(target), AXIS_END, axes.y(target), "#5b6673", ' stroke-dasharray="5 4"'),
        text(LEFT, TOP - 8, f"mean Val Dice (dashed: {target:g})"),
    ]
    for place, name in enumerate(names):
        left, y = AXIS_END + 14, TOP + 20 + 22 * place
        parts += [
            line(left, y - 4, left + 24, y - 4, COLOURS[name], ' stroke-width="2"'),
            text(left + 30, y, TITLES[name]),
        ]
    for of in runs:
        points = " ".join(f"{axes.x(p['seconds']):.1f},{axes.y(p['dice']):.1f}" for p in of.points)
        look = f'fill="none" stroke="{COLOURS[of.name]}" stroke-width="1.6"'
        parts.append(f'<polyline points="{points}" {look}/>')
    return "\n".join([*parts, "</svg>"])


class Axes(NamedTuple):
    """Seconds from left to right, with their logarithms from `low` to `high`; Dice from 0 to 1 upwards."""

    low: float
    high: float

    @classmethod
    def around(cls, seconds: Sequence[float]) -> "Axes":
        return cls(math.log10(min(seconds, default=1.0) / 1.1), math.log10(max(seconds, default=1.0) * 1.1))

    def x(self, seconds: float) -> float:
        return LEFT + (math.log10(seconds) - self.low) / (self.high - self.low) * (AXIS_END - LEFT)

    def y(self, dice: float) -> float:
        return BASE - dice * (BASE - TOP)

    def drawn(self) -> Iterator[str]:
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        for tick in (times * 10.0**power for power in powers for times in (1, 2, 5)):
            if self.low <= math.log10(tick) <= self.high:
                yield line(self.x(tick), TOP, self.x(tick), BASE)
                yield text(self.x(tick), BASE + 18, f"{tick:g}", "middle")
        for dice in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
            yield line(LEFT, self.y(dice), AXIS_END, self.y(dice))
            yield text(LEFT - 8, self.y(dice) + 4, f"{dice:.1f}", "end")
        yield text((LEFT + AXIS_END) / 2, HEIGHT - 10, "seconds of training, without validation", "middle")


def line(x1: float, y1: float, x2: float, y2: float, colour: str = "#e3e7ec", more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{more}/>'


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'
