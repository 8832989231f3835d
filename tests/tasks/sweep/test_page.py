"""The page, the table and the picture of a sweep."""

import csv
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tasks.sweep.charts import curves, fronts
from tasks.sweep.document import Cost, Estimate, Sweep, SweepKey, TrialResult
from tasks.sweep.page import markdown_table, opening, render_curve, render_page, write_results
from tasks.sweep.space import Settings

#: Elements that load something, or that run.
FORBIDDEN = {"script", "iframe", "object", "embed", "form", "base"}


def made(points: list[Settings], scores: list[float], level: int = 1, **more: Any) -> Sweep:
    """A sweep whose first trial is the best, and the next `level` cannot be told from it."""
    trials = tuple(
        TrialResult(
            name=f"report1_bce_iou-{number}",
            experiment="report1_bce_iou",
            settings=point,
            score=Estimate(value=score, low=score - 0.03, high=score + 0.03),
            seed_scores=(score - 0.01, score + 0.01),
            behind=Estimate(value=scores[0] - score, low=-0.01, high=0.04) if number else None,
            verdict="level" if 0 < number <= level else "worse" if number else "best",
            cost=Cost(parameters=1000 * (number % 2 + 1), megabytes=0.5 * (number % 2 + 1), milliseconds=3.5),
            on_front=number < 2,
        )
        for number, (point, score) in enumerate(zip(points, scores, strict=True))
    )
    values: dict[str, Any] = {
        "name": "sweep-alpha", "revision": "HEAD", "commit": "c0ffee" * 6 + "c0ff",
        "experiments": ("report1_bce_iou",), "method": "grid", "sampler_seed": 0, "round": None,
        "swept": tuple(SweepKey(name=name, is_range=False, is_log=False) for name in points[0]),
        "preset": None, "changes": (), "seeds": 2, "selection": "all", "targets": ("infection",),
        "classes": ("COVID-19",), "images": 466, "covers_training": True, "phantoms": False,
        "device": "CPU", "trials": trials,
    }  # fmt: skip
    return Sweep(**values | more)


ALPHA = made([{"alpha": value} for value in (0.25, 0.5, 0, 1)], [0.71, 0.70, 0.65, 0.6])


class _Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("href", "src")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._cell = tag in ("td", "th", "wbr")

    def handle_data(self, data: str) -> None:
        if self._cell and self.rows:
            self.rows[-1][-1] += data.strip()

    def handle_endtag(self, tag: str) -> None:
        self._cell = False


def test_the_page_is_self_contained_and_lists_the_trials() -> None:
    page = _Page(render_page(ALPHA))
    assert not FORBIDDEN & set(page.tags)
    assert page.links == ["data:,", "trials.csv", "sweep.json"]
    heading, *rows = page.rows
    assert heading == [
        "alpha", "Val score", "SD over seeds", "Behind the best", "Verdict", "ms per image", "MB",
        "Parameters", "Pareto front",
    ]  # fmt: skip
    assert [row[:2] for row in rows] == [["0.25", "0.710"], ["0.5", "0.700"], ["0", "0.650"], ["1", "0.600"]]
    assert [row[4] for row in rows] == ["best", "not distinguishable", "worse", "worse"]
    assert rows[1][3] == "+0.010"
    assert rows[0][5:] == ["3.5", "0.50", "1,000", "yes"]


def test_the_opening_says_what_is_sure() -> None:
    first, second = opening(ALPHA)
    assert first == "Best on the Val split: alpha 0.25, with mean Dice 0.710 (95% interval 0.680 to 0.740)."
    assert second == (
        "Of the 3 other trials, 1 cannot be distinguished from it, because the interval of the difference "
        "includes zero: alpha 0.5."
    )
    points, scores = [{"alpha": 0}, {"alpha": 1}], [0.7, 0.6]
    assert "No other trial can be distinguished" in opening(made(points, scores))[1]
    assert "Every other trial is worse" in opening(made(points, scores, level=0))[1]
    assert opening(made(points[:1], scores[:1]))[1] == "There is only one trial."
    assert "With --seeds 3" in opening(made(points, scores, covers_training=False))[2]


