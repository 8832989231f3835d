"""The charts of a sweep as plain geometry, which the template draws as SVG."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from tasks.reporting.words import formatted
from tasks.sweep.document import Sweep, SweepKey, TrialResult

WIDTH, HEIGHT = 640.0, 330.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 620.0, 34.0, 278.0

#: Charts with more lines than this would be unreadable, and have dots only.
MOST_LINES = 6

#: Two labels of the x axis are at least this far apart.
LABEL_WIDTH = 44.0

#: Characters of a label of the x axis.
LABEL_LENGTH = 18


class Tick(NamedTuple):
    at: float
    label: str


class Dot(NamedTuple):
    x: float
    y: float
    role: str
    """Class in the style sheet: `best`, `level`, `worse`, or `front` and `behind` the front."""
    words: str
    low: float | None = None
    high: float | None = None
    """Where its interval ends."""
    seeds: tuple[float, ...] = ()


class Line(NamedTuple):
    number: int
    """Which colour and dash it has, from 0."""
    points: str
    label: str


class Chart(NamedTuple):
    title: str
    alt: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    dots: tuple[Dot, ...]
    lines: tuple[Line, ...] = ()


#: A place on an axis for a value.
Place = Callable[[Any], float]


def curves(sweep: Sweep) -> list[Chart]:
    """For each swept key that has several values, the score of every trial against the value."""
    keys = [
        key
        for key in sweep.swept
        if len({value_words(trial.settings[key.name]) for trial in sweep.trials}) > 1
    ]
    return [_curve(sweep, key) for key in keys]


def fronts(sweep: Sweep) -> list[Chart]:
    """The score of every trial against its time and its size, where trials differ in these."""
    axes: dict[str, list[float | None]] = {
        "Milliseconds per image": [trial.cost.milliseconds for trial in sweep.trials],
        "Size of the weights in MB": [*(trial.cost.megabytes for trial in sweep.trials)],
    }
    return [
        _front(sweep, label, [value for value in values if value is not None])
        for label, values in axes.items()
        if len(set(values)) > 1 and None not in values
    ]


def _curve(sweep: Sweep, key: SweepKey) -> Chart:
    values = [trial.settings[key.name] for trial in sweep.trials]
    x, x_ticks = _axis(key, values)
    y, y_ticks = _score_axis(sweep.trials)
    dots = tuple(_dot(trial, x(trial.settings[key.name]), y, trial.verdict) for trial in sweep.ranking[::-1])
    best = sweep.best
    words = f"best: {key.name} {value_words(best.settings[key.name])} with {formatted(best.score.value)}"
    return Chart(
        title=key.name,
        alt=f"Val score against {key.name}, {len(dots)} trials; {words}",
        x_label=key.name,
        y_label="Val score",
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        dots=dots,
        lines=_lines(sweep, key, x, y),
    )


def _front(sweep: Sweep, label: str, costs: Sequence[float]) -> Chart:
    low, high = min(costs), max(costs)
    x, x_ticks = _linear(low - 0.05 * (high - low), high + 0.05 * (high - low))
    y, y_ticks = _score_axis(sweep.trials)
    dots = tuple(
        _dot(trial, x(cost), y, "front" if trial.on_front else "behind")
        for trial, cost in zip(sweep.trials, costs, strict=True)
    )
    on_front = ", ".join(trial.name for trial in sweep.ranking if trial.on_front)
    alt = f"Val score against {label}, {len(dots)} trials; on the Pareto front: {on_front}"
    return Chart(label, alt, label, "Val score", x_ticks, y_ticks, dots)


def _dot(trial: TrialResult, x: float, y: Place, role: str) -> Dot:
    score = trial.score
    bounds = f" ({formatted(score.low)} to {formatted(score.high)})" if score.low is not None else ""
    return Dot(
        x,
        y(score.value),
        role,
        f"{trial.name}: {formatted(score.value)}{bounds}",
        None if score.low is None else y(score.low),
        None if score.high is None else y(score.high),
        tuple(y(value) for value in trial.seed_scores) if len(trial.seed_scores) > 1 else (),
    )


def _lines(sweep: Sweep, key: SweepKey, x: Place, y: Place) -> tuple[Line, ...]:
    """A line through the trials that differ in this key only; none where there are many such groups."""
    if key.is_range:
        return ()
    groups: dict[str, list[TrialResult]] = {}
    for trial in sweep.trials:
        others = [
            f"{name} {value_words(value)}" for name, value in trial.settings.items() if name != key.name
        ]
        experiment = [trial.experiment] if len(sweep.experiments) > 1 else []
        groups.setdefault(", ".join([*experiment, *others]), []).append(trial)
    if len(groups) > MOST_LINES:
        return ()
    return tuple(
        Line(number, _points((x(one.settings[key.name]), y(one.score.value)) for one in trials), label)
        for number, (label, trials) in enumerate(groups.items())
        if len(trials) > 1
    )


def _points(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in sorted(points))


# --- axes ---------------------------------------------------------------------------------------------------


def _axis(key: SweepKey, values: Sequence[Any]) -> tuple[Place, tuple[Tick, ...]]:
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return _categories(values)
    low, high = min(values), max(values)
    place, ticks = _logarithmic(low, high) if key.is_log and low > 0 else _linear(low, high)
    if key.is_range:
        return place, ticks
    shown: list[Tick] = []
    for value in sorted(set(values)):
        if not shown or place(value) - shown[-1].at >= LABEL_WIDTH:
            shown.append(Tick(place(value), value_words(value)))
    return place, tuple(shown)


def _categories(values: Sequence[Any]) -> tuple[Place, tuple[Tick, ...]]:
    labels = list(dict.fromkeys(value_words(value) for value in values))
    step = (RIGHT - LEFT) / len(labels)
    places = {label: round(LEFT + (number + 0.5) * step, 2) for number, label in enumerate(labels)}
    return lambda value: places[value_words(value)], tuple(
        Tick(at, label if len(label) <= LABEL_LENGTH else f"{label[: LABEL_LENGTH - 1]}…")
        for label, at in places.items()
    )


def _linear(low: float, high: float) -> tuple[Place, tuple[Tick, ...]]:
    margin = 16.0
    scale = (RIGHT - LEFT - 2 * margin) / (high - low)

    def place(value: float) -> float:
        return round(LEFT + margin + (value - low) * scale, 2)

    return place, tuple(Tick(place(value), f"{value:g}") for value in _round_values(low, high))


def _logarithmic(low: float, high: float) -> tuple[Place, tuple[Tick, ...]]:
    linear, _ = _linear(math.log(low), math.log(high))

    def place(value: float) -> float:
        return linear(math.log(value))

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 3 else (1,)
    values = [factor * 10.0**decade for decade in decades for factor in factors]
    return place, tuple(Tick(place(value), f"{value:g}") for value in values if low <= value <= high)


def _score_axis(trials: Sequence[TrialResult]) -> tuple[Place, tuple[Tick, ...]]:
    ends = [end for trial in trials for end in (trial.score.low, trial.score.high, *trial.seed_scores)]
    known = [end for end in ends if end is not None]
    low, high = min(known), max(known)
    margin = max(0.06 * (high - low), 0.002)
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        return round(BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP), 2)

    return place, tuple(Tick(place(value), f"{value:g}") for value in _round_values(low, high))


def _round_values(low: float, high: float, count: int = 5) -> list[float]:
    """Round values from `low` to `high`, about `count`."""
    rough = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * number, 12) + 0.0 for number in range(first, last + 1)]


def value_words(value: Any) -> str:
    """A value as in the user's command."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(value_words, value))}]"
    return "null" if value is None else str(value)
