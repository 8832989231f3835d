"""A training that is interrupted, at any time and in any way, ends like an uninterrupted one."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tasks.packed.reader import PackedSplit
from tasks.settings.experiments import Plan
from tasks.settings.params import Params
from tasks.support import checkpoints
from tasks.support.checkpoints import FOLDER_VARIABLE, Checkpoint, key_of
from tasks.support.cli import stage_main
from tasks.support.locks import is_in_use
from tasks.train import train
from tests.helpers import EVERY_CHANGE, ROOT, made


@pytest.fixture
def plan(tiny_params: Params) -> Plan:
    """A training with every kind of state: moments, schedule, weight average, augmentation, two targets."""
    plan = tiny_params.plans["report1_bce_iou-seed0"]
    augment = plan.augment.model_copy(update=EVERY_CHANGE)
    changes = {"augment": augment, "ema": 0.9, "batch_size": 4, "epochs": 8, "schedule": "one_cycle"}
    return plan.model_copy(update=changes | {"optimiser": "adamw", "targets": ("infection", "lung")})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the checkpoints."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "checkpoints"))
    return tmp_path / "checkpoints"


@pytest.fixture(scope="module")
def fresh() -> ForkServerContext:
    """Processes with all modules imported, but no shared state."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tasks.train"])
    return context


def train_with_a_checkpoint_each_step(plan: Plan, packed: Path, out: Path, folder: Path) -> None:
    os.environ[FOLDER_VARIABLE] = str(folder)
    torch.set_num_threads(1)
    checkpoints.WITHIN_EPOCH, checkpoints.SHARE_OF_TIME = 0.0, 1.0
    stage_main(lambda: train(plan, packed, out))


def started(fresh: ForkServerContext, *arguments: Any) -> BaseProcess:
    process = fresh.Process(target=train_with_a_checkpoint_each_step, args=arguments)
    process.start()
    return process


def ended(fresh: ForkServerContext, *arguments: Any) -> int | None:
    process = started(fresh, *arguments)
    process.join(60)
    return process.exitcode


def wait_for_a_save(folder: Path, process: BaseProcess) -> None:
    began = time.time_ns()
    while process.is_alive() and all(path.stat().st_mtime_ns < began for path in folder.glob("*.pt")):
        time.sleep(0.002)


