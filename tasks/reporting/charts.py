"""The report's pictures and charts, made from arrays and tables.

Pictures become PNG data URIs: each X-ray once, and a small palette image as an overlay for each mask. Charts
become plain geometry, which the template draws as inline SVG. The page's style sheet can then colour them for
light mode, dark mode and print, and their labels stay text.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Mask = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.uint8]

# Fill colours of the overlay (RGB, opacity 0..255). Blue, vermilion and yellow (Okabe and Ito, 2008) remain
# distinct for colour-blind readers. The outline of the reference mask tells a miss from a false alarm
# without colour.
CLEAR, HIT, FALSE_ALARM, MISS, OUTLINE, HALO, REFERENCE = range(7)
PALETTE = {
    CLEAR: ((0, 0, 0), 0),
    HIT: ((86, 180, 233), 120),
    FALSE_ALARM: ((213, 94, 0), 150),
    MISS: ((240, 228, 66), 130),
    OUTLINE: ((255, 255, 255), 240),
    HALO: ((0, 0, 0), 150),  # around the outline, which would not be visible where the X-ray is white
    REFERENCE: ((255, 255, 255), 70),
}
LONGEST_SIDE = 512  # pixels; larger images are downscaled for the page


@dataclass(frozen=True)
class Picture:
    """An X-ray, referenced by key because the page embeds it once, with its caption and optional overlay."""

    xray: str
    width: int
    height: int
    overlay: str | None
    alt: str
    caption: str
    note: str = ""


@dataclass(frozen=True)
class XRay:
    key: str
    width: int
    height: int
    uri: str


def xray_picture(key: str, image: Pixels) -> XRay:
    """An X-ray (H, W) with values 0..255, in the form in which the page embeds it."""
    picture = Image.fromarray(image)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX)
    return XRay(key, picture.width, picture.height, _png_uri(picture))


def reference_overlay(reference: Mask) -> str:
    """The reference mask (H, W) as a PNG data URI: a light fill and an outline."""
    return _overlay(np.where(reference, REFERENCE, CLEAR), reference)


def prediction_overlay(reference: Mask, prediction: Mask) -> str:
    """Hits, false alarms and misses of `prediction`, with the outline of `reference` (both (H, W))."""
    codes = np.select([reference & prediction, prediction, reference], [HIT, FALSE_ALARM, MISS], CLEAR)
    return _overlay(codes, reference)


def spread_overlay(spread: Pixels) -> str:
    """A standard deviation (H, W), 0..255, as a PNG data URI: the larger, the more opaque."""
    colour, _ = PALETTE[FALSE_ALARM]
    # The square root makes small values visible.
    opacity = np.rint(255 * np.sqrt(spread / 255)).astype(np.uint8)
    layers = [*(np.full(spread.shape, level, np.uint8) for level in colour), opacity]
    picture = Image.fromarray(np.stack(layers, axis=-1))
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX)
    return _png_uri(picture)


def _overlay(codes: npt.NDArray[np.integer], reference: Mask) -> str:
    codes = np.select([outline(reference), outline(~reference)], [OUTLINE, HALO], codes)
    picture = Image.fromarray(codes.astype(np.uint8))
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.NEAREST)
    picture.putpalette([level for colour, _ in PALETTE.values() for level in colour])
    return _png_uri(picture, transparency=bytes(opacity for _, opacity in PALETTE.values()))


def outline(mask: Mask) -> Mask:
    """Pixels of a mask (H, W) that have a 4-neighbour outside it. The image border does not count."""
    padded = np.pad(mask, 1, mode="edge")
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def _png_uri(picture: Image.Image, transparency: bytes | None = None) -> str:
    buffer = io.BytesIO()
    extra = {} if transparency is None else {"transparency": transparency}
    picture.save(buffer, "PNG", optimize=True, **extra)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Tick:
    at: float  # in drawing units
    label: str


@dataclass(frozen=True)
class Line:
    role: str  # class name in the style sheet
    points: str


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Mark:
    x: float
    label: str
    anchor: str  # SVG text-anchor, chosen so that the label stays inside the drawing


@dataclass(frozen=True)
class Chart:
    """One small chart in a box of `WIDTH` x `HEIGHT` units; y grows downwards."""

    title: str
    alt: str
    x_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    dots: str = ""  # SVG path data, one zero-length segment per point
    mark: Mark | None = None


WIDTH, HEIGHT = 250.0, 180.0
LEFT, RIGHT, TOP, BOTTOM = 32.0, 243.0, 24.0, 145.0


@dataclass(frozen=True)
class Curve:
    role: str  # class name in the style sheet
    x: Sequence[float]
    y: Sequence[float]


def curves(title: str, found: Sequence[Curve], *, last_epoch: int, y_high: float, best_epoch: int) -> Chart:
    """Lines over epochs 1..`last_epoch` and values 0..`y_high`, with gaps at values that are not finite."""
    x_high = max(last_epoch, 2)  # a single epoch would have zero width
    y_ticks = ticks(y_high)
    lines = tuple(
        Line(curve.role, segment)
        for curve in found
        for segment in _segments([(epoch - 1) / (x_high - 1) for epoch in curve.x], curve.y, y_ticks[-1])
    )
    best = _x((best_epoch - 1) / (x_high - 1))
    anchor = "end" if best > (LEFT + RIGHT) / 2 else "start"
    return Chart(
        title=title,
        alt=_curve_words(title, found, best_epoch),
        x_label="epoch",
        x_ticks=tuple(Tick(_x((e - 1) / (x_high - 1)), str(e)) for e in _epoch_ticks(x_high)),
        y_ticks=_y_ticks(y_ticks),
        lines=lines,
        mark=Mark(best, f"best epoch {best_epoch}", anchor) if best_epoch else None,
    )


def agreement(
    title: str,
    alt: str,
    x_label: str,
    *,
    lines: Sequence[Curve] = (),
    dots: Sequence[tuple[float, float]] = (),
) -> Chart:
    """Lines and dots over 0..1 on both axes, with the diagonal on which the two axes agree."""
    diagonal = Curve("diagonal", (0, 1), (0, 1))
    return Chart(
        title=title,
        alt=alt,
        x_label=x_label,
        x_ticks=tuple(Tick(_x(value), f"{value:g}") for value in ticks(1.0)),
        y_ticks=_y_ticks(ticks(1.0)),
        lines=tuple(
            Line(curve.role, segment)
            for curve in (diagonal, *lines)
            for segment in _segments(curve.x, curve.y, 1.0)
        ),
        dots="".join(f"M{_x(x):g} {_y(y):g}h0" for x, y in dots),
    )


def over_share(title: str, alt: str, x_label: str, lines: Sequence[Curve], y_high: float) -> Chart:
    """Lines over 0..1 and values 0..`y_high`."""
    y_ticks = ticks(y_high)
    return Chart(
        title=title,
        alt=alt,
        x_label=x_label,
        x_ticks=tuple(Tick(_x(value), f"{value:g}") for value in ticks(1.0)),
        y_ticks=_y_ticks(y_ticks),
        lines=tuple(
            Line(curve.role, segment)
            for curve in lines
            for segment in _segments(curve.x, curve.y, y_ticks[-1])
        ),
    )


def histogram(title: str, counts: Sequence[int], *, median: float, y_high: float) -> Chart:
    """Number of images per score, in equal bins over 0..1, with the median marked."""
    y_ticks = ticks(y_high)
    step = (RIGHT - LEFT) / len(counts)
    bars = []
    for index, count in enumerate(counts):
        y = _y(count / y_ticks[-1])
        bars.append(Bar(round(LEFT + index * step + 0.5, 2), y, round(step - 1, 2), round(BOTTOM - y, 2)))
    return Chart(
        title=title,
        alt=f"{title}: histogram of {sum(counts)} images, median {median:.3f}",
        x_label="IoU of one image",
        x_ticks=tuple(Tick(_x(value), f"{value:g}") for value in (0, 0.2, 0.4, 0.6, 0.8, 1)),
        y_ticks=_y_ticks(y_ticks),
        bars=tuple(bars),
        mark=Mark(_x(median), f"median {median:.3f}", "end" if median > 0.5 else "start"),
    )


def ticks(high: float, count: int = 4) -> list[float]:
    """Round values from 0 in about `count` steps; the last is at or above `high`."""
    high = high if math.isfinite(high) and high > 0 else 1.0
    magnitude = 10 ** math.floor(math.log10(high / count))
    step = next(
        factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude * count >= high * 0.999
    )
    return [round(step * index, 10) for index in range(math.ceil(high / step - 1e-9) + 1)]


def _epoch_ticks(last: int) -> list[int]:
    step = max(1, round(ticks(last, 5)[1]))
    return [1, *(epoch for epoch in range(step, last + 1, step) if epoch > max(1, step / 2))]


def _y_ticks(values: Sequence[float]) -> tuple[Tick, ...]:
    return tuple(Tick(_y(value / values[-1]), f"{value:g}") for value in values)


def _segments(x: Sequence[float], values: Sequence[float], y_high: float) -> list[str]:
    segments: list[list[str]] = [[]]
    for share, value in zip(x, values, strict=True):
        if math.isfinite(value):
            segments[-1].append(f"{_x(share):g},{_y(value / y_high):g}")
        elif segments[-1]:
            segments.append([])
    return [" ".join(points * 2 if len(points) == 1 else points) for points in segments if points]


def _curve_words(title: str, found: Sequence[Curve], best_epoch: int) -> str:
    ends = "; ".join(f"{c.role} from {c.y[0]:.3f} to {c.y[-1]:.3f}" for c in found if len(c.y))
    return f"{title}: {ends}; best epoch {best_epoch or 'none'}"


def _x(share: float) -> float:
    return round(LEFT + share * (RIGHT - LEFT), 2)


def _y(share: float) -> float:
    return round(BOTTOM - share * (BOTTOM - TOP), 2)
