"""Several processes give the result of one, and parts that of a whole batch. Uses real memory limits."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import safetensors.torch
import torch
from torch import nn

from tasks.networks.device import set_up
from tasks.networks.network import build_network
from tasks.packed.reader import PackedSplit
from tasks.settings.experiments import Plan
from tasks.settings.params import Params
from tasks.support.checkpoints import FOLDER_VARIABLE
from tasks.support.cli import InputError
from tasks.support.events import VARIABLE, Reader
from tasks.train import train
from tasks.training.batches import Batches
from tasks.training.fitting import Fitter
from tasks.training.processes import Group
from tests.helpers import EVERY_CHANGE, ROOT, TIMEOUT, made


@pytest.fixture(scope="module")
def plan(tiny_params: Params) -> Plan:
    plan = tiny_params.plans["report1_bce_iou-seed0"]
    augment = plan.augment.model_copy(update=EVERY_CHANGE)
    changes = {"augment": augment, "batch_size": 13, "epochs": 6, "ema": 0.9}  # a last batch of one image
    # In bf16, the default on some machines, rounding would hide the differences compared here.
    return plan.model_copy(update=changes | {"targets": ("infection", "lung"), "precision": "fp32"})


def command(plan: Plan, folder: Path, packed: Path, out: str = "out") -> list[Any]:
    folder.mkdir(exist_ok=True)
    (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    return [sys.executable, "-m", "tasks.train", folder / "plan.json", packed, folder / out]


def trained(plan: Plan, folder: Path, packed: Path) -> tuple[Path, str]:
    done = subprocess.run(
        command(plan, folder, packed), cwd=ROOT, capture_output=True, text=True, check=False, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return folder / "out", done.stdout


@pytest.fixture(scope="module")
def by_two(plan: Plan, tiny_packed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(folder / "events.jsonl"))
        return trained(plan.model_copy(update={"processes": 2}), folder, tiny_packed)


def test_two_processes_give_the_result_of_one(
    plan: Plan, tiny_packed: Path, tmp_path: Path, by_two: tuple[Path, str]
) -> None:
    two, said = by_two
    one, _ = trained(plan, tmp_path / "one", tiny_packed)
    assert "in fp32, 2 processes, 14 Train" in said
    assert sum("epoch 3/6" in line for line in said.splitlines()) == 1  # only one process prints
    events = Reader(two.parent / "events.jsonl").new()
    assert [event.done for event in events if event.what.startswith("epochs")] == [1, 2, 3, 4, 5, 6]
    histories = [pd.read_csv(out / "history.csv") for out in (one, two)]
    assert (histories[0]["val_dice"] > 0.1).any()
    for column in ("train_loss", "val_loss"):
        np.testing.assert_allclose(histories[1][column], histories[0][column], rtol=1e-3)
    np.testing.assert_allclose(histories[1]["val_dice"], histories[0]["val_dice"], atol=5e-3)
    weights = [safetensors.torch.load_file(out / "network" / "weights.safetensors") for out in (one, two)]
    assert weights[0].keys() == weights[1].keys()


@pytest.mark.soak
def test_two_processes_resume_after_a_signal_or_kill(
    plan: Plan, tiny_packed: Path, tmp_path: Path, by_two: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "checkpoints"))
    plan = plan.model_copy(update={"processes": 2})
    arguments = command(plan, tmp_path, tiny_packed)
    ends = []
    for epoch in (2, 4):
        with subprocess.Popen(
            arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            lines = iter(process.stdout)
            next(line for line in lines if f"epoch {epoch}/" in line)
            members = psutil.Process(process.pid).children(recursive=True)
            if epoch == 2:
                process.send_signal(signal.SIGTERM)
            else:
                workers = [member for member in members if "--parts" in member.cmdline()]
                assert len(workers) == 2
                workers[1].kill()
            said = list(lines)
            process.wait(60)
        ends.append(process.returncode)
        assert not any(member.is_running() for member in members)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["history.csv"]
        if epoch == 2:
            assert any("stopped; the same command continues from here" in line for line in said)
    assert ends == [128 + signal.SIGTERM, 128 + signal.SIGKILL]
    subprocess.run(arguments, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert made(tmp_path / "out") == made(by_two[0])


@pytest.mark.soak
def test_processes_combined_with_parts(plan: Plan, tiny_packed: Path, tmp_path: Path) -> None:
    changes = {"processes": 2, "accumulate": 2, "batch_size": 11, "epochs": 1}  # the last 3: 2 and 1
    out, _ = trained(plan.model_copy(update=changes), tmp_path, tiny_packed)
    assert json.loads((out / "network" / "network.json").read_text())["parts"] == 2
    assert np.isfinite(pd.read_csv(out / "history.csv")).all(axis=None)


def test_user_error_is_printed_once_for_all_processes(plan: Plan, tiny_packed: Path, tmp_path: Path) -> None:
    plan = plan.model_copy(update={"processes": 2, "half": "lung", "targets": ("lung",)})
    done = subprocess.run(
        command(plan, tmp_path, tiny_packed),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*: the lung half has no Train image of COVID-19\n", done.stderr)


@pytest.mark.soak
def test_divergence_ends_all_processes(plan: Plan, tiny_packed: Path, tmp_path: Path) -> None:
    plan = plan.model_copy(update={"processes": 2, "learning_rate": 1e20})
    out, printed = trained(plan, tmp_path, tiny_packed)
    assert json.loads((out / "network" / "network.json").read_text())["diverged"]
    assert printed.count("warning: ") == 1


def test_number_of_processes_must_match_the_plan(plan: Plan, tiny_packed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="processes: 2, but torchrun started 1; the numbers must be equal"):
        train(plan.model_copy(update={"processes": 2}), tiny_packed, tmp_path / "out")


@pytest.mark.parametrize(("batch", "size"), [(16, 2), (16, 3), (5, 4), (1, 4), (2, 2), (3, 1)])
def test_batch_is_distributed_over_processes(batch: int, size: int) -> None:
    places = torch.arange(10, 10 + batch)
    groups = [Group(rank, size) for rank in range(size)]
    shares = [places[group.rows(batch)] for group in groups]
    assert all(len(share) for share in shares)
    together = torch.cat(shares)
    assert len(together) == max(batch, size)
    assert set(together.tolist()) == set(places.tolist())


def without_normalisation(network: nn.Module) -> nn.Module:
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
    return network


def test_gradients_of_parts_add_up_to_the_batch(plan: Plan, tiny_packed: Path) -> None:
    plan = plan.model_copy(update={"batch_size": 14})
    split = PackedSplit(tiny_packed, plan.half, "Train", plan.targets, plan.train_classes)
    ends = []
    for parts in (1, 4):  # 14 images: 4, 4, 4 and 2
        compute = set_up(0, "fp32", 1)
        network = without_normalisation(build_network(plan, compute))
        fitter = Fitter(plan, network, compute, Batches(split, compute), parts=parts)
        fitted = fitter.run_epoch("test")
        ends.append((fitted.loss, [weight.grad.clone() for weight in network.parameters()]))
    assert ends[1][0] == pytest.approx(ends[0][0], rel=1e-6)
    for whole, parted in zip(ends[0][1], ends[1][1], strict=True):
        torch.testing.assert_close(parted, whole, atol=1e-7, rtol=1e-4)


#: Runs a stage with a limit of its current memory plus a number of MiB.
WITHIN = """
import resource, sys
import psutil, torch
from tasks.support.cli import stage_main
from tasks.train import main
limit = psutil.Process().memory_info().vms + int(sys.argv.pop(1)) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
stage_main(main)
"""


def within(mebibytes: int, arguments: list[Any]) -> subprocess.CompletedProcess[str]:
    short = [sys.executable, "-c", WITHIN, str(mebibytes), *arguments[3:]]
    return subprocess.run(short, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TIMEOUT)


@pytest.mark.soak
def test_insufficient_memory_doubles_the_parts(plan: Plan, tiny_packed: Path, tmp_path: Path) -> None:
    plan = plan.model_copy(update={"batch_size": 14, "epochs": 1, "width": 64, "depth": 1})
    done = within(110, command(plan, tmp_path, tiny_packed))
    assert done.returncode == 0, done.stderr
    assert "not enough memory for 14 images at a time; computing each batch in 2 parts" in done.stdout
    parts = json.loads((tmp_path / "out" / "network" / "network.json").read_text())["parts"]
    assert parts > 1
    asked, said = trained(plan.model_copy(update={"accumulate": parts}), tmp_path / "asked", tiny_packed)
    assert "not enough memory" not in said
    weights = "network/weights.safetensors"
    assert made(asked)[weights] == made(tmp_path / "out")[weights]


def test_insufficient_memory_for_single_images_is_an_error(
    plan: Plan, tiny_packed: Path, tmp_path: Path
) -> None:
    plan = plan.model_copy(update={"batch_size": 2, "epochs": 1, "width": 512, "depth": 1})
    done = within(100, command(plan, tmp_path, tiny_packed))
    assert done.returncode == 1
    assert done.stderr == (
        "error: report1_bce_iou-seed0: not enough memory for 1 image at a time; "
        "lower image_size, width or depth\n"
    )
    assert not (tmp_path / "out").exists()
