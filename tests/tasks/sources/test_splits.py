from collections import Counter

import pytest

from tasks.settings.layout import Splits
from tasks.sources.splits import Lot, draw

SPLITS = Splits(seed=0, val=0.15, test=0.2)
COVID, NORMAL = 0, 2


def single(number: int, image_class: int = COVID) -> list[Lot]:
    return [Lot(f"{image_class}-{i}", image_class) for i in range(number)]


def test_each_class_has_the_wanted_shares() -> None:
    lots = single(200) + single(40, NORMAL)
    found = Counter(zip((lot.image_class for lot in lots), draw(lots, SPLITS), strict=True))
    assert found == {
        (COVID, "Train"): 130, (COVID, "Val"): 30, (COVID, "Test"): 40,
        (NORMAL, "Train"): 26, (NORMAL, "Val"): 6, (NORMAL, "Test"): 8,
    }  # fmt: skip


def test_a_group_is_never_split_and_shares_count_images() -> None:
    lots = [Lot(f"patient {i % 37}", COVID) for i in range(400)]
    found = draw(lots, SPLITS)
    of_group: dict[str, set[str]] = {}
    for lot, split in zip(lots, found, strict=True):
        of_group.setdefault(lot.group, set()).add(split)
    assert all(len(splits) == 1 for splits in of_group.values())
    counts = Counter(found)
    assert abs(counts["Test"] - 80) <= 11 and abs(counts["Val"] - 60) <= 11  # a group has 10 or 11 images


def test_the_order_of_the_images_does_not_matter() -> None:
    lots = single(50)
    forwards = dict(zip(lots, draw(lots, SPLITS), strict=True))
    backwards = dict(zip(lots[::-1], draw(lots[::-1], SPLITS), strict=True))
    assert forwards == backwards


def test_another_seed_draws_other_images() -> None:
    lots = single(100)
    assert draw(lots, SPLITS) != draw(lots, SPLITS.model_copy(update={"seed": 1}))


@pytest.mark.parametrize("number", [20, 101, 1000])
def test_a_new_image_moves_at_most_one_other_at_each_border(number: int) -> None:
    lots = single(number)
    before = dict(zip(lots, draw(lots, SPLITS), strict=True))
    for extra in range(20):
        more = [*lots, Lot(f"new {extra}", COVID)]
        after = dict(zip(more, draw(more, SPLITS), strict=True))
        assert sum(after[lot] != before[lot] for lot in lots) <= 2


def test_a_new_image_of_one_class_moves_none_of_another() -> None:
    lots = single(100)
    before = draw(lots, SPLITS)
    assert draw(lots + single(30, NORMAL), SPLITS)[:100] == before
