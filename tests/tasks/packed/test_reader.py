import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tasks.packed.reader import Fold, PackedSplit, read_folds

TARGETS = ("infection", "lung")


@pytest.fixture(scope="module")
def fold(tiny_packed: Path) -> Fold:
    """Every third Train or Val image is held out."""
    table = pd.read_csv(tiny_packed / "images.csv")
    ids = table.loc[(table["half"] == "infection") & (table["split"] != "Test"), "id"]
    return Fold(frozenset(ids) - frozenset(ids[::3]), frozenset(ids[::3]))


def test_a_fold_has_its_images_from_both_splits_with_their_own_masks(tiny_packed: Path, fold: Fold) -> None:
    of_split = {
        name: PackedSplit(tiny_packed, "infection", name, TARGETS)
        for name in ("Train", "Val")  # type: ignore[arg-type]
    }
    for split, expected in (("Train", fold.train), ("Val", fold.val)):
        found = PackedSplit(tiny_packed, "infection", split, TARGETS, fold=fold)  # type: ignore[arg-type]
        assert set(found.table["id"]) == expected
        assert set(found.table["split"]) == {"Train", "Val"}
        images, masks = found.images(), found.masks()
        for place, (image_id, stored) in enumerate(found.table[["id", "split"]].itertuples(index=False)):
            own = of_split[stored]
            at = np.flatnonzero(own.table["id"] == image_id)
            assert torch.equal(images[place], own.images(at)[0])
            assert torch.equal(masks[place], own.masks(at)[0])
        some = np.array([len(found) - 1, 0, 3])
        assert torch.equal(found.images(some), images[some])
        assert torch.equal(found.masks(slice(2, 5)), masks[2:5])
        assert found.regions() is None


def test_classes_and_dropped_images_are_left_out_of_a_fold_and_test_stays_test(
    tiny_packed: Path, fold: Fold
) -> None:
    dropped = frozenset(sorted(fold.val)[:1])
    found = PackedSplit(tiny_packed, "infection", "Val", TARGETS, ("COVID-19",), dropped, fold)
    expected = {image_id for image_id in fold.val - dropped if "/COVID-19/" in image_id}
    assert set(found.table["id"]) == expected
    test = PackedSplit(tiny_packed, "infection", "Test", TARGETS, fold=fold)
    assert test.digest() == PackedSplit(tiny_packed, "infection", "Test", TARGETS).digest()


def test_folds_are_read_with_the_images_of_the_others(tmp_path: Path) -> None:
    table = tmp_path / "folds.csv"
    table.write_text("id,fold\na,0\nb,1\nc,0\nd,2\n")
    assert read_folds(table) == (
        Fold(frozenset("bd"), frozenset("ac")),
        Fold(frozenset("acd"), frozenset("b")),
        Fold(frozenset("abc"), frozenset("d")),
    )
    table.write_text("id,fold\n")
    assert read_folds(table) == read_folds(None) == ()


def test_packed_split_aligns_images_and_masks(tiny_packed: Path) -> None:
    split = PackedSplit(tiny_packed, "infection", "Test", ("lung", "infection"), ("Normal", "COVID-19"))
    assert set(split.table["class"]) == {"Normal", "COVID-19"}
    masks = split.masks(slice(2, 5))
    assert masks.shape == (3, 2, 32, 32)
    whole = np.load(tiny_packed / "infection" / "Test" / "infection.npy")
    np.testing.assert_array_equal(masks[:, 1], whole[split.table["row"][2:5]])
    assert split.images(slice(0, 1)).shape == (1, 1, 32, 32)
    assert split.regions() is None


def test_packed_split_aligns_regions(tiny_packed: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_packed, tmp_path / "lungs")
    folder = tmp_path / "lungs" / "infection" / "Test"
    np.save(folder / "region.npy", np.load(folder / "lung.npy"))
    split = PackedSplit(tmp_path / "lungs", "infection", "Test", ("lung",), ("Normal",))
    regions = split.regions(slice(1, 3))
    assert regions is not None
    assert torch.equal(regions, split.masks(slice(1, 3))[:, 0])
