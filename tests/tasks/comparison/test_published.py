from tasks.comparison.consistency import MAE_BOUND
from tasks.comparison.published import REPORT_1


def test_printed_mae_is_beyond_the_bound() -> None:
    assert sum(printed.scores["mae_255"] > MAE_BOUND for printed in REPORT_1) == 1


def test_both_losses_of_report_1_have_one_iou() -> None:
    assert {printed.scores["iou"] for printed in REPORT_1} == {0.138}
