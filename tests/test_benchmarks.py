"""The benchmarks measure what they claim, and refuse impossible numbers."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tasks.scoring.intervals import Interval
from tasks.settings.experiments import Plan
from tasks.settings.schema import Promotion
from tasks.settings.training import TrainingSettings
from tests.bundles import Pipeline
from tests.helpers import ROOT, benchmark

experiment, rates, output = map(benchmark, ("experiment", "rates", "output"))
train, inference, predict, false_wins, gate = map(
    benchmark, ("train", "inference", "predict", "false_wins", "gate")
)


def plan_of(*sets: str) -> Plan:
    # fp32, because "auto" chooses bf16 on some machines
    words = ["training.depth=2", "training.threads=1", "training.precision=fp32", *sets]
    plan: Plan = experiment.make_plan("phantom://", 32, 1, {"width": 4}, words)
    return plan


def test_multiply_adds_are_those_of_the_network() -> None:
    """Computed by hand: 2 weights, 5 channels of 3x3x2, and 5. The backward pass takes twice as many."""
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 1, 1))
    forward = 32 * 32 * (2 + 5 * 9 * 2 + 5)
    counted = rates.operations(network, 32)
    assert counted.forward == 2 * forward
    assert counted.step == 2 * (3 * forward - 32 * 32 * 2)  # the image needs no gradient
    assert counted.parameters == (2 + 2) + (90 + 5) + (5 + 1)


@pytest.mark.parametrize("kind", ["ours", "plain"])
def test_a_benchmark_counts_the_operations_of_the_network_it_trains(kind: str, tiny_packed: Path) -> None:
    def facts(*sets: str) -> Any:
        files = [(ROOT, ROOT)]  # never opened
        contestant = train.MAKERS[kind](train.Setting(plan_of(*sets), tiny_packed, files))
        found = contestant.facts()
        assert found.operations.parameters == sum(p.numel() for p in contestant.network.parameters())
        return found

    whole, folded = facts(), facts("training.patch=2")
    assert whole.network == "residual_unet, width 4, depth 2, patch 1"
    assert folded.network == "residual_unet, width 4, depth 2, patch 2"
    assert folded.operations.step < whole.operations.step / 3
    assert (folded.number_format, folded.threads) == ("fp32", 1)


def test_both_training_loops_start_from_the_same_network(tiny_packed: Path) -> None:
    setting = train.Setting(plan_of("training.patch=2"), tiny_packed, [(ROOT, ROOT)])
    ours, plain = (train.MAKERS[kind](setting).network.state_dict() for kind in ("ours", "plain"))
    assert all(torch.equal(weight, plain[name]) for name, weight in ours.items())


def test_a_benchmark_is_the_same_in_every_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark sets all of `training`, except what its experiment sets."""
    given = {"alpha", "epochs", "half", "image_size", "targets", "train_classes"}
    assert experiment.TRAINING.keys() == TrainingSettings.model_fields.keys() - given
    plan = plan_of()
    text = (ROOT / "params.yaml").read_text()
    for old, new in {"patch: 1": "patch: 2", "ema: 0.0": "ema: 0.9", "flip: 0.0": "flip: 0.5"}.items():
        assert text.count(f" {old} ") == 1
        text = text.replace(f" {old} ", f" {new} ")
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.setattr(experiment, "ROOT", tmp_path)
    assert plan_of() == plan
    assert plan_of("training.patch=2").patch == 2


@pytest.mark.parametrize("number_format", ["fp32", "bf16"])
def test_measuring_a_matrix_rate_takes_seconds_on_any_processor(number_format: str) -> None:
    threads, began = torch.get_num_threads(), time.process_time()
    rate = rates.matrix_rate(number_format, 1)
    assert time.process_time() - began < 20  # with emulated bf16, one product of the largest size takes 40 s
    assert 1e8 < rate < 1e14
    assert rates.matrix_rate(number_format, 1) == rate  # measured once
    assert torch.get_num_threads() == threads