@pytest.mark.parametrize("times", [8, pytest.param(40, marks=pytest.mark.soak)])
def test_killed_training_resumes_to_identical_bytes(
    plan: Plan, tiny_packed: Path, tmp_path: Path, folder: Path, fresh: ForkServerContext, times: int
) -> None:
    arguments = (plan, tiny_packed, tmp_path / "out", folder)
    assert ended(fresh, plan, tiny_packed, tmp_path / "whole", tmp_path / "others") == 0
    whole = made(tmp_path / "whole")
    draw, kills, steps, epochs = random.Random(7), 0, set(), set()
    while kills < times:
        process = started(fresh, *arguments)
        if kills % 4:  # during the training itself, not its start
            wait_for_a_save(folder, process)
        process.join(draw.uniform(0.0, 0.2))
        process.kill()
        process.join()
        if (tmp_path / "out" / "network").exists():  # finished before all kills: start over
            assert made(tmp_path / "out") == whole
            shutil.rmtree(tmp_path / "out")
            continue
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        history = tmp_path / "out" / "history.csv"  # never a partial file, nor other rows
        if history.exists():
            assert whole["history.csv"].startswith(history.read_bytes())
            epochs.add(history.read_bytes().count(b"\n") - 1)
        steps |= {torch.load(path)["fitter"]["step"] for path in folder.glob("*.pt")}
    assert ended(fresh, *arguments) == 0
    assert made(tmp_path / "out") == whole
    assert len(steps) > 1  # some kills were within epochs
    assert epochs  # some kills were after the first epoch
    assert not list(folder.glob("*.pt"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_saves_the_state_and_exits(
    plan: Plan, tiny_packed: Path, tmp_path: Path, folder: Path, number: int
) -> None:
    """As a command with the default interval between checkpoints, so the signal causes the saving."""
    (tmp_path / "plan.json").write_text(plan.model_copy(update={"epochs": 400}).to_json())
    command = [sys.executable, "-m", "tasks.train", tmp_path / "plan.json", tiny_packed, tmp_path / "out"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    with process:
        lines = iter(process.stdout)
        next(line for line in lines if "epoch 2/" in line)
        process.send_signal(number)
        said = list(lines)
    assert process.returncode == 128 + number
    assert said[-1] == f"{plan.name}: stopped; the same command continues from here\n"
    (path,) = folder.glob("*")
    assert torch.load(path)["fitter"]["epoch"] >= 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["history.csv"]
    history = pd.read_csv(tmp_path / "out" / "history.csv")
    assert list(history["epoch"]) == list(range(1, torch.load(path)["fitter"]["epoch"] + 1))
    assert not is_in_use(tmp_path / "out")


@pytest.fixture
def saved(
    plan: Plan,
    tiny_packed: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Path:
    """The checkpoint of a training that failed at the end because the disk was full."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tasks.training.output.write_table", full)
        with pytest.raises(OSError, match="No space"):
            train(plan, tiny_packed, tmp_path / "full")
    assert epochs_said(capsys) == plan.epochs
    (path,) = folder.glob("*.pt")
    return path


def epochs_said(capsys: pytest.CaptureFixture[str]) -> int:
    return sum("val Dice" in line for line in capsys.readouterr().out.splitlines())


def test_only_the_same_training_resumes_from_a_checkpoint(
    plan: Plan, tiny_packed: Path, tmp_path: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {
        "learning_rate": 0.02,
        "loss_options": {"alpha": 0.3},
        "seed": 1,
        "epochs": 9,
        "train_classes": ("COVID-19", "Normal"),
    }
    for key, value in others.items():
        other = plan.model_copy(update={key: value})
        train(other, tiny_packed, tmp_path / key)
        assert epochs_said(capsys) == other.epochs, key
    ids = pd.read_csv(tiny_packed / "images.csv")["id"]
    train(plan, tiny_packed, tmp_path / "dropped", frozenset(ids[:1]))
    assert epochs_said(capsys) == plan.epochs
    assert list(saved.parent.iterdir()) == [saved]

    train(plan, tiny_packed, tmp_path / "again")
    assert epochs_said(capsys) < plan.epochs
    train(plan, tiny_packed, tmp_path / "fresh")  # a finished training leaves no checkpoint
    assert epochs_said(capsys) == plan.epochs
    assert made(tmp_path / "again") == made(tmp_path / "fresh")


def test_changed_pixels_or_code_change_the_key(
    plan: Plan, tiny_packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key() -> str:
        split = PackedSplit(tmp_path / "packed", plan.half, "Train", plan.targets, plan.train_classes)
        return key_of([split.digest()])

    shutil.copytree(tiny_packed, tmp_path / "packed")
    first = key()
    assert key() == first
    masks = tmp_path / "packed" / plan.half / "Train" / "lung.npy"
    array = np.load(masks)
    array[0, 3, 4] ^= 255
    np.save(masks, array)
    changed = key()
    assert changed != first
    module = types.ModuleType("tasks.other")
    module.__file__ = str(Path(checkpoints.__file__).parent / "dvc.py")
    monkeypatch.setitem(sys.modules, "tasks.other", module)
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"" if path.name == "dvc.py" else b"same")
    other = key()
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"edited" if path.name == "dvc.py" else b"same")
    assert key() != other


def test_unreadable_checkpoint_is_ignored(
    plan: Plan, tiny_packed: Path, tmp_path: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved.write_bytes(saved.read_bytes()[:1000])
    train(plan, tiny_packed, tmp_path / "out")
    assert f"{saved}: unreadable, so the training starts from the beginning" in capsys.readouterr().out


def test_loading_a_checkpoint_runs_no_code(tmp_path: Path, folder: Path) -> None:
    checkpoint = Checkpoint("any", "key")
    folder.mkdir()
    torch.save({"fitter": Path(tmp_path)}, checkpoint.path)  # an object whose loading would run code
    assert checkpoint.load() is None


def test_full_disk_costs_only_the_checkpoint(
    plan: Plan,
    tiny_packed: Path,
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(_state: object, path: Path) -> None:
        path.write_bytes(b"partial")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        train(plan, tiny_packed, tmp_path / "out")
    assert "not saved: [Errno 28] No space left on device" in capsys.readouterr().out
    assert not list(folder.iterdir())


def test_state_with_nan_is_never_saved(
    plan: Plan, tiny_packed: Path, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "WITHIN_EPOCH", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE_OF_TIME", 100.0)
    saved: list[bool] = []

    def save(_checkpoint: Checkpoint, state: dict[str, Any]) -> bool:
        saved.append(all(bool(w.isfinite().all()) for w in state["fitter"]["network"].values()))
        return True

    monkeypatch.setattr(Checkpoint, "save", save)
    plan = plan.model_copy(update={"learning_rate": 1e20, "schedule": "one_cycle"})
    train(plan, tiny_packed, tmp_path / "out")
    description = json.loads((tmp_path / "out" / "network" / "network.json").read_text())
    assert description["diverged"]
    assert saved and all(saved)
    assert not list(folder.glob("*.pt"))


def test_abandoned_checkpoints_are_deleted(folder: Path) -> None:
    folder.mkdir()
    key = "0123456789abcdef"
    kept = {f"new-0-{key}.pt": 29, f"now-0-{key}.pt.78": 0, "model.pt": 90, "notes": 90}
    for name, days in (kept | {f"an-old-0-{key}.pt": 31, f"half-0-{key}.pt.77": 1}).items():
        (folder / name).write_text("")
        then = time.time() - days * 86400
        os.utime(folder / name, (then, then))
    Checkpoint("any", "key")
    assert {path.name for path in folder.iterdir()} == set(kept)