def test_nothing_is_said_of_test_images_but_that_they_play_no_part() -> None:
    page = re.sub(r"(?s)<style>.*?</style>", "", render_page(ALPHA))
    assert re.findall(r"\bTest\b[^.]*", page) == ["Test images play no part"]


@pytest.mark.parametrize("words", ["<script>alert(1)</script>", "a & b"])
def test_values_are_escaped(words: str) -> None:
    page = render_page(made([{"loss": words}, {"loss": "bce"}], [0.7, 0.6]))
    assert words not in page


def test_a_curve_has_a_dot_for_each_trial_and_a_line_for_each_other_setting() -> None:
    points = [{"alpha": alpha, "width": width} for width in (8, 16) for alpha in (0, 0.5, 1)]
    alpha, width = curves(made(points, [0.7, 0.69, 0.68, 0.67, 0.66, 0.65]))
    assert (alpha.title, len(alpha.dots), [line.label for line in alpha.lines]) == (
        "alpha",
        6,
        ["width 8", "width 16"],
    )
    assert [tick.label for tick in alpha.x_ticks] == ["0", "0.5", "1"]
    assert len(width.lines) == 3
    places = {dot.words.partition(":")[0]: (dot.x, dot.y) for dot in alpha.dots}
    best, last = places["report1_bce_iou-0"], places["report1_bce_iou-5"]
    assert best[0] < last[0] and best[1] < last[1]  # y grows downwards
    assert {dot.role for dot in alpha.dots} == {"best", "level", "worse"}


def test_a_wide_range_has_a_logarithmic_axis_and_no_line() -> None:
    key = SweepKey(name="learning_rate", is_range=True, is_log=True)
    points = [{"learning_rate": value} for value in (1e-4, 1e-3, 1e-2)]
    (chart,) = curves(made(points, [0.7, 0.6, 0.5], swept=(key,)))
    places = sorted(dot.x for dot in chart.dots)
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.02)
    assert chart.lines == ()
    assert [tick.label for tick in chart.x_ticks][::3] == ["0.0001", "0.001", "0.01"]


def test_words_and_lists_are_categories_and_a_constant_key_has_no_chart() -> None:
    points = [{"loss": loss, "width": 8, "train_classes": ["Normal"]} for loss in ("bce", "dice")]
    (chart,) = curves(made(points, [0.7, 0.6]))
    assert [tick.label for tick in chart.x_ticks] == ["bce", "dice"]
    assert render_curve(made(points[:1], [0.7])) is None


def test_the_front_is_drawn_where_costs_differ() -> None:
    (chart,) = fronts(ALPHA)  # all have the same milliseconds
    assert chart.title == "Size of the weights in MB"
    assert [dot.role for dot in chart.dots] == ["front", "front", "behind", "behind"]


def test_the_results_are_a_page_a_table_a_picture_and_a_document(tmp_path: Path) -> None:
    write_results(ALPHA, tmp_path)
    assert Sweep.read(tmp_path) == ALPHA
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert [(row["alpha"], row["score"], row["verdict"]) for row in rows[:2]] == [
        ("0.25", "0.71", "best"),
        ("0.5", "0.7", "level"),
    ]
    assert (rows[0]["behind"], rows[1]["behind_low"], rows[1]["seeds"]) == ("", "-0.01", "2")
    picture = ET.parse(tmp_path / "curve.svg").getroot()
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(picture.findall(".//{*}circle[@class='mean']")) == 4


def test_the_markdown_table_has_a_row_for_each_trial() -> None:
    lines = markdown_table(ALPHA).splitlines()
    assert lines[0].startswith("| alpha | Val score | 95% interval |")
    assert lines[2].startswith("| 0.25 | 0.710 | 0.680 to 0.740 |  | best |")
    assert len(lines) == 2 + 4
