import math
from types import SimpleNamespace

from tasks.comparison.document import Bounds, ImageSet, Score, ScoreRow
from tasks.reporting.score_tables import (
    MAIN_COLUMNS,
    MORE_COLUMNS,
    Cell,
    _cells,
    _heading,
    _repeats_main,
    _tells,
)

ALL = MAIN_COLUMNS | MORE_COLUMNS
COLUMNS = {metric: ALL[metric] for metric in ("iou", "mae", "missed")}


def row(**values: float) -> ScoreRow:
    scores = {metric: Score(value=value) for metric, value in values.items()}
    return ScoreRow(name="a", kind="experiment", images=9, scores=scores)


def test_best_is_decided_on_displayed_digits() -> None:
    rivals = [
        row(iou=0.70001, mae=0.2, missed=0.01),
        row(iou=0.70002, mae=0.1, missed=math.nan),
        row(iou=0.5, mae=0.3),
    ]
    image_set = ImageSet(name="covid", rows=tuple(rivals))
    marks = [[cell.best for cell in _cells(image_set, one, COLUMNS, rivals)] for one in rivals]
    assert marks == [[True, False, False], [True, True, False], [False, False, False]]
    score = Score(value=0.70001, interval=Bounds(low=0.6, high=0.8), seed_sd=0.01)
    noted = rivals[0].model_copy(update={"scores": {"iou": score}})
    notes = ("0.600–0.800", "SD 0.010")
    assert _cells(image_set, noted, {"iou": COLUMNS["iou"]}) == (Cell("0.700", notes),)


def test_no_value_is_best_where_all_are_the_same() -> None:
    rows = (row(missed=0.00001), row(missed=0.0))
    column = {"missed": COLUMNS["missed"]}
    image_set = ImageSet(name="covid", rows=rows)
    assert [_cells(image_set, one, column, rows) for one in rows] == [(Cell("0.0%"),)] * 2


def test_no_value_is_best_where_scores_are_over_different_images() -> None:
    scores = [Score(value=value, images=images) for value, images in ((39.4, 407), (42.5, 486))]
    rows = tuple(row().model_copy(update={"scores": {"hd95": score}}) for score in scores)
    image_set = ImageSet(name="covid", rows=rows)
    found = [_cells(image_set, one, {"hd95": ALL["hd95"]}, rows) for one in rows]
    assert found == [(Cell("39.4", ("407 images",)),), (Cell("42.5", ("486 images",)),)]


def test_number_of_images_is_in_the_heading_if_it_is_the_same_in_each_row() -> None:
    def counted(*images: int) -> ImageSet:
        rows = [row().model_copy(update={"scores": {"hd95": Score(value=1, images=n)}}) for n in images]
        return ImageSet(name="all", rows=tuple(rows))

    column = {"hd95": ALL["hd95"]}
    assert _heading(ALL["hd95"], counted(1200, 1200), "hd95") == "HD95, px, 1,200 images"
    assert _heading(ALL["hd95"], counted(5, 6), "hd95") == "HD95, px"
    same, differing = counted(5, 5), counted(5, 6)
    assert _cells(same, same.rows[0], column) == (Cell("1.0", ()),)
    assert _cells(differing, differing.rows[0], column) == (Cell("1.0", ("5 images",)),)


def test_column_without_information_is_omitted() -> None:
    assert not _tells("missed", [row(iou=0.5), row(missed=math.nan)])
    assert not _tells("iou_nonempty", [row(iou=0.5, iou_nonempty=0.5)])
    assert _tells("iou_nonempty", [row(iou=0.5, iou_nonempty=0.5), row(iou=0.5, iou_nonempty=0.6)])


def test_only_scores_over_the_main_images_are_repeats() -> None:
    """Of as many controls as COVID-19 images, of which no lung is missed either."""

    def image_set(name: str, images: int, **scores: Score) -> ImageSet:
        return ImageSet(
            name=name, rows=(ScoreRow(name="a", kind="experiment", images=images, scores=scores),)
        )

    missed, iou = Score(value=0.0), Score(value=0.6)
    covid = image_set("covid", 5, missed=missed, iou=iou)
    controls = image_set("controls", 5, missed=missed, iou=Score(value=0.7))
    on_five = Score(value=0.6, images=5)
    every = image_set(
        "all", 10, missed=Score(value=0.0, images=5), iou_nonempty=on_five, iou=Score(value=0.8)
    )
    section = SimpleNamespace(main=covid)
    assert [m for m in ALL if m in covid.rows[0].scores and _repeats_main(section, controls, m)] == []
    assert [m for m in ALL if _repeats_main(section, every, m)] == ["missed", "iou_nonempty"]
