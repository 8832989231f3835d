from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from models.metrics import DiceSums, Selection
from tasks.scoring.verdict import Verdict, judge, read_rows, selection_score
from tasks.support.cli import InputError

AREA = 1000.0
IMAGES = 120

#: Dice of 120 images with a reference mask, skewed like real ones.
DICE = np.random.default_rng(3).beta(5, 2, IMAGES) * 0.9


def made(dice: np.ndarray, unmarked: np.ndarray | None = None, seed: int = 0) -> pd.DataFrame:
    """Rows of images with a reference mask and these Dice, then of images without: 1 if left unmarked."""
    unmarked = np.zeros(0) if unmarked is None else unmarked
    tp = AREA * dice / (2 - dice)  # all marked pixels are inside the reference mask
    found = pd.DataFrame(
        {"tp": tp, "fp": 0.0, "fn": AREA - tp, "tn": AREA, "dice": dice, "class": "COVID-19"}
    )
    fp = (1 - unmarked) * 10
    empty = {"tp": 0.0, "fp": fp, "fn": 0.0, "tn": 2 * AREA - fp, "dice": unmarked, "class": "Normal"}
    rows = pd.concat([found, pd.DataFrame(empty)], ignore_index=True)
    return rows.assign(
        seed=seed, split="Val", target="infection", id=[f"image {number}" for number in rows.index]
    )


def seeds(*dice: np.ndarray) -> pd.DataFrame:
    return pd.concat([made(each, seed=seed) for seed, each in enumerate(dice)])


def noise(size: float, number: int = 0) -> np.ndarray:
    return np.random.default_rng([9, number]).normal(0, size, IMAGES)


def test_a_change_below_the_noise_is_not_significant() -> None:
    verdict = judge(made(DICE + 0.00009 + noise(0.01)), made(DICE), "lesions")
    assert verdict.word == "no significant difference"
    assert verdict.difference
    assert verdict.difference.low < 0.00009 < verdict.difference.high


def test_an_improvement_of_every_image_is_better() -> None:
    verdict = judge(made(DICE + 0.01), made(DICE), "lesions")
    assert verdict.word == "better"
    assert verdict.difference
    assert verdict.difference == pytest.approx((0.01, 0.01, 0.01))
    assert (verdict.challenger, verdict.champion) == pytest.approx((DICE.mean() + 0.01, DICE.mean()))
    assert judge(made(DICE), made(DICE + 0.01), "lesions").word == "worse"


def test_a_clear_difference_with_noise_is_found_in_either_direction() -> None:
    challenger, champion = made(DICE + 0.01 + noise(0.02)), made(DICE)
    better, worse = judge(challenger, champion, "all"), judge(champion, challenger, "all")
    assert (better.word, worse.word) == ("better", "worse")
    assert better.difference
    assert worse.difference == pytest.approx(better.difference.reversed)
    width = 1.96 * np.std(noise(0.02), ddof=1) / np.sqrt(IMAGES)
    assert better.difference.high - better.difference.value == pytest.approx(width, rel=0.1)


def test_identical_rows_are_the_same_in_any_order() -> None:
    rows = seeds(DICE, DICE + 0.01)
    verdict = judge(rows, rows.sample(frac=1, random_state=1), "balanced")
    assert verdict.word == "same"
    assert verdict.difference
    assert verdict.difference.value == 0


def test_equal_scores_of_other_seeds_are_not_the_same() -> None:
    assert judge(made(DICE), made(DICE, seed=1), "all").word == "no significant difference"


def test_several_seeds_bring_the_variation_between_trainings_into_the_interval() -> None:
    """A difference that each image shows is still uncertain if trainings differ by more than that."""
    one = judge(made(DICE + 0.01), made(DICE), "all")
    several = judge(seeds(DICE + 0.02, DICE), seeds(DICE + 0.015, DICE - 0.015), "all")
    assert (one.word, one.covers_training) == ("better", False)
    assert (several.word, several.covers_training) == ("no significant difference", True)
    assert several.difference
    assert several.difference.value == pytest.approx(0.01)
    assert judge(seeds(DICE, DICE + 0.01), made(DICE), "all").covers_training


@pytest.mark.parametrize("selection", ["lesions", "all", "balanced"])
@pytest.mark.parametrize(("found", "empty"), [(IMAGES, 40), (IMAGES, 0), (0, 40)])
def test_the_score_is_that_of_training(selection: Selection, found: int, empty: int) -> None:
    dice, unmarked = DICE[:found], (np.arange(empty) % 4 > 0).astype(float)
    expected = DiceSums(dice.sum(), unmarked.sum(), found, empty).score(selection)
    assert selection_score(made(dice, unmarked), selection) == pytest.approx(expected)


