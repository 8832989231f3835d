import pytest

from tasks.reporting.findings import MAE_BOUND, PRINTED_SCORES, _on_printed_iou, _verdict


@pytest.mark.parametrize(
    ("iou", "phantoms", "expected"),
    [
        (0.139, False, "the score of a network that marks every pixel"),
        (0.1431, False, "differs from the 0.138"),
        (0.139, True, "the two don't compare"),
    ],
)
def test_what_is_said_of_the_printed_iou_follows_from_the_scores(
    iou: float, phantoms: bool, expected: str
) -> None:
    said = _on_printed_iou({"iou": iou, "images": 583, "mae_255": 219.6}, phantoms)
    assert expected in " ".join(said)


def test_verdict_names_what_is_not_beaten() -> None:
    lost = {"all_background": [], "all_foreground": [], "whole_lung": ["IoU", "Dice"]}
    assert _verdict(["bce"], lost) == (
        "bce beats all background and all foreground on IoU, Dice and MAE; "
        "it does not beat the whole lung on IoU or Dice."
    )
    alike = {"all_background": ["MAE"], "whole_lung": ["MAE"]}
    assert (
        _verdict(["bce", "focal"], alike)
        == "bce and focal do not beat all background or the whole lung on MAE."
    )


def test_printed_mae_is_beyond_the_bound() -> None:
    assert sum(printed["mae_255"] > MAE_BOUND for printed in PRINTED_SCORES.values()) == 1
