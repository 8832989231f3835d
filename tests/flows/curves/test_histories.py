"""Histories of running and finished trainings, from files of known content."""

import json
import math
from pathlib import Path

import pytest

from flows.curves.histories import State, find_histories, read_columns, read_history
from tasks.support.locks import in_use

HEADER = "seed,epoch,train_loss,val_loss,val_score,val_dice_infection,val_dice_lung\n"
ROWS = ("0,1,0.5,0.75,0.25,0.125,0.5\n", "0,2,0.25,0.5,0.75,0.5,0.875\n", "0,3,0.125,0.625,0.75,0.25,1\n")


def training(checkout: Path, name: str, rows: int = 3, network: bool = True, epochs: int = 8) -> Path:
    """Write a training with so many of the known epochs, as the stage does."""
    folder = checkout / "artifacts" / "train" / name
    folder.mkdir(parents=True)
    (folder / "history.csv").write_text(HEADER + "".join(ROWS[:rows]))
    if network:
        (folder / "network").mkdir()
    plans = checkout / "artifacts" / "plans"
    plans.mkdir(exist_ok=True)
    (plans / f"{name}.json").write_text(json.dumps({"epochs": epochs}))
    return folder


def test_a_finished_history(tmp_path: Path) -> None:
    training(tmp_path, "a-seed0")
    history = read_history(tmp_path, "a-seed0")
    assert history
    assert (history.state, history.planned, history.epochs, history.span) == (State.FINISHED, 8, (1, 2, 3), 3)
    assert history.best_epoch == 2  # the first of two with the same score
    assert history.of("val_loss") == (0.75, 0.5, 0.625)
    assert history.at("val_score", 2) == 0.75
    assert history.dice_columns() == ["val_dice_infection", "val_dice_lung"]


def test_states(tmp_path: Path) -> None:
    folder = training(tmp_path, "a-seed0", rows=2, network=False)
    history = read_history(tmp_path, "a-seed0")
    assert history and history.state is State.STOPPED and history.span == 2
    with in_use(folder):
        history = read_history(tmp_path, "a-seed0")
        assert history and history.state is State.RUNNING
        assert (history.last_epoch, history.span) == (2, 8)
        (folder / "history.csv").unlink()  # the first epoch has not ended
        history = read_history(tmp_path, "a-seed0")
        assert history and (history.state, history.last_epoch, history.best_epoch) == (State.RUNNING, 0, 0)
    assert read_history(tmp_path, "a-seed0") is None


def test_without_locks_a_training_without_a_network_counts_as_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.curves.histories.is_in_use", lambda folder: None)
    training(tmp_path, "a-seed0", network=False)
    training(tmp_path, "b-seed0")
    assert [history.state for history in find_histories(tmp_path)] == [State.RUNNING, State.FINISHED]


def test_cells_without_a_number_and_partial_rows() -> None:
    columns = read_columns("seed,epoch,val_score\n0,1,0.5\n0,2,\n0,3")
    assert columns["epoch"] == (1.0, 2.0)
    assert columns["val_score"][0] == 0.5 and math.isnan(columns["val_score"][1])
    assert read_columns("") == read_columns("a,b\n1,2\n") == {}
    assert read_columns("seed,epoch\n0,1\n0,x\n") == {"seed": (0.0,), "epoch": (1.0,)}


def test_trainings_of_this_checkout_and_of_runs_are_found_by_name_stage_or_pattern(tmp_path: Path) -> None:
    training(tmp_path, "a-seed0")
    training(tmp_path, "b-seed0")
    training(tmp_path / "runs" / ".checkouts" / "quick", "a-seed0", rows=1)
    (tmp_path / "runs" / ".checkouts" / "quick.lock").touch()
    (tmp_path / "artifacts" / "train" / ".c-seed0.partial").mkdir()

    def names(*keys: str) -> list[str]:
        return [history.name for history in find_histories(tmp_path, keys)]

    assert names() == ["a-seed0", "b-seed0", "quick: a-seed0"]
    assert names("a-seed0") == names("train@a-seed0") == names("a*") == ["a-seed0", "quick: a-seed0"]
    assert names("c*") == []
    assert find_histories(tmp_path / "missing") == []
