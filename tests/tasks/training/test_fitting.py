from pathlib import Path

import pytest
import torch
from torch import nn

from tasks.networks.device import set_up
from tasks.networks.network import build_network
from tasks.packed.reader import PackedSplit
from tasks.settings.experiments import Plan
from tasks.settings.params import Params
from tasks.training.fitting import Average, make_optimiser, make_schedule
from tests.trainings import altered, make_fitter, run_epoch, score, weights


@pytest.fixture
def packed(tiny_packed: Path) -> Path:
    return tiny_packed


@pytest.fixture
def plan(tiny_params: Params) -> Plan:
    return tiny_params.plans["report1_bce_iou-seed0"]


def test_averaged_weights_against_manual_computation(plan: Plan, packed: Path) -> None:
    fitter = make_fitter(altered(plan, ema=0.5, batch_size=2), packed)
    expected, steps = weights(fitter.network), 0
    decays = [2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5, 0.5]

    def follow(*_: object) -> None:
        nonlocal steps
        decay, steps = decays[steps] if steps < len(decays) else 0.5, steps + 1
        for name, value in weights(fitter._fitted).items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
            else:
                expected[name] = value

    fitter._optimiser.register_step_post_hook(follow)
    run_epoch(fitter)
    assert steps >= 3
    for name, value in weights(fitter.network).items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert fitter.network is not fitter._fitted


def test_average_of_a_constant_is_the_constant() -> None:
    network = nn.Linear(2, 1)
    average = Average(network, 0.99)
    for _ in range(3):
        average.update()
    assert torch.equal(average.network.weight, network.weight)
    assert not average.network.weight.requires_grad


@pytest.mark.parametrize("patch", [1, 2])
def test_deep_supervision_trains(plan: Plan, packed: Path, patch: int) -> None:
    supervised = {"network": "unet_plus_plus", "deep_supervision": True, "width": 4}
    fitter = make_fitter(altered(plan, **supervised, patch=patch, batch_size=4, epochs=6), packed)
    before = weights(fitter.network)
    losses = [run_epoch(fitter).loss for _ in range(6)]
    assert losses[-1] < losses[0]
    heads = [name for name in before if ".heads." in f".{name}" and name.endswith("weight")]
    assert len(heads) == plan.depth
    assert not any(torch.equal(before[name], weights(fitter.network)[name]) for name in heads)
    assert 0 <= score(fitter.network, plan, packed)["val_dice"] <= 1


def test_loss_of_several_outputs_is_their_mean(plan: Plan, packed: Path) -> None:
    fitter = make_fitter(plan, packed)
    outputs = tuple(torch.randn(2, 1, 8, 8) for _ in range(3))
    y = (torch.rand(2, 1, 8, 8) < 0.5).to(torch.uint8)
    by_hand = sum(fitter.loss(output, y).item() for output in outputs) / 3
    assert fitter._loss_of(outputs, y).item() == pytest.approx(by_hand)
    assert torch.equal(fitter._loss_of(outputs[0], y), fitter.loss(outputs[0], y))


def test_overfits_a_phantom(plan: Plan, packed: Path) -> None:
    plan = altered(plan, epochs=30, width=8, batch_size=8)
    fitter = make_fitter(plan, packed)
    losses = [run_epoch(fitter).loss for _ in range(plan.epochs)]
    assert losses[-1] < 0.5 * losses[0]
    assert score(fitter.network, plan, packed)["val_dice"] > 0.6


def test_flipping_moves_the_mask_with_its_image(plan: Plan, packed: Path) -> None:
    plan = altered(plan, {"flip": 0.5}, targets=("lung",))
    fitter = make_fitter(plan, packed)
    split = PackedSplit(packed, plan.half, "Train", plan.targets, plan.train_classes)
    indices = torch.arange(len(split))
    ((x, y),) = fitter._batches([indices])
    x, y = fitter._changed(x, y, len(split))
    straight, masks = split.images() / 255, split.masks() / 255
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
    split = PackedSplit(packed, plan.half, "Train", plan.targets, plan.train_classes)
    fitter = make_fitter(altered(plan, batch_size=4), packed)
    seen: list[int] = []
    read = fitter._batches._read
    monkeypatch.setattr(
        fitter._batches, "_read", lambda places: (seen.extend(places.tolist()), read(places))[1]
    )
    run_epoch(fitter)
    first = list(seen)
    seen.clear()
    run_epoch(fitter)
    assert sorted(first) == sorted(seen) == list(range(len(split)))
    assert first != seen


@pytest.mark.parametrize(
    ("schedule", "highest", "last"), [("constant", 0.1, 0.1), ("cosine", 0.1, 0.0), ("one_cycle", 0.1, 0.0)]
)
def test_schedules_peak_at_the_learning_rate(plan: Plan, schedule: str, highest: float, last: float) -> None:
    plan = altered(plan, schedule=schedule, learning_rate=0.1)
    optimiser = make_optimiser(plan, torch.nn.Linear(1, 1))
    scheduler = make_schedule(plan, optimiser, 50)
    rates = []
    for _ in range(50):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    assert max(rates) == pytest.approx(highest, rel=0.01)
    assert rates[-1] == pytest.approx(last, abs=2e-4)


def test_weight_decay_spares_biases_and_normalisation(plan: Plan) -> None:
    plan = altered(plan, optimiser="adamw", weight_decay=0.1)
    network = build_network(plan, set_up(0, "fp32", 1))
    groups = make_optimiser(plan, network).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        assert decay[id(parameter)] == (0.1 if parameter.ndim == 4 else 0.0), name
