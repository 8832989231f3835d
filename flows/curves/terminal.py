"""Draw a history as lines of text, with braille characters: 2 by 4 dots in each."""

import math
from collections.abc import Iterator, Sequence

from flows.curves.histories import History, State

#: Rows of characters of a chart.
ROWS = 5

#: Characters of the labels left of a chart, and between two charts.
LABEL, GAP = 7, 2

#: Charts beside each other. Both losses share their axis.
CHARTS = (("train loss", "train_loss"), ("val loss", "val_loss"), ("val score", "val_score"))

#: Largest number of characters of a chart with its labels.
WIDEST = 60

#: Bits of the dots of a braille character, from top to bottom; left and right.
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))

BRAILLE = 0x2800


def draw(history: History, width: int) -> list[str]:
    """Return the lines of a history, none longer than `width`. It has charts once an epoch has ended."""
    lines = [heading(history)]
    if history.last_epoch:
        lines += [scores(history), *_charts(history, width)]
    return [line[:width].rstrip() for line in lines]


def heading(history: History) -> str:
    """Return a line with the state of a training."""
    of = f" of {history.planned}" if history.planned else ""
    return f"{history.name}: {history.state}, epoch {history.last_epoch}{of}"


def scores(history: History) -> str:
    """Return a line with the best score, and the latest Dice of each target."""
    words = []
    if best := history.best_epoch:
        words.append(f"best val score {history.at('val_score', best):.4f} in epoch {best}")
    dice = {column: history.at(column, history.last_epoch) for column in history.dice_columns()}
    named = [
        f"{column.removeprefix('val_dice').strip('_')} {value:.4f}"
        for column, value in dice.items()
        if math.isfinite(value)
    ]
    if named:
        words.append(f"val Dice {', '.join(name.strip() for name in named)}")
    return ", ".join(words)


def _charts(history: History, width: int) -> list[str]:
    each = min(WIDEST, (width - GAP * (len(CHARTS) - 1)) // len(CHARTS))
    losses = [*history.of("train_loss"), *history.of("val_loss")]
    charts = [
        _chart(
            title,
            history.epochs,
            history.of(column),
            history.span,
            _limits(losses if column.endswith("loss") else history.of(column)),
            each,
        )
        for title, column in CHARTS
    ]
    return [(" " * GAP).join(row) for row in zip(*charts, strict=True)]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The smallest and largest of the values. NaN and infinite ones do not count."""
    finite = [value for value in values if math.isfinite(value)]
    return (min(finite), max(finite)) if finite else (0.0, 1.0)


def _chart(
    title: str,
    epochs: Sequence[int],
    values: Sequence[float],
    span: int,
    limits: tuple[float, float],
    width: int,
) -> list[str]:
    """The lines of a chart, of `width` characters: the title, the rows, the first and last epoch."""
    cells = max(1, width - LABEL - 1)
    low, high = limits
    labels = [f"{high:.4f}", *[""] * (ROWS - 2), f"{low:.4f}"]
    x = [(epoch - 1) / max(span - 1, 1) for epoch in epochs]
    y = [(value - low) / ((high - low) or 1.0) for value in values]
    rows = [f"{label:>{LABEL}}│{row}" for label, row in zip(labels, curve(x, y, cells, ROWS), strict=True)]
    axis = f"1{f'epoch {span}':>{max(1, cells - 1)}}"
    return [f"{title:^{width}}", *(f"{row:<{width}}" for row in rows), f"{'':>{LABEL + 1}}{axis}"[:width]]


def curve(x: Sequence[float], y: Sequence[float], cells: int, rows: int) -> list[str]:
    """Draw a line through points with coordinates 0 to 1, y upwards, in `rows` rows of `cells` characters.

    Points that are not finite leave a gap.
    """
    bits = [[0] * cells for _ in range(rows)]
    for column, height in _dots(x, y, 2 * cells, 4 * rows):
        row = 4 * rows - 1 - height
        bits[row // 4][column // 2] |= DOTS[row % 4][column % 2]
    return ["".join(chr(BRAILLE + cell) if cell else " " for cell in row) for row in bits]


def _dots(x: Sequence[float], y: Sequence[float], width: int, height: int) -> Iterator[tuple[int, int]]:
    """The dots of the line: column from the left, height from the bottom."""
    before: tuple[int, int] | None = None
    for share, value in zip(x, y, strict=True):
        if not math.isfinite(value):
            before = None
            continue
        dot = round(share * (width - 1)), round(value * (height - 1))
        start = before or dot
        steps = max(abs(dot[0] - start[0]), abs(dot[1] - start[1]), 1)
        for step in range(steps + 1):
            at = step / steps
            yield round(start[0] + at * (dot[0] - start[0])), round(start[1] + at * (dot[1] - start[1]))
        before = dot


def frame(histories: Sequence[History], width: int, height: int | None = None) -> list[str]:
    """Return the lines of all histories, at most `height`. Those that do not fit have no charts.

    Running trainings come first, then stopped and finished ones.
    """
    order = [State.RUNNING, State.STOPPED, State.FINISHED]
    ranked = sorted(histories, key=lambda history: order.index(history.state))
    left = math.inf if height is None else height - len(ranked)
    lines: list[str] = []
    for history in ranked:
        block = [*draw(history, width), ""]
        if len(block) - 1 <= left:
            left -= len(block) - 1
            lines += block
        else:
            lines.append(heading(history)[:width])
    return lines if height is None else lines[:height]
