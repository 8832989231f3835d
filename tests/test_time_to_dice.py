"""benchmarks/time_to_dice.py: every contestant is scored and timed in the same way."""

import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.networks.device import set_up
from tasks.training.batches import Batches
from tasks.training.validation import validate
from tests.helpers import ROOT, benchmark

timing, contestants = benchmark("time_to_dice"), benchmark("contestants")
curves, train = benchmark("dice_curves"), benchmark("train")

TINY = (
    "training.image_size=32",
    "training.depth=2",
    "training.precision=fp32",
    "experiments.combined.width=4",
    "experiments.combined.epochs=2",
)


def plan_of(*sets: str) -> Any:
    options = [word for assignment in sets for word in ("--set", assignment)]
    return timing.plan_of(timing.make_parser().parse_args(["out", *options]))


def setting_of(packed: Path, **changes: Any) -> Any:
    setting = contestants.Setting(plan_of(*TINY), packed, threads=1, target=0.05, every=0.0, limit=30.0)
    return setting._replace(**changes)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Contestants run in this process; yields their names as they start."""
    started = []

    def start(out: Path, setting: Any, name: str, repeat: int, python: str) -> str:
        started.append(f"{name} {repeat}")
        file = timing.file_of(out, name, repeat)
        file.parent.mkdir(exist_ok=True)
        timing.run(setting, name, repeat, file)
        return ""

    monkeypatch.setattr(timing, "start", start)
    threads = torch.get_num_threads()
    yield started
    torch.set_num_threads(threads)


def test_ours_is_combined_of_the_laptop_preset_on_this_task() -> None:
    plan = plan_of()
    assert (plan.experiment, plan.network, plan.loss, plan.width, plan.patch) == (
        *("combined", "residual_unet", "batch_bce_iou"),
        *(24, 2),
    )
    assert (plan.image_size, plan.epochs, plan.targets, plan.train_classes) == (
        *(128, 28),
        *(("infection",), ("COVID-19",)),
    )


@pytest.mark.parametrize("make", ["plain_network", "monai_network"])
def test_the_networks_have_the_number_of_parameters_of_ours(make: str) -> None:
    wanted = contestants.parameters_of_plan(plan_of())
    network = getattr(contestants, make)
    width = contestants.width_like(wanted, lambda width: network(width, 4))
    found = contestants.parameters_of(network(width, 4))
    assert found == pytest.approx(wanted, rel=0.05)


def test_masks_are_scored_as_in_the_stage_train(tiny_packed: Path) -> None:
    setting = setting_of(tiny_packed)
    ours = contestants.Ours(setting, seed=0)
    assert ours.network.training
    found = timing.mean_dice(ours, setting.split("Val"))
    assert ours.network.training
    compute = set_up(0, "fp32", 1)
    val = Batches(setting.split("Val"), compute)
    scores = validate(ours.network, val, setting.plan, ours._fitter.loss, compute)
    assert found == pytest.approx(scores["val_dice"], abs=1e-12)
    assert 0 < found < 1


def test_the_plain_loop_with_our_network_starts_from_the_same_weights(tiny_packed: Path) -> None:
    setting = setting_of(tiny_packed)
    ours, same = contestants.Ours(setting, 3), timing.MAKERS["same"](setting, 3)
    others = same.network.state_dict()
    assert all(torch.equal(weight, others[name]) for name, weight in ours.network.state_dict().items())


def test_the_clock_stands_still_during_validation(monkeypatch: pytest.MonkeyPatch, tiny_packed: Path) -> None:
    """Steps of 20 s: validated after 6 s or more at first, later a tenth of the time so far, at most 30 s."""
    now, points = 0.0, list[Any]()

    def validate() -> float:
        nonlocal now
        now += 1000
        return len(points) / 100

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    monkeypatch.setattr(timing, "cpu_seconds", lambda: 2 * now)
    setting = setting_of(tiny_packed, every=30.0, limit=470.0, target=0.5)
    course = timing.Course(setting, validate, points.append)
    with pytest.raises(timing.EndedError, match="limit"):
        while True:
            now += 20
            course.after_step()
    seconds = [*range(20, 221, 20), 260, 300, 340, 380, 420, 460, 480]
    assert [p["seconds"] for p in points] == seconds
    assert [p["cpu"] for p in points] == [2 * s for s in seconds]
    assert [p["steps"] for p in points] == [s / 20 for s in seconds]
    assert points[3]["dice"] == 0.03 and points[3]["validation"] == 1000


def test_contestants_take_turns_and_a_second_call_repeats_nothing(
    tiny_packed: Path, tmp_path: Path, in_this_process: list[str]
) -> None:
    names, setting = ["ours", "plain", "monai", "nnunet"], setting_of(tiny_packed)
    no_nnunet = sys.executable
    timing.race(tmp_path, setting, names, 2, no_nnunet)
    turns = ["ours 1", "plain 1", "monai 1", "monai 2", "plain 2", "ours 2"]
    assert in_this_process == turns

    results = json.loads((tmp_path / "results.json").read_text())
    assert [(run["name"], run["repeat"]) for run in results["runs"]] == [
        (name, repeat) for repeat in (1, 2) for name in ("ours", "plain", "monai")
    ]
    for run in results["runs"]:
        last = run["points"][-1]
        assert run["ended"] == "target" and last["dice"] >= 0.05 > max(
            [p["dice"] for p in run["points"][:-1]], default=0.0
        )
        assert run["seconds"] == last["seconds"] > 0 and last["cpu"] >= 0  # counted in steps of 10 ms
        assert run["facts"]["precision"] == "fp32" and run["facts"]["batch_size"] == 16
    assert results["failures"] == {"nnunet": f"skipped: {no_nnunet} cannot import nnunetv2"}
    assert "| nnU-Net v2, 2d | skipped:" in (tmp_path / "results.md").read_text()
    drawn = ElementTree.parse(tmp_path / "curves.svg").iter("{http://www.w3.org/2000/svg}polyline")
    assert len(list(drawn)) == 6

    timing.file_of(tmp_path, "plain", 2).write_text('{"facts": {}, "load": 0.0}\n{"seconds": 1.0, "di')
    timing.race(tmp_path, setting, names, 2, no_nnunet)
    assert in_this_process == [*turns, "plain 2"]


def test_a_run_that_never_reaches_the_target_ends_with_its_last_epoch(
    tiny_packed: Path, tmp_path: Path, in_this_process: list[str]
) -> None:
    timing.race(tmp_path, setting_of(tiny_packed, target=2.0, every=60.0), ["ours"], 1, sys.executable)
    (run,) = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert (run["ended"], run["seconds"], len(run["points"])) == ("last epoch", None, 1)
    assert run["points"][0]["steps"] == 2  # epochs of one batch
    assert "| ours | not in 30 s |" in (tmp_path / "results.md").read_text()


def run_of(name: str, repeat: int, *scores: float) -> Any:
    """A run with a point every 10 s, 25 steps and 15 CPU seconds."""
    facts = {"batch_size": 16, "parameters": 2_000_000, "precision": "fp32"}
    facts |= {"network": f"the network of {name}", "loss": "bce", "optimiser": "adam"}
    points = [
        {"seconds": 10 * n, "cpu": 15 * n, "steps": 25 * n, "dice": dice, "validation": 2.0}
        for n, dice in enumerate(scores, start=1)
    ]
    return curves.Run(name, repeat, facts, 0.0, points, "target")


def test_the_table_compares_within_a_repeat() -> None:
    runs = [
        *(run_of("ours", 1, 0.5, 0.7), run_of("plain", 1, 0.1, 0.2, 0.3, 0.8)),
        *(run_of("ours", 2, 0.9), run_of("plain", 2, 0.71)),
        *(run_of("ours", 3, 0.7), run_of("plain", 3, 0.1, 0.6)),
    ]
    rows = list(curves.table_of(["ours", "plain"], runs, {}, 0.7, 120.0))
    assert rows[2:4] == [
        "| ours | 10.0 (10.0 to 20.0) |  | 15.0 (15.0 to 30.0) | 3 of 3 | 40 (40 to 40) | 2 (2 to 4) "
        "| 2.00 M | fp32 |",
        "| plain PyTorch loop | 40.0 (10.0 to never) | 2.00 (1.00 to never) | 60.0 (15.0 to never) | 2 of 3 "
        "| 40 (40 to 40) | 4 (2 to 8) | 2.00 M | fp32 |",
    ]
    assert len(rows[0].split("|")) == len(rows[2].split("|"))
    missed = next(curves.cells([run_of("plain", 1, 0.6)], runs[:1], 0.7, 120.0))
    assert missed == "not in 120 s" and run_of("plain", 1, 0.6).seconds(0.7) == math.inf


def test_each_run_is_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "time_to_dice.py"), str(tmp_path)]
    options = ["--data", "phantom://45?size=64", "--target", "0.05", "--every", "0", "--threads", "1"]
    sets = [word for assignment in TINY for word in ("--set", assignment)]
    whole = [*command, *options, *sets, "--contestants", "ours", "--repeats", "1"]
    done = subprocess.run(whole, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ours, repeat 1: 0.05 after" in done.stdout and "| ours |" in done.stdout
    changed = subprocess.run([*whole, "--target", "0.06"], capture_output=True, text=True)
    assert (changed.returncode, changed.stderr) == (
        1,
        f"error: {tmp_path} holds results with other settings; name another folder\n",
    )
