"""Draw a history as an SVG picture and as Markdown, for the Prefect UI."""

import math
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

from flows.curves.histories import FILE, History
from flows.curves.terminal import heading, scores

#: Colours of lines, distinct for colour-blind readers (Okabe and Ito, 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")

#: The picture's size relative to the charts' drawing units.
SCALE = 1.8

#: Seen by programs, which read the history from the Markdown.
TABLE = re.compile(r"^```csv\n(?P<table>seed,epoch,.*?\n)```$", re.MULTILINE | re.DOTALL)


def as_markdown(history: History, text: str) -> str:
    """Return a page with the curves, and with history.csv, whose content is `text`."""
    found = scores(history)
    picture = b64encode(as_svg(history).encode()).decode()
    return (
        f"# {history.training}\n\n{heading(history)}. {found[:1].upper()}{found[1:]}.\n\n"
        f"![Curves of {history.training}](data:image/svg+xml;base64,{picture})\n\n"
        f"## {FILE}\n\n```csv\n{text}```\n"
    )


def table_in(markdown: str) -> str | None:
    """Return the history.csv in a page of `as_markdown`, or None if it has none."""
    found = TABLE.search(markdown)
    return found["table"] if found else None


def as_svg(history: History) -> str:
    """Draw both losses, and the Val Dice of each target, over the epochs."""
    losses = {"train": history.of("train_loss"), "val": history.of("val_loss")}
    dice = {
        column.removeprefix("val_dice").strip("_") or "Dice": history.of(column)
        for column in history.dice_columns()
    }
    finite = [value for values in losses.values() for value in values if math.isfinite(value)]
    charts = [
        _chart(history, "Loss", losses, max(finite, default=1.0)),
        _chart(history, "Val Dice", dice, 1.0),
    ]
    from tasks.reporting.charts import HEIGHT, WIDTH

    width, height = len(charts) * WIDTH, HEIGHT
    placed = [f'<g transform="translate({n * WIDTH:g} 0)">{chart}</g>' for n, chart in enumerate(charts)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width * SCALE:g}" height="{height * SCALE:g}" font-family="system-ui, sans-serif" '
        f'font-size="8" fill="#1d232b"><rect width="100%" height="100%" fill="#fff"/>{"".join(placed)}</svg>'
    )


def _chart(history: History, title: str, series: Mapping[str, Sequence[float]], high: float) -> str:
    # It imports NumPy and Pillow, which a flow without a training does not need.
    from tasks.reporting import charts

    roles = list(series)
    drawn = charts.curves(
        title,
        [charts.Curve(role, history.epochs, values) for role, values in series.items()],
        last_epoch=history.span,
        y_high=high,
        best_epoch=history.best_epoch,
    )
    parts = [_text(charts.LEFT, 10, drawn.title, weight="600")]
    for place, role in enumerate(roles):
        x = charts.LEFT + 90 + 60 * place
        parts += [_line(f"{x},8 {x + 12},8", COLOURS[place]), _text(x + 15, 10, role)]
    for tick in drawn.y_ticks:
        parts.append(_line(f"{charts.LEFT},{tick.at} {charts.RIGHT},{tick.at}", "#e3e6ea", 0.5))
        parts.append(_text(charts.LEFT - 3, tick.at + 3, tick.label, anchor="end"))
    parts += [_text(tick.at, charts.BOTTOM + 11, tick.label, anchor="middle") for tick in drawn.x_ticks]
    parts.append(_text(charts.RIGHT, charts.BOTTOM + 22, drawn.x_label, anchor="end"))
    if mark := drawn.mark:
        parts.append(_line(f"{mark.x},{charts.TOP} {mark.x},{charts.BOTTOM}", "#9aa3ad", 0.5))
        parts.append(_text(mark.x, charts.TOP - 4, mark.label, anchor=mark.anchor))
    parts += [_line(line.points, COLOURS[roles.index(line.role)]) for line in drawn.lines]
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "400") -> str:
    at = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {at}>{escape(text)}</text>"


def _line(points: str, colour: str, width: float = 1.3) -> str:
    return (
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}" '
        'stroke-linecap="round" stroke-linejoin="round"/>'
    )
