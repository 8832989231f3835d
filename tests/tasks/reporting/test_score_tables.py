import math

from tasks.comparison.document import Bounds, Score, ScoreRow
from tasks.reporting.score_tables import MAIN_COLUMNS, Cell, _cells, _tells

COLUMNS = {metric: MAIN_COLUMNS[metric] for metric in ("iou", "mae", "missed")}


def row(**values: float) -> ScoreRow:
    scores = {metric: Score(value=value) for metric, value in values.items()}
    return ScoreRow(name="a", kind="experiment", images=9, scores=scores)


def test_best_is_decided_on_displayed_digits() -> None:
    rivals = [
        row(iou=0.70001, mae=0.2, missed=0.01),
        row(iou=0.70002, mae=0.1, missed=math.nan),
        row(iou=0.5, mae=0.3),
    ]
    marks = [[cell.best for cell in _cells(one, COLUMNS, 1, rivals)] for one in rivals]
    assert marks == [[True, False, False], [True, True, False], [False, False, False]]
    score = Score(value=0.70001, interval=Bounds(low=0.6, high=0.8), seed_sd=0.01)
    noted = rivals[0].model_copy(update={"scores": {"iou": score}})
    notes = ("0.600–0.800", "SD 0.010", "2 seeds")
    assert _cells(noted, {"iou": COLUMNS["iou"]}, 2) == (Cell("0.700", notes),)


def test_column_without_information_is_omitted() -> None:
    assert not _tells("missed", [row(iou=0.5), row(missed=math.nan)])
    assert not _tells("iou_nonempty", [row(iou=0.5, iou_nonempty=0.5)])
    assert _tells("iou_nonempty", [row(iou=0.5, iou_nonempty=0.5), row(iou=0.5, iou_nonempty=0.6)])