def test_the_selection_decides_which_images_count() -> None:
    """More of the lesions is found, but more of the other images are marked."""
    unmarked = np.ones(400)
    marking = np.where(np.arange(400) < 100, 0.0, 1.0)
    challenger, champion = made(DICE + 0.05, marking), made(DICE, unmarked)
    words = {s: judge(challenger, champion, s).word for s in ("lesions", "all", "balanced")}
    assert words == {"lesions": "better", "all": "worse", "balanced": "worse"}
    balanced = judge(challenger, champion, "balanced").difference
    assert balanced
    assert balanced.value == pytest.approx((0.05 - 0.25) / 2)


def test_other_images_are_not_comparable() -> None:
    rows = made(DICE)
    assert judge(rows, rows[10:], "all").reason == "other images: 110 of 120 are in both"
    assert judge(rows[10:], rows, "all").word == "not comparable"
    others = judge(rows, rows.assign(id=rows["id"] + " of another half"), "all")
    assert others.reason == "other images: 0 of 240 are in both"
    assert others == Verdict("not comparable", others.challenger, reason=others.reason)
    assert others.challenger == pytest.approx(DICE.mean())
    incomplete = seeds(DICE, DICE).iloc[:-1]
    assert judge(incomplete, rows, "all").reason == "other images: 119 of 120 are in both"


def test_images_with_other_reference_masks_are_not_comparable() -> None:
    rows = made(DICE)
    changed = rows.assign(fn=rows["fn"] + 5 * (rows.index < 7))
    assert judge(changed, rows, "all").reason == "other reference masks: 7 of 120 differ"


def test_a_single_image_gives_no_interval() -> None:
    verdict = judge(made(DICE[:1] + 0.1, np.ones(5)), made(DICE[:1], np.ones(5)), "lesions")
    assert (verdict.word, verdict.reason) == ("not comparable", "a single image gives no interval")


# --- reading ------------------------------------------------------------------------------------------------


def test_the_rows_of_all_seeds_and_one_split_are_read(tmp_path: Path) -> None:
    rows = seeds(DICE, DICE + 0.01).assign(hd95=3.0)
    for seed, of_one in rows.groupby("seed"):
        pd.concat([of_one, of_one.assign(split="Test")]).to_csv(tmp_path / f"{seed}.csv", index=False)
    read = read_rows([tmp_path / "0.csv", tmp_path / "1.csv"])
    assert "hd95" not in read
    assert len(read) == 2 * IMAGES
    assert judge(read, rows, "all").word == "same"


def test_networks_of_folds_are_one_predictor_that_is_compared_on_equal_images_only(tmp_path: Path) -> None:
    """Each fold holds out its own images. Val of an experiment without folds has some of them."""

    def read(name: str, dice: np.ndarray) -> pd.DataFrame:
        rows = made(dice, np.ones(30))
        for fold in range(3):
            held_out = rows[rows.index % 3 == fold].assign(seed=5 + fold)
            held_out.to_csv(tmp_path / f"{name}-{fold}.csv", index=False)
        return read_rows(tmp_path / f"{name}-{fold}.csv" for fold in range(3))

    before, after = read("before", DICE), read("after", DICE + 0.01)
    assert len(before) == IMAGES + 30 and set(before["seed"]) == {5}
    verdict = judge(after, before, "lesions")
    assert (verdict.word, verdict.difference) == ("better", pytest.approx((0.01, 0.01, 0.01)))
    without = made(DICE[:40])
    verdict = judge(after, without, "lesions")
    assert (verdict.word, verdict.reason) == ("not comparable", "other images: 40 of 150 are in both")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (made(DICE).drop(columns="split"), "no Val rows in images.csv, which an older stage evaluate wrote"),
        (made(DICE).assign(split="Test"), "no Val rows in images.csv"),
        (made(DICE).drop(columns="tn"), "no column tn in images.csv"),
        (pd.DataFrame(), "images.csv cannot be read: "),
    ],
)
def test_a_table_without_the_rows_is_refused(table: pd.DataFrame, message: str, tmp_path: Path) -> None:
    path = tmp_path / "images.csv"
    path.write_text(table.to_csv(index=False) if len(table) else "")
    with pytest.raises(InputError) as error:
        read_rows([path])
    assert str(error.value).startswith(message)