def test_a_share_above_100_percent_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert rates.checked_share("ours", 3.0, 4.0, "the rate") == 0.75
    assert capsys.readouterr().out == ""
    assert output.percent(rates.checked_share("ours", 1.74, 1.0, "the fp32 matrix rate")) == "refused"
    line = "measurement error: ours: 174.0% of the fp32 matrix rate is impossible; omitting it\n"
    assert capsys.readouterr().out == line


def test_evaluation_is_compared_with_the_network_that_was_trained(tiny_packed: Path, tmp_path: Path) -> None:
    plan = plan_of("training.patch=2")
    inference.train(plan, tiny_packed, tmp_path / "trained")
    setting = inference.Setting(plan, tiny_packed, tiny_packed.parent / "raw", tmp_path / "trained", [])
    ours, plain = inference.Network(setting), inference.PlainLoop(setting)
    facts = ours.facts()
    assert facts[:3] == plain.facts()[:3]
    found = inference.found_of("network", facts, [ours.run()], images=9)
    assert found["network"] == "residual_unet, width 4, depth 2, patch 2"
    assert 0 < found["mfu"] < 1 and found["iou"] is None
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(ours.network(x), plain.network(x))


def test_false_wins_are_counted_in_any_pair_and_real_ones_in_the_first() -> None:
    judged = iter([(0.0, 0.0, 0.1), (0.0, -0.2, 0.0), (0.1, 0.1, 0.1), (0.0, 0.0, 0.0)] * 2)

    def judge(_: object) -> list[Interval]:
        return [Interval(low, low, low) for low in next(judged)]

    assert false_wins.rate(false_wins.Situation("equal", [1, 1, 1]), judge, trials=4) == 0.75
    assert false_wins.rate(false_wins.Situation("better", [1, 1, 1], better=0.1), judge, trials=4) == 0.25


def test_the_table_of_false_wins_has_a_line_for_each_situation() -> None:
    lines = list(false_wins.table(trials=2))
    situations = [*false_wins.EQUAL, *false_wins.RECIPES, *false_wins.REAL]
    assert len(lines) == 2 + len(situations)
    assert all(any(line.startswith(each.name) for line in lines) for each in situations)


def test_predicting_is_compared_with_the_plain_loop_and_the_network_of_each_round() -> None:
    rates = {"onnx": [40.0, 60.0], "plain loop": [20.0, 20.0], "onnx network": [80.0, 80.0]}
    heading, onnx, loop, network = predict.table(rates)
    assert onnx == ["onnx", "50.0 (40.0 to 60.0)", "2.50 (2.00 to 3.00)", "0.62 (0.50 to 0.75)"]
    assert loop[2:] == ["1.00 (1.00 to 1.00)", ""]
    assert network[3] == "" and len(heading) == 4


def test_predicting_is_timed_with_one_network_on_whole_images(pipeline: Pipeline) -> None:
    for name in ("combined", "two_step_infection"):
        with pytest.raises(SystemExit, match="expected a bundle of one network on whole images"):
            predict.Predict(predict.Setting("onnx", pipeline.bundle(name), ()))


def test_the_gate_passes_what_is_better_and_rarely_what_is_worse() -> None:
    promotion = Promotion()
    worse = [gate.rate(one, promotion, trials=15) for one in gate.worse(promotion)]
    assert max(worse) <= 0.2  # at most 5%, and the chance of 15 trials
    better = gate.Challenger("better", gain=0.08, apart=0.5)
    assert gate.rate(better, promotion, trials=15) > 0.8


def test_a_drawn_challenger_differs_by_its_gain() -> None:
    drawn = gate.Challenger("", 0.05, {"Normal": 0.1}).draw(np.random.default_rng(0))
    assert drawn.champion is not None
    assert (drawn.challenger["id"] == drawn.champion["id"]).all()
    change = (drawn.challenger["dice"] - drawn.champion["dice"]).groupby(drawn.champion["class"]).mean()
    assert change["COVID-19"] == pytest.approx(0.05, abs=0.03)
    assert change["Normal"] == pytest.approx(-0.1, abs=0.05)
