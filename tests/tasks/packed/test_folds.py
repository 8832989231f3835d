"""Folds of a made-up dataset: what stays together, how even they are, and when they are refused."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from tasks.common.raw import CLASSES
from tasks.packed.folds import draw_folds, drawn_images, groups_of
from tasks.support.cli import InputError

#: Per class, as in COVID-QU-Ex more COVID-19 than others; none is a multiple of all numbers of folds.
NUMBERS = dict(zip(CLASSES, (233, 117, 116), strict=True))


def made(**numbers: int) -> pd.DataFrame:
    """Train images with the columns of images.csv that folds depend on."""
    ids = [(f"infection/Train/{name}/{i}", name) for name, count in numbers.items() for i in range(count)]
    return pd.DataFrame(ids, columns=["id", "class"]).assign(half="infection", split="Train")


IMAGES = made(**NUMBERS)


def alone(images: pd.DataFrame) -> dict[str, str]:
    return groups_of(images["id"], [])


def spread(drawn: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """Number of images by fold and class."""
    return drawn.merge(images, on="id").groupby(["fold", "class"]).size().unstack(fill_value=0)


@pytest.mark.parametrize("folds", [2, 3, 5, 10])
def test_every_class_is_spread_within_one_image(folds: int) -> None:
    drawn = draw_folds(IMAGES, alone(IMAGES), folds, seed=0)
    assert list(drawn["id"]) == list(IMAGES["id"])
    counts = spread(drawn, IMAGES)
    assert list(counts.index) == list(range(folds))
    assert (counts.max() - counts.min() <= 1).all()
    assert counts.sum(axis=1).max() - counts.sum(axis=1).min() <= len(CLASSES)


def test_equal_seeds_give_equal_folds_whatever_the_order_and_other_seeds_give_others() -> None:
    groups = groups_of(IMAGES["id"], list(pairwise(IMAGES["id"][:20])))
    first = draw_folds(IMAGES, groups, 5, seed=0).set_index("id")["fold"]
    shuffled = IMAGES.sample(frac=1, random_state=1)
    again = draw_folds(shuffled, groups, 5, seed=0).set_index("id")["fold"]
    assert list(again.index) != list(first.index)
    assert (again[first.index] == first).all()
    other = draw_folds(IMAGES, groups, 5, seed=1).set_index("id")["fold"]
    assert 0.7 < (other != first).mean() < 0.9  # by chance, 4 of 5 images change their fold
    assert first.iloc[-8:].tolist() == [3, 4, 0, 2, 2, 0, 0, 3]  # as on every other machine


def test_images_that_belong_together_are_in_one_fold_and_classes_stay_even() -> None:
    random = np.random.default_rng(0)
    ids = IMAGES["id"].to_numpy()
    pairs = [tuple(random.choice(ids, 2, replace=False)) for _ in range(60)]
    patients = [tuple(random.choice(ids, 7, replace=False)) for _ in range(10)]
    groups = groups_of(ids, [*pairs, *patients])
    drawn = draw_folds(IMAGES, groups, 5, seed=3)
    fold = drawn.set_index("id")["fold"]
    for together in (*pairs, *patients):
        assert fold[list(together)].nunique() == 1
    counts = spread(drawn, IMAGES)
    assert (counts.max() - counts.min() <= 1).all()
    # Without groups, most of these pairs would be split: the test can fail.
    free = draw_folds(IMAGES, alone(IMAGES), 5, seed=3).set_index("id")["fold"]
    assert sum(free[list(pair)].nunique() == 2 for pair in pairs) > 30


def test_groups_connect_through_others_and_ignore_unknown_images() -> None:
    found = groups_of("abcdefg", [("c", "b"), ("b", "x"), ("x", "a"), ("e", "x", "d"), ("d", "c"), "fg"])
    assert found == {"a": "a", "b": "b", "c": "b", "d": "b", "e": "b", "f": "f", "g": "f"}


def test_a_class_with_fewer_groups_than_folds_is_refused() -> None:
    few = made(**{"COVID-19": 30, "Normal": 4})
    assert draw_folds(few, alone(few), 4, seed=0)["fold"].nunique() == 4
    with pytest.raises(InputError) as error:
        draw_folds(few, alone(few), 5, seed=0)
    assert str(error.value) == (
        "folds: 5: each fold needs an image of Normal, but the 4 Train and Val images of this class are in 4 "
        "groups that must not be split; set fewer folds"
    )
    of_one_patient = groups_of(few["id"], [tuple(few["id"][-2:])])
    with pytest.raises(InputError, match="the 4 Train and Val images of this class are in 3 groups"):
        draw_folds(few, of_one_patient, 4, seed=0)


def test_only_train_and_val_images_that_are_not_dropped_are_drawn() -> None:
    images = made(Normal=4).assign(split=["Train", "Val", "Test", "Train"])
    kept = drawn_images(images, pd.Series(["infection/Train/Normal/3"]))
    assert list(kept["split"]) == ["Train", "Val"]
