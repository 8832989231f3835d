import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.support import events as module
from tasks.support import progress as lines
from tasks.support.events import VARIABLE, Event, Reader, part, report
from tasks.support.progress import progress


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file to which events are written."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "events.jsonl"))
    monkeypatch.setattr(module, "EVERY", 0.0)
    return tmp_path / "events.jsonl"


def test_event_is_a_json_line_as_documented(file: Path) -> None:
    report("report1_bce epoch 3 of 8", 12, 48)
    report("epochs of report1_bce", 3, 8, {"train_loss": 0.5, "val_loss": float("nan")})
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    assert datetime.now(UTC) - datetime.fromisoformat(first.pop("time")) < timedelta(minutes=1)
    assert first == {
        "what": "report1_bce epoch 3 of 8",
        "done": 12,
        "total": 48,
        "fraction": 0.25,
        "scores": {},
    }
    assert second["scores"] == {"train_loss": 0.5}


def test_progress_reports_items_after_they_are_done(file: Path) -> None:
    items = progress("abcd", 4, "download")
    next(items)
    assert not file.exists()
    next(items)
    reader = Reader(file)
    assert [(event.what, event.done, event.total, event.fraction) for event in reader.new()] == [
        ("download", 1, 4, 0.25)
    ]
    assert "".join(items) == "cd"
    assert [event.done for event in reader.new()] == [2, 3, 4]
    assert reader.new() == []


def test_events_are_at_least_a_second_apart_except_the_last(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY", 3600.0)
    list(progress(range(1000), 1000, "download"))
    assert [event.done for event in Reader(file).new()] == [1000]


def test_parts_count_towards_the_whole(file: Path) -> None:
    for epoch in range(2):
        with part(epoch, 2):
            list(progress("ab", 2, f"epoch {epoch + 1} of 2"))
        report("epochs", epoch + 1, 2)
    with part(1, 2), part(2, 4):
        report("within a part of a part", 1, 2)
    fractions = [event.fraction for event in Reader(file).new()]
    assert fractions == [0.25, 0.5, 0.5, 0.75, 1.0, 1.0, 0.8125]


def test_without_the_variable_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(lines, "LINE_EVERY", 0.0)
    monkeypatch.chdir(tmp_path)
    assert "".join(progress("ab", 2, "download")) == "ab"
    assert [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "download: 1 of 2",
        "download: 2 of 2",
    ]
    assert list(tmp_path.iterdir()) == []


def test_unwritable_file_does_not_stop_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "missing" / "events.jsonl"))
    assert "".join(progress("ab", 2, "download")) == "ab"


def test_complete_lines_are_read_and_invalid_ones_skipped(file: Path) -> None:
    report("download", 1, 4)
    whole = file.read_bytes()
    reader = Reader(file)
    file.write_bytes(whole[:30])
    assert reader.new() == []
    file.write_bytes(whole)
    (first,) = reader.new()
    assert (first.what, first.done, first.total) == ("download", 1, 4)
    with file.open("ab") as events:
        events.write(whole[:40] + b"\n" + b'{"what": 3}\n' + b"\xff\n" + whole + whole[:20])
    assert reader.new() == [first]
    assert isinstance(first, Event)
