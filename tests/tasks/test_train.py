import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from models.losses import make_loss
from tasks.cli import InputError
from tasks.compute import set_up
from tasks.download import download
from tasks.network import load_network
from tasks.packed import PackedSplit
from tasks.params import Params, Plan
from tasks.preprocess import preprocess
from tasks.sources import open_source
from tasks.train import Fitter, build_network, make_optimiser, make_schedule, train, validate


@pytest.fixture(scope="session")
def packed(tiny_params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    source = tiny_params.data.source
    download(open_source(source, Path()), folder / "raw", source)
    preprocess(folder / "raw", folder / "packed", tiny_params.image_size, 0.0)
    return folder / "packed"


@pytest.fixture
def plan(tiny_params: Params) -> Plan:
    return tiny_params.plans["report1_bce_iou"]


def test_writes_weights_history_and_a_description(plan: Plan, packed: Path, tmp_path: Path) -> None:
    train(plan, packed, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "history.csv",
        "model.json",
        "model.safetensors",
    ]
    history = pd.read_csv(tmp_path / "out" / "history.csv")
    assert list(history.columns) == [
        "epoch",
        "train_loss",
        "val_loss",
        "val_dice",
        "val_iou",
        "learning_rate",
        "images_per_second",
    ]
    assert list(history["epoch"]) == [1, 2]
    assert history.notna().all(axis=None)


def test_the_network_read_back_scores_as_its_best_epoch_did(plan: Plan, packed: Path, tmp_path: Path) -> None:
    train(plan, packed, tmp_path / "out")
    compute = set_up(99, plan.precision, plan.threads)
    split = PackedSplit(packed, plan.half, "Val", plan.targets, plan.train_classes)
    network = load_network(tmp_path / "out", compute)
    validated = validate(network, split, make_loss(plan.loss, plan.alpha), compute)
    history = pd.read_csv(tmp_path / "out" / "history.csv")
    assert validated.val_dice == pytest.approx(history["val_dice"].max(), abs=1e-7)


def test_same_plan_same_bytes_another_seed_others(plan: Plan, packed: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(plan.model_copy(update={"seed": seed, "flip": True}), packed, tmp_path / name)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_trains_in_bf16_too(plan: Plan, packed: Path, tmp_path: Path) -> None:
    train(plan.model_copy(update={"precision": "bf16"}), packed, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "model.json").read_text())["precision"] == "bf16"
    assert np.isfinite(pd.read_csv(tmp_path / "out" / "history.csv")).all(axis=None)


def test_learns_a_phantom_by_heart(plan: Plan, packed: Path) -> None:
    plan = plan.model_copy(update={"epochs": 30, "width": 8, "batch_size": 8})
    compute = set_up(0, "fp32", 1)
    split = PackedSplit(packed, plan.half, "Train", plan.targets, plan.train_classes)
    network = build_network(plan, compute)
    fitter = Fitter(plan, network, compute, split)
    losses = [fitter.run_epoch("test").loss for _ in range(plan.epochs)]
    assert losses[-1] < 0.5 * losses[0]
    assert validate(network, split, fitter.loss, compute).val_dice > 0.6


def test_flipping_moves_the_mask_with_its_image(plan: Plan, packed: Path) -> None:
    plan = plan.model_copy(update={"flip": True})
    compute = set_up(0, "fp32", 1)
    split = PackedSplit(packed, plan.half, "Train", ("lung",), plan.train_classes)
    fitter = Fitter(plan, build_network(plan, compute), compute, split)
    indices = torch.arange(len(split))
    x, y = fitter._load(indices)
    straight, masks = split.images() / 255, split.masks()
    flipped = 0
    for n in indices:
        same = torch.equal(x[n], straight[n])
        flipped += not same
        torch.testing.assert_close(x[n], straight[n] if same else straight[n].flip(-1))
        torch.testing.assert_close(y[n], masks[n] if same else masks[n].flip(-1))
    assert 0 < flipped < len(split)


def test_each_epoch_visits_every_image_once(
    plan: Plan, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = set_up(0, "fp32", 1)
    split = PackedSplit(packed, plan.half, "Train", plan.targets, plan.train_classes)
    fitter = Fitter(plan.model_copy(update={"batch_size": 4}), build_network(plan, compute), compute, split)
    seen: list[int] = []
    load = fitter._load
    monkeypatch.setattr(fitter, "_load", lambda batch: (seen.extend(batch.tolist()), load(batch))[1])
    fitter.run_epoch("one")
    first = list(seen)
    seen.clear()
    fitter.run_epoch("two")
    assert sorted(first) == sorted(seen) == list(range(len(split)))
    assert first != seen


@pytest.mark.parametrize(
    ("schedule", "highest", "last"), [("constant", 0.1, 0.1), ("cosine", 0.1, 0.0), ("one_cycle", 0.1, 0.0)]
)
def test_schedules_peak_at_the_learning_rate(plan: Plan, schedule: str, highest: float, last: float) -> None:
    plan = plan.model_copy(update={"schedule": schedule, "learning_rate": 0.1})
    optimiser = make_optimiser(plan, torch.nn.Linear(1, 1))
    scheduler = make_schedule(plan, optimiser, 50)
    rates = []
    for _ in range(50):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    assert max(rates) == pytest.approx(highest, rel=0.01)
    assert rates[-1] == pytest.approx(last, abs=2e-4)


def test_a_loss_that_is_no_number_stops_with_the_epoch(plan: Plan, packed: Path, tmp_path: Path) -> None:
    plan = plan.model_copy(update={"learning_rate": 1e30, "batch_size": 4})
    with pytest.raises(InputError, match=r"the loss became nan in epoch [12]; lower learning_rate"):
        train(plan, packed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_split_without_an_image_is_named(plan: Plan, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the lung half has no Train image of COVID-19"):
        train(plan.model_copy(update={"half": "lung", "targets": ("lung",)}), packed, tmp_path / "out")


def test_packed_split_aligns_images_and_masks(packed: Path) -> None:
    split = PackedSplit(packed, "infection", "Test", ("lung", "infection"), ("Normal", "COVID-19"))
    assert set(split.table["class"]) == {"Normal", "COVID-19"}
    masks = split.masks(slice(2, 5))
    assert masks.shape == (3, 2, 32, 32)
    whole = np.load(packed / "infection" / "Test" / "infection.npy")
    np.testing.assert_array_equal(masks[:, 1], whole[split.table["row"][2:5]])
    assert split.images(slice(0, 1)).shape == (1, 1, 32, 32)
