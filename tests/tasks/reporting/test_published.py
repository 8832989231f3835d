from tasks.reporting.consistency import PRINTED_PAIRS
from tasks.reporting.published import REPORT_2_HEADINGS, REPORT_2_PRINTED, Pair


def test_what_the_table_prints_is_what_the_check_tests() -> None:
    printed = dict(zip(REPORT_2_HEADINGS, REPORT_2_PRINTED, strict=True))
    pairs = {pair.where.removeprefix("Report 2, "): pair for pair in PRINTED_PAIRS}
    for target in ("lung", "infection"):
        assert float(printed[f"Dice, {target}"]) == pairs[target].dice
        assert float(printed[f"IoU, {target}"]) == pairs[target].iou
    assert (float(printed["Dice"]), float(printed["IoU"])) == (
        pairs["last epoch"].dice,
        pairs["last epoch"].iou,
    )


def test_a_pair_tells_its_fault() -> None:
    assert Pair("x", 0.5, 0.6, 2).fault is None
    assert Pair("x", 0.5, 0.4, 2).fault
