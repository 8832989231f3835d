from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.common.raw import SPLITS
from tasks.evaluate import evaluate
from tasks.inference.masks import PLAIN
from tasks.lungs import restrict
from tasks.packed.reader import PackedSplit
from tasks.settings.experiments import Plan
from tasks.settings.params import Params
from tasks.support.cli import InputError
from tasks.train import train


@pytest.fixture(scope="module")
def lung_plan(tiny_params: Params) -> Plan:
    return tiny_params.plans["report1_bce-seed0"].model_copy(
        update={"name": "lungs", "targets": ("lung",), "epochs": 15, "batch_size": 4}
    )


@pytest.fixture(scope="module")
def restricted(lung_plan: Plan, tiny_packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lungs")
    train(lung_plan, tiny_packed, folder / "lungs")
    restrict(
        lung_plan,
        PLAIN,
        folder / "lungs" / "network",
        tiny_packed,
        tiny_packed.parent / "raw",
        folder / "out",
    )
    return folder / "out"


@pytest.mark.parametrize("split", SPLITS)
def test_images_are_zero_outside_the_predicted_lungs(restricted: Path, tiny_packed: Path, split: str) -> None:
    seen, whole = (
        PackedSplit(root, "infection", split, ("infection",)) for root in (restricted, tiny_packed)
    )
    region = seen.regions()
    assert region is not None and 0 < region.float().mean() < 1
    assert set(np.unique(region)) == {0, 1}
    np.testing.assert_array_equal(seen.images()[:, 0], whole.images()[:, 0] * region)
    np.testing.assert_array_equal(seen.masks()[:, 0], whole.masks()[:, 0] * region)
    assert whole.regions() is None


def test_reference_lung_masks_are_not_copied(restricted: Path) -> None:
    assert not list(restricted.rglob("lung.npy"))


def test_second_network_marks_nothing_outside_the_lungs(
    restricted: Path, tiny_params: Params, tiny_packed: Path, tmp_path: Path
) -> None:
    plan = tiny_params.plans["report1_bce-seed0"].model_copy(update={"batch_size": 4})
    train(plan, restricted, tmp_path / "trained")
    evaluate(
        plan, PLAIN.model_copy(update={"threshold": 0.2}), tmp_path / "trained" / "network", restricted,
        tiny_packed.parent / "raw", tmp_path / "out",
    )  # fmt: skip
    rows = pd.read_csv(tmp_path / "out" / "images.csv")
    assert set(rows["target"]) == {"infection"}
    assert rows["predicted_share"].between(0, 1).all()
    regions = PackedSplit(restricted, "infection", "Test").regions()
    assert regions is not None
    of_test = rows[rows["split"] == "Test"]
    seen = np.asarray(regions.double().mean(dim=(1, 2)))
    marked = (of_test["tp"] + of_test["fp"]) / of_test[["tp", "fp", "fn", "tn"]].sum(axis=1)
    assert (marked.to_numpy() <= seen + 0.02).all()  # masks are larger than the network's images


def test_dropped_images_are_not_used_to_choose_a_threshold(
    restricted: Path, lung_plan: Plan, tiny_packed: Path, tmp_path: Path
) -> None:
    val = set(PackedSplit(tiny_packed, "infection", "Val").table["id"])
    raw, trained = tiny_packed.parent / "raw", restricted.parent / "lungs" / "network"
    chosen = PLAIN.model_copy(update={"threshold": "val"})
    for stage in (restrict, evaluate):
        with pytest.raises(InputError, match="the infection half has no Val image"):
            stage(lung_plan, chosen, trained, tiny_packed, raw, tmp_path / "out", val)


def test_lung_half_is_an_error(lung_plan: Plan, tiny_packed: Path, tmp_path: Path) -> None:
    plan = lung_plan.model_copy(update={"half": "lung"})
    with pytest.raises(InputError, match="the lung half has no infection masks"):
        restrict(plan, PLAIN, tmp_path, tiny_packed, tiny_packed.parent / "raw", tmp_path / "out")
