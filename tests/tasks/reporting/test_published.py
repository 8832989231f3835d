import pytest

from tasks.comparison.consistency import check_pair
from tasks.comparison.document import PrintedPair
from tasks.comparison.published import PRINTED_PAIRS, REPORT_2
from tasks.reporting.findings import REPORT_2_COLUMNS, fault_words, report_2_cells


def fault_of(pair: PrintedPair) -> str:
    fault = check_pair(pair.iou, pair.dice, pair.decimals)
    return fault_words(pair, fault) if fault else ""


@pytest.mark.parametrize(
    ("iou", "dice", "decimals", "said"),
    [
        (
            0.5,
            0.4,
            4,
            "Dice 0.4000 is below the IoU: "
            "over the same images, an IoU of 0.5000 allows only a Dice of 0.5000 to 0.6667.",
        ),
        (
            0.5,
            0.75,
            2,
            "Dice 0.75 is above 2 IoU / (1 + IoU): "
            "over the same images, an IoU of 0.50 allows only a Dice of 0.50 to 0.67.",
        ),
        (0.5002, 0.5, 4, "is below the IoU"),
        (0.3421, 0.51, 4, "is above 2 IoU / (1 + IoU)"),
        (0.0, 0.1, 3, "allows only a Dice of 0.000 to 0.001."),
        (1.0, 0.9, 3, "allows only a Dice of 1.000 to 1.000."),
    ],
)
def test_impossible_pair_is_explained(iou: float, dice: float, decimals: int, said: str) -> None:
    assert said in fault_of(PrintedPair(where="x", iou=iou, dice=dice, decimals=decimals))


def test_verdicts_on_the_pairs_of_report_2() -> None:
    said = {pair.where: fault_of(pair) for pair in PRINTED_PAIRS}
    allows = "over the same images, an IoU of {} allows only a Dice of {} to {}."
    assert said == {
        "Report 2, lung": f"Dice 0.5767 is below the IoU: {allows.format(0.9344, 0.9344, 0.9661)}",
        "Report 2, lung, as in its conclusion": (
            f"Dice 0.5737 is below the IoU: {allows.format(0.9344, 0.9344, 0.9661)}"
        ),
        "Report 2, infection": (
            f"Dice 0.8692 is above 2 IoU / (1 + IoU): {allows.format(0.3421, 0.3421, 0.5099)}"
        ),
        "Report 2, last epoch": "",
    }


def test_report_2_cells_show_the_printed_scores() -> None:
    printed = ["0.5767", "0.9344", "0.8692", "0.3421", "0.2947", "–", "0.6785", "0.6473"]
    assert report_2_cells(REPORT_2) == printed


def test_table_shows_the_pairs_that_are_checked() -> None:
    printed = dict(zip(REPORT_2_COLUMNS.values(), report_2_cells(REPORT_2), strict=True))
    pairs = {pair.where.removeprefix("Report 2, "): pair for pair in PRINTED_PAIRS}
    for target in ("lung", "infection"):
        assert float(printed[f"Dice, {target}"]) == pairs[target].dice
        assert float(printed[f"IoU, {target}"]) == pairs[target].iou
    assert (float(printed["Last epoch: Dice"]), float(printed["Last epoch: IoU"])) == (
        pairs["last epoch"].dice,
        pairs["last epoch"].iou,
    )
