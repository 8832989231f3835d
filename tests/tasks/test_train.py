import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from tasks.common.environment import versions
from tasks.common.raw import sha256
from tasks.networks.device import set_up
from tasks.networks.network import build_network, load_network, load_start
from tasks.packed.reader import PackedSplit
from tasks.plan import plan as write_plans
from tasks.settings.experiments import Plan
from tasks.settings.params import Params
from tasks.settings.training import StartFrom
from tasks.support.checkpoints import FOLDER_VARIABLE
from tasks.support.cli import InputError
from tasks.support.events import VARIABLE, Reader
from tasks.support.locks import is_in_use
from tasks.support.symptoms import NonFiniteLoss, symptoms
from tasks.train import train
from tasks.training.fitting import DivergenceError, Fitted, Fitter
from tests.helpers import EVERY_CHANGE
from tests.trainings import altered, make_fitter, run_epoch, score, weights


@pytest.fixture
def packed(tiny_packed: Path) -> Path:
    return tiny_packed


@pytest.fixture
def plan(tiny_params: Params) -> Plan:
    return tiny_params.plans["report1_bce_iou-seed0"]


@pytest.fixture(autouse=True)
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "checkpoints"))
    return tmp_path / "checkpoints"


def test_writes_weights_history_and_a_description(plan: Plan, packed: Path, tmp_path: Path) -> None:
    train(plan, packed, tmp_path / "out")
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert files == {"history.csv", "network/network.json", "network/weights.safetensors"}
    history = pd.read_csv(tmp_path / "out" / "history.csv")
    assert list(history.columns) == [
        "seed",
        "epoch",
        "train_loss",
        "val_loss",
        "val_score",
        "val_dice",
        "val_iou",
        "val_marked",
        "val_lesions",
        "learning_rate",
    ]
    assert list(history["epoch"]) == [1, 2]
    assert history.notna().all(axis=None)
    description = json.loads((tmp_path / "out" / "network" / "network.json").read_text())
    assert Plan.from_json(json.dumps(description.pop("plan"))) == plan
    assert description == {
        "precision": set_up(0, plan.precision, 1).precision,
        "device": "cpu",
        "parts": 1,
        "parameters": sum(p.numel() for p in build_network(plan, set_up(0, "fp32", 1)).parameters()),
        "train_images": len(PackedSplit(packed, plan.half, "Train", (), plan.train_classes)),
        "val_images": len(PackedSplit(packed, plan.half, "Val", (), plan.train_classes)),
        "best_epoch": history["val_score"].idxmax() + 1,
        "val_score": pytest.approx(history["val_score"].max(), abs=1e-6),
        "diverged": False,
        "versions": versions(),
    }


def test_dropped_images_are_not_trained_on(plan: Plan, packed: Path, tmp_path: Path) -> None:
    whole = {
        split: PackedSplit(packed, plan.half, split, (), plan.train_classes) for split in ("Train", "Val")
    }
    dropped = {str(whole[split].table["id"][place]) for split in whole for place in (0, 2)}
    train(plan, packed, tmp_path / "out", dropped)
    description = json.loads((tmp_path / "out" / "network" / "network.json").read_text())
    assert description["train_images"] == len(whole["Train"]) - 2
    assert description["val_images"] == len(whole["Val"]) - 2
    split = PackedSplit(packed, plan.half, "Train", plan.targets, plan.train_classes, dropped)
    kept = [place for place in range(len(whole["Train"])) if place not in (0, 2)]
    np.testing.assert_array_equal(split.images(), whole["Train"].images()[kept])


def test_several_targets_have_separate_scores_and_a_mean(plan: Plan, packed: Path, tmp_path: Path) -> None:
    classes = ("COVID-19", "Non-COVID", "Normal")
    plan = altered(plan, targets=("infection", "lung"), train_classes=classes, epochs=1)
    train(plan, packed, tmp_path / "out")
    history = pd.read_csv(tmp_path / "out" / "history.csv")
    assert list(history.columns)[3:-1] == [
        "val_loss",
        "val_score",
        "val_dice",
        "val_iou",
        "val_marked",
        "val_score_infection",
        "val_dice_infection",
        "val_iou_infection",
        "val_marked_infection",
        "val_lesions_infection",
        "val_unmarked_infection",
        "val_score_lung",
        "val_dice_lung",
        "val_iou_lung",
        "val_marked_lung",
        "val_lesions_lung",
    ]
    for metric in ("val_score", "val_dice", "val_iou", "val_marked"):
        mean = history[[f"{metric}_infection", f"{metric}_lung"]].mean(axis=1)
        np.testing.assert_allclose(history[metric], mean, rtol=1e-6)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_loaded_network_scores_like_its_best_epoch(
    plan: Plan, packed: Path, tmp_path: Path, ema: float
) -> None:
    plan = altered(plan, targets=("lung",), ema=ema, precision="fp32", batch_size=2, epochs=4)
    train(plan, packed, tmp_path / "out")
    scores = score(load_network(tmp_path / "out" / "network", set_up(99, "fp32", 1)), plan, packed)
    history = pd.read_csv(tmp_path / "out" / "history.csv")
    best = history.loc[history["val_score"].idxmax()]
    assert history["val_score"].nunique() == 4
    for name, value in scores.items():
        assert value == pytest.approx(best[name], abs=1e-7)


