import base64
import io

import numpy as np
import pytest
from PIL import Image

from tasks.reporting import charts as figures


def test_overlay_distinguishes_hits_false_alarms_and_misses() -> None:
    reference, predicted = np.zeros((2, 64, 64), bool)
    reference[8:40, 8:40] = True
    predicted[24:56, 24:56] = True
    uri = figures.prediction_overlay(reference, predicted)
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        codes, colours = np.asarray(picture), picture.convert("RGBA")
    assert codes[30, 30] == figures.HIT and codes[50, 50] == figures.FALSE_ALARM
    assert codes[12, 12] == figures.MISS and codes[8, 20] == figures.OUTLINE
    assert codes[7, 20] == figures.HALO and codes[60, 4] == figures.CLEAR
    assert colours.getpixel((4, 60))[3] == 0  # type: ignore[index]
    assert colours.getpixel((30, 30)) == (86, 180, 233, 120)


@pytest.mark.parametrize(
    ("high", "expected"),
    [
        (1.0, [0, 0.25, 0.5, 0.75, 1.0]),
        (0.53, [0, 0.2, 0.4, 0.6]),
        (83, [0, 25, 50, 75, 100]),
        (0.0, [0, 0.25, 0.5, 0.75, 1.0]),
        (float("nan"), [0, 0.25, 0.5, 0.75, 1.0]),
    ],
)
def test_ticks_are_round_and_reach_the_highest_value(high: float, expected: list[float]) -> None:
    assert figures.ticks(high) == expected


def test_agreement_is_drawn_over_the_unit_square() -> None:
    line = figures.Curve("validation", [0.0, 1.0], [0.5, float("nan")])
    chart = figures.agreement("a", "words", "x", lines=[line], dots=[(0.0, 1.0)])
    diagonal, drawn = chart.lines
    assert diagonal.points == "32,145 243,24"
    assert drawn.points == "32,84.5 32,84.5", "a gap where a value is not finite"
    assert chart.dots == "M32 24h0"
