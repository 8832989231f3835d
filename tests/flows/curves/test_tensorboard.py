"""Event files from known histories, read back by TensorBoard itself."""

import math
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flows.curves.histories import find_histories
from flows.curves.tensorboard import EventFiles
from tasks.support.cli import InputError
from tests.flows.curves.test_histories import HEADER, ROWS, training


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def write(repository: Path, to: Path) -> None:
    with closing(EventFiles(to)) as events:
        events.update(find_histories(repository))


def test_every_value_is_written_once_while_the_history_grows(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder, to = training(tmp_path, "a-seed0", rows=1), tmp_path / "events"
    training(tmp_path / "runs" / ".checkouts" / "quick", "b-seed0")
    with closing(EventFiles(to)) as events:
        for rows in (1, 1, 2, 3, 3):
            (folder / "history.csv").write_text(HEADER + "".join(ROWS[:rows]))
            events.update(find_histories(tmp_path))
    expected = {
        "loss/train_loss": [(1, 0.5), (2, 0.25), (3, 0.125)],
        "loss/val_loss": [(1, 0.75), (2, 0.5), (3, 0.625)],
        "val/val_score": [(1, 0.25), (2, 0.75), (3, 0.75)],
        "val/val_dice_infection": [(1, 0.125), (2, 0.5), (3, 0.25)],
        "val/val_dice_lung": [(1, 0.5), (2, 0.875), (3, 1.0)],
    }
    assert scalars(to / "a-seed0") == expected
    assert scalars(to / "quick" / "b-seed0") == expected


def test_writing_again_replaces_only_its_own_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder, to = training(tmp_path, "a-seed0"), tmp_path / "events"
    write(tmp_path, to)
    other = to / "a-seed0" / "events.out.tfevents.1.host"
    other.touch()
    (folder / "history.csv").write_text(HEADER + ROWS[0] + "0,2,0.25,,,,\n")  # the loss became NaN
    write(tmp_path, to)
    assert other.exists()
    assert len(list(other.parent.iterdir())) == 2
    other.unlink()
    found = scalars(to / "a-seed0")
    assert found["loss/train_loss"] == [(1, 0.5), (2, 0.25)]
    assert found["loss/val_loss"] == [(1, 0.75)]
    assert not any(math.isnan(value) for values in found.values() for _, value in values)


def test_a_training_that_starts_over_starts_a_new_file(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder, to = training(tmp_path, "a-seed0"), tmp_path / "events"
    with closing(EventFiles(to)) as events:
        events.update(find_histories(tmp_path))
        (folder / "history.csv").write_text(HEADER + "0,1,0.875,0.75,0.25,0.125,0.5\n")
        events.update(find_histories(tmp_path))
    assert scalars(to / "a-seed0")["loss/train_loss"] == [(1, 0.875)]


def test_without_tensorboard_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"TensorBoard is not installed: pip install tensorboard$"):
        EventFiles(tmp_path / "events")
    assert not (tmp_path / "events").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "events").touch()
    with pytest.raises(InputError, match="not a folder"):
        EventFiles(tmp_path / "events")
