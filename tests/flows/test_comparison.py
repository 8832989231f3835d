from typing import Any

from flows.comparison import as_lines, as_rows, metric_changes


def metrics(iou: float, mae: float) -> dict[str, Any]:
    scores = {"iou": iou, "dice": 0.5, "mae": mae, "images": 7}
    return {"net": {"infection": {"covid": scores}}, "whole_lung": {"infection": {"covid": scores}}}


def test_larger_is_better_except_for_errors() -> None:
    scores = metric_changes(metrics(0.7, 0.2), metrics(0.6, 0.1), ["net"])
    assert [(score.metric, score.verdict) for score in scores] == [
        ("IoU", "better"),
        ("Dice", "same"),
        ("MAE", "worse"),
    ]


def test_metrics_missing_from_the_base_are_new() -> None:
    assert {score.verdict for score in metric_changes(metrics(0.7, 0.2), {}, ["net"])} == {"new"}


def test_a_row_names_the_base_and_marks_the_change() -> None:
    row = as_rows(metric_changes(metrics(0.7, 0.2), metrics(0.6, 0.2), ["net"]), "main (abc)")[0]
    assert row == {
        "experiment": "net",
        "target": "infection",
        "Test images": "COVID-19",
        "metric": "IoU",
        "this run": "0.7000",
        "main (abc)": "0.6000",
        "change": "+0.1000",
        "verdict": "▲ better",
    }


def test_there_is_one_line_per_experiment_target_and_image_set() -> None:
    assert as_lines(metric_changes(metrics(0.7, 0.2), metrics(0.6, 0.2), ["net"])) == [
        "net, infection on COVID-19 Test images: IoU 0.7000 (+0.1000), Dice 0.5000 (0), MAE 0.2000 (0)"
    ]
