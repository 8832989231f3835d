import pytest

from tasks.support import progress as module
from tasks.support.progress import fraction_done, progress


@pytest.mark.parametrize(
    ("line", "fraction"),
    [
        ("download: 12 of 40, 5.3 a second", 0.3),
        ("report1_bce epoch 1/8: train loss 0.5537, val loss 0.6404", 0.125),
        ("report1_bce epoch 8/8: train loss 0.5", 1.0),
        ("report1_bce epoch 3 of 8: 12 of 48, 20 a second", 2.25 / 8),
        ("report2 seed 1 of 4 epoch 8/8: train loss 0.5", 0.25),
        ("report2 seed 2 of 4 epoch 1/8: train loss 0.5", 1.125 / 4),
        ("report2 seed 3 of 4 epoch 3 of 8: 12 of 48, 20 a second", (2 + 2.25 / 8) / 4),
        ("report2 seed 4 of 4 epoch 8/8: train loss 0.5", 1.0),
        ("report2 seed 1 of 4: unet of 497,793 parameters, 400 Train and 100 Val images", None),
        ("report1_bce: residual_unet of 497,793 parameters, 400 Train and 100 Val images", None),
        ("phantom://: 1105 images, 3315 files", None),
        ("3 of 135 files fetched, 132 as before", None),
    ],
)
def test_a_line_tells_how_much_is_done(line: str, fraction: float | None) -> None:
    assert fraction_done(line) == fraction


@pytest.mark.parametrize(
    ("what", "fractions"),
    [
        ("net epoch 2 of 2", [0.625, 0.75, 0.875, 1.0]),
        ("net seed 2 of 2 epoch 1 of 2", [0.5625, 0.625, 0.6875, 0.75]),
    ],
)
def test_what_progress_prints_is_understood(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str, fractions: list[float]
) -> None:
    monkeypatch.setattr(module, "LINE_EVERY", 0.0)
    list(progress("abcd", 4, what))
    lines = capsys.readouterr().out.splitlines()
    assert [fraction_done(line) for line in lines] == fractions
