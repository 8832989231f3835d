from tasks.comparison.consistency import MAE_BOUND
from tasks.comparison.published import REPORT_1


def test_one_printed_mae_exceeds_the_bound() -> None:
    assert sum(printed.scores["mae_255"] > MAE_BOUND for printed in REPORT_1) == 1


def test_both_losses_of_report_1_have_the_same_iou() -> None:
    assert {printed.scores["iou"] for printed in REPORT_1} == {0.138}
