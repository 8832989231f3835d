import pytest

from tests.results import Work


def test_choice_is_made_on_val(work: Work) -> None:
    """Best on Val, worst on Test."""
    work.add("chosen", shift=8, val_shift=0)
    section = work.compare().sections[0]
    assert section.choice
    assert section.choice.chosen == "chosen"
    assert section.choice.scores["chosen"].value == 1
    on_test = {row.name: row.value("iou") for row in section.main.experiments}
    assert min(on_test, key=lambda name: on_test[name] or 0) == "chosen"
    assert section.choice.beaten == ("bce_iou", "bce")
    assert section.choice.level == ()


def test_balanced_score_by_hand(work: Work) -> None:
    """Of eight Val images, six have a lesion with Dice 22 / 24, and two are controls left unmarked."""
    section = work.compare().sections[0]
    assert section.choice
    assert section.choice.selection == "balanced"
    assert section.choice.images == 8
    assert section.choice.scores["bce_iou"].value == pytest.approx((22 / 24 + 1) / 2)


def test_choice_for_lungs_is_by_mean_dice(work: Work) -> None:
    work.add("both", shift=1, targets=("infection", "lung"))
    (lung,) = (s for s in work.compare().sections if s.target == "lung")
    assert lung.choice
    assert lung.choice.selection == "all"
    assert lung.choice.scores["both"].value == pytest.approx(47 / 48)


def test_no_choice_without_experiments(work: Work) -> None:
    (lung,) = (s for s in work.compare().sections if s.target == "lung")
    assert lung.choice is None
