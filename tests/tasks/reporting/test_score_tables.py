import math

from tasks.reporting.score_tables import MAIN_COLUMNS, Cell, _cells, _tells

COLUMNS = {metric: MAIN_COLUMNS[metric] for metric in ("iou", "mae", "missed")}


def test_the_best_of_a_column_is_marked_as_printed() -> None:
    rivals = [
        {"iou": 0.70001, "mae": 0.2, "missed": 0.01},
        {"iou": 0.70002, "mae": 0.1, "missed": math.nan},
        {"iou": 0.5, "mae": 0.3},
    ]
    marks = [[cell.best for cell in _cells(scores, COLUMNS, {}, rivals)] for scores in rivals]
    assert marks == [[True, False, False], [True, True, False], [False, False, False]]
    assert _cells(rivals[0], COLUMNS, {"iou": ("0.6–0.8",)})[0] == Cell("0.700", ("0.6–0.8",))


def test_a_column_stands_only_where_it_tells_something() -> None:
    assert not _tells("missed", [{"iou": 0.5}, {"missed": math.nan}])
    assert not _tells("iou_nonempty", [{"iou": 0.5, "iou_nonempty": 0.5}])
    assert _tells("iou_nonempty", [{"iou": 0.5, "iou_nonempty": 0.5}, {"iou": 0.5, "iou_nonempty": 0.6}])