def test_same_plan_gives_identical_bytes_and_another_seed_does_not(
    plan: Plan, packed: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(altered(plan, EVERY_CHANGE, seed=seed, ema=0.9), packed, tmp_path / name)
    a, b, c = ((tmp_path / name / "network" / "weights.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    assert (tmp_path / "a" / "history.csv").read_bytes() == (tmp_path / "b" / "history.csv").read_bytes()


def test_each_epoch_is_an_event_with_its_scores(
    plan: Plan, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "events.jsonl"))
    train(plan, packed, tmp_path / "out")
    events = Reader(tmp_path / "events.jsonl").new()
    epochs = [event for event in events if event.what == f"epochs of {plan.name}"]
    assert [(event.done, event.total) for event in epochs] == [(1, plan.epochs), (2, plan.epochs)]
    assert [event.fraction for event in events] == [0.5, 0.5, 1.0, 1.0]  # the last batch, then the epoch
    history = pd.read_csv(tmp_path / "out" / "history.csv")
    for event, (_, row) in zip(epochs, history.iterrows(), strict=True):
        assert event.scores.keys() >= {"train_loss", "val_loss", "val_dice"}
        assert event.scores == pytest.approx({name: row[name] for name in event.scores}, abs=1e-6)


def test_the_history_grows_by_a_row_after_each_epoch(
    plan: Plan, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process sees complete files only, each an extension of the one before."""
    plan, out = altered(plan, epochs=4), tmp_path / "out"
    seen: list[bytes] = []

    def look(*_: object) -> None:
        assert is_in_use(out)
        assert not (out / "network").exists()
        seen.append((out / "history.csv").read_bytes())

    monkeypatch.setattr("tasks.train.report", look)  # after each epoch
    out.mkdir()
    (out / "network").touch()  # of an earlier training
    train(plan, packed, out)
    whole = (out / "history.csv").read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 5
    assert seen == [b"".join(lines[: 1 + epoch]) for epoch in (1, 2, 3, 4)]
    assert not is_in_use(out)
    assert {path.name for path in out.iterdir()} == {"history.csv", "network"}


def test_averaged_weights_are_saved(plan: Plan, packed: Path, tmp_path: Path) -> None:
    plan = altered(plan, ema=0.9, epochs=1, precision="fp32")
    train(plan, packed, tmp_path / "out")
    saved = safetensors.torch.load_file(tmp_path / "out" / "network" / "weights.safetensors")
    fitter = make_fitter(plan, packed)
    run_epoch(fitter)
    averaged, fitted = weights(fitter.network), weights(fitter._fitted)
    assert all(torch.equal(saved[name], value) for name, value in averaged.items())
    assert not all(torch.equal(saved[name], value) for name, value in fitted.items())


def test_trains_in_bf16(plan: Plan, packed: Path, tmp_path: Path) -> None:
    train(altered(plan, EVERY_CHANGE, precision="bf16"), packed, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "network" / "network.json").read_text())["precision"] == "bf16"
    assert np.isfinite(pd.read_csv(tmp_path / "out" / "history.csv")).all(axis=None)


def test_diverged_training_ends_with_the_untrained_network(
    plan: Plan, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = altered(plan, learning_rate=1e30, batch_size=4, precision="fp32")
    train(plan, packed, tmp_path / "out")
    said = capsys.readouterr().out
    assert re.search(
        r"warning: .*: the loss became nan in epoch 1, step \d of \d; no epoch ended before", said
    )
    history = pd.read_csv(tmp_path / "out" / "history.csv")
    assert list(history["epoch"]) == [1]
    assert history["val_score"].isna().all()
    description = json.loads((tmp_path / "out" / "network" / "network.json").read_text())
    assert description["diverged"] is True
    assert (description["best_epoch"], description["val_score"]) == (0, None)
    compute = set_up(plan.seed, "fp32", 1)
    untrained, loaded = build_network(plan, compute), load_network(tmp_path / "out" / "network", compute)
    for name, value in untrained.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


def test_diverged_training_keeps_the_best_epoch_before(
    plan: Plan, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = Fitter.run_epoch

    def diverge_in_the_third(fitter: Fitter, *arguments: Any) -> Fitted:
        if fitter.epoch == 2:
            raise DivergenceError("the loss became nan in epoch 3, step 1 of 9")
        return epochs(fitter, *arguments)

    monkeypatch.setattr(Fitter, "run_epoch", diverge_in_the_third)
    train(altered(plan, epochs=5), packed, tmp_path / "out")
    history = pd.read_csv(tmp_path / "out" / "history.csv")
    assert list(history["val_score"].notna()) == [True, True, False]
    description = json.loads((tmp_path / "out" / "network" / "network.json").read_text())
    assert description["best_epoch"] == history["val_score"].idxmax() + 1
    assert symptoms(history)[-1] == NonFiniteLoss(epoch=3, kept_epoch=description["best_epoch"])


def test_empty_split_is_an_error(plan: Plan, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the lung half has no Train image of COVID-19"):
        train(altered(plan, half="lung", targets=("lung",)), packed, tmp_path / "out")


def test_patience_stops_a_training_without_improvement(plan: Plan, packed: Path, tmp_path: Path) -> None:
    plan = altered(plan, epochs=60, patience=2, batch_size=4, learning_rate=1e-9)
    train(plan, packed, tmp_path / "out")
    history = pd.read_csv(tmp_path / "out" / "history.csv")
    description = json.loads((tmp_path / "out" / "network" / "network.json").read_text())
    assert len(history) < 60
    assert description["best_epoch"] == len(history) - 2
    assert (history["val_score"].iloc[-2:] <= history["val_score"].iloc[-3]).all()


# --- fine-tuning --------------------------------------------------------------------------------------------


@pytest.fixture
def trained(plan: Plan, tmp_path: Path) -> tuple[Path, StartFrom]:
    """Weights of a network, and how a plan names them."""
    torch.manual_seed(7)
    file = tmp_path / "trained.safetensors"
    weights = build_network(plan, set_up(7, "fp32", 1)).state_dict()
    file.write_bytes(safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()}))
    return file, StartFrom(weights=str(file), sha256=sha256([file.read_bytes()]))


def test_fine_tuning_starts_from_the_weights(
    plan: Plan, packed: Path, tmp_path: Path, trained: tuple[Path, StartFrom]
) -> None:
    file, start = trained
    still = altered(plan, epochs=1, learning_rate=1e-12, start_from=start)
    train(still, packed, tmp_path / "out")
    before = safetensors.torch.load_file(file)
    after = safetensors.torch.load_file(tmp_path / "out" / "network" / "weights.safetensors")
    kernels = [name for name in before if before[name].ndim == 4]
    assert len(kernels) > 5
    for name in kernels:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)
    random = build_network(plan, set_up(plan.seed, "fp32", 1)).state_dict()
    assert not torch.allclose(random[kernels[0]], before[kernels[0]])
    load_network(tmp_path / "out" / "network", set_up(0, "fp32", 1))  # its plan names the start


WRONG_STARTS = {
    "another file": ({"sha256": 64 * "0"}, "the file does not match start_from.sha256: found "),
    "no file": ({"weights": "none.safetensors"}, "none.safetensors: there is no such file"),
}


@pytest.mark.parametrize(("change", "line"), WRONG_STARTS.values(), ids=WRONG_STARTS)
def test_weights_that_are_not_those_named_fail_before_anything_is_trained(
    tiny_params: Params, tmp_path: Path, trained: tuple[Path, StartFrom], change: dict[str, str], line: str
) -> None:
    start = trained[1].model_copy(update=change)
    experiments = {
        name: experiment.model_copy(update={"start_from": start})
        for name, experiment in tiny_params.experiments.items()
    }
    with pytest.raises(InputError) as error:
        write_plans(tiny_params.model_copy(update={"experiments": experiments}), tmp_path / "plans")
    assert line in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "plans").exists()


def test_weights_of_another_network_are_a_one_line_error(
    plan: Plan, packed: Path, tmp_path: Path, trained: tuple[Path, StartFrom]
) -> None:
    wider = altered(plan, width=8, start_from=trained[1])
    with pytest.raises(InputError, match=r"is 4x1x3x3, but this network has 8x1x3x3; network, width, depth"):
        train(wider, packed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_safetensors_are_read(plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "pickle.safetensors"
    torch.save({"a": torch.zeros(1)}, file)
    start = StartFrom(weights=str(file), sha256=sha256([file.read_bytes()]))
    with pytest.raises(InputError, match=r"pickle\.safetensors: not a safetensors file"):
        load_start(build_network(plan, set_up(0, "fp32", 1)), start)


def test_a_plan_without_a_start_is_the_same_as_before_this_key(plan: Plan) -> None:
    assert "start_from" not in plan.to_json()
    assert Plan.from_json(plan.to_json()) == plan
