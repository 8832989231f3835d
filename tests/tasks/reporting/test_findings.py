import pytest

from tasks.comparison.document import PrintedIou
from tasks.reporting.findings import _verdict, on_printed_iou


@pytest.mark.parametrize(
    ("iou", "same", "published", "expected"),
    [
        (0.139, True, True, "about the score of a network that marks every pixel."),
        (0.1431, False, True, "differs from the 0.138"),
        (0.139, True, False, "not comparable"),
    ],
)
def test_sentences_on_the_printed_iou(iou: float, same: bool, published: bool, expected: str) -> None:
    found = PrintedIou(
        printed_iou=0.138, printed_mae_255=16.321, images=583, iou=iou, mae_255=219.6, same=same
    )
    assert expected in " ".join(on_printed_iou(found, published))


def test_verdict_names_the_predictors_that_are_not_beaten() -> None:
    lost = {"all_background": [], "all_foreground": [], "whole_lung": ["iou", "dice"]}
    assert _verdict(["bce"], lost) == (
        "bce beats “all background” and “all foreground” on IoU, Dice and MAE; "
        "it does not beat “the whole lung” on IoU or Dice."
    )
    worse = {"all_background": ["mae"], "all_foreground": [], "whole_lung": ["iou", "dice", "mae"]}
    assert _verdict(["focal"], worse) == (
        "focal beats “all foreground” on IoU, Dice and MAE; it does not beat “all background” on MAE, or "
        "“the whole lung” on IoU, Dice or MAE."
    )
    alike = {"all_background": ["mae"], "whole_lung": ["mae"]}
    assert (
        _verdict(["bce", "focal"], alike)
        == "bce and focal do not beat “all background” or “the whole lung” on MAE."
    )
