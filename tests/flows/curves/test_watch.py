"""`cxr watch`, on files that grow."""

import io
import os
import signal
import subprocess
import sys
import threading
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import pytest

from flows.curves import watch as watching
from flows.curves.histories import find_histories
from flows.curves.watch import NOTHING, Screen, watch
from tasks.support.cli import InputError
from tasks.support.locks import in_use
from tests.flows.curves.test_histories import HEADER, ROWS, training
from tests.helpers import ROOT, eventually


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "EVERY", 0.05)
    monkeypatch.setattr(watching, "PATIENCE", 0.5)
    monkeypatch.setattr(watching, "EVERY_IN_A_LOG", 0.0)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")


def states(output: str) -> list[str]:
    return [line for line in output.splitlines() if "-seed0: " in line]


def test_it_follows_a_training_to_its_end(tmp_path: Path) -> None:
    folder = training(tmp_path, "a-seed0", rows=1, network=False)
    printed = io.StringIO()

    def wait_for_epoch(number: int) -> None:
        eventually(f"epoch {number}", lambda: f"training, epoch {number} of 8" in printed.getvalue())

    def train() -> None:
        for rows in (2, 3):
            wait_for_epoch(rows - 1)
            (folder / "history.csv").write_text(HEADER + "".join(ROWS[:rows]))
        wait_for_epoch(3)
        (folder / "network").mkdir()

    def run() -> None:
        with in_use(folder):
            started.set()
            train()

    started = threading.Event()
    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    with redirect_stdout(printed):
        watch(tmp_path, ["a*"], once=False, tensorboard=None)
    thread.join()
    output = printed.getvalue()
    assert states(output) == [
        *(f"a-seed0: training, epoch {epoch} of 8" for epoch in (1, 2, 3)),
        "a-seed0: finished, epoch 3 of 8",
    ]
    assert output.splitlines()[-1] == NOTHING
    assert "\x1b" not in output  # the output is no terminal


def test_once_draws_once_also_while_a_training_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with in_use(training(tmp_path, "a-seed0", rows=2, network=False)):
        watch(tmp_path, [], once=True, tensorboard=None)
    output = capsys.readouterr().out
    assert states(output) == ["a-seed0: training, epoch 2 of 8"]
    assert NOTHING not in output


def test_it_says_so_if_nothing_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch(tmp_path, [], once=False, tensorboard=None)
    assert capsys.readouterr().out == f"{NOTHING}, and none has left a history\n"
    training(tmp_path, "a-seed0")
    watch(tmp_path, [], once=False, tensorboard=None)
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[-1]) == ("a-seed0: finished, epoch 3 of 8", NOTHING)


def test_an_unknown_training_is_an_error_that_names_the_known_ones(tmp_path: Path) -> None:
    training(tmp_path, "a-seed0")
    training(tmp_path, "b-seed0")
    with pytest.raises(InputError, match=r"^c: no such training is running .*; known: a-seed0, b-seed0$"):
        watch(tmp_path, ["a-seed0", "c"], once=True, tensorboard=None)


def test_event_files_are_written_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    training(tmp_path, "a-seed0")
    watch(tmp_path, [], once=True, tensorboard=tmp_path / "events")
    assert list((tmp_path / "events" / "a-seed0").glob("events.out.tfevents.*"))
    assert capsys.readouterr().out.endswith(f"TensorBoard: tensorboard --logdir {tmp_path / 'events'}\n")


COMMAND = """
import sys
from pathlib import Path
from flows.curves.watch import watch
from tasks.support.cli import stage_main
stage_main(lambda: watch(Path(sys.argv[1]), [], False, None))
"""


def test_ctrl_c_ends_it_without_a_traceback_on_a_terminal(tmp_path: Path) -> None:
    ours, terminal = os.openpty()
    with in_use(training(tmp_path, "a-seed0", rows=1, network=False)):
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, tmp_path],
            cwd=ROOT,
            stdout=terminal,
            stderr=subprocess.PIPE,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
        )
        shown = b""
        while b"epoch 8" not in shown:  # the last line of the drawing
            shown += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    os.close(ours)
    os.close(terminal)
    assert (process.returncode, errors) == (130, b"")


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    training(tmp_path, "a-seed0")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, tmp_path], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_each_frame_replaces_the_one_before(tmp_path: Path) -> None:
    folder = training(tmp_path, "a-seed0", rows=1)
    screen = Screen(terminal := Terminal())
    screen.show(find_histories(tmp_path), last=False)
    first = terminal.getvalue()
    assert "\x1b" not in first and first.count("\n") == 10
    screen.show(find_histories(tmp_path), last=False)  # unchanged
    assert terminal.getvalue() == first
    (folder / "history.csv").write_text(HEADER + "".join(ROWS[:2]))
    screen.show(find_histories(tmp_path), last=False)
    assert terminal.getvalue().startswith(f"{first}\x1b[10F\x1b[Ja-seed0: finished, epoch 2 of 8\n")


def test_a_log_has_a_frame_from_time_to_time_and_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "EVERY_IN_A_LOG", 3600.0)
    folder = training(tmp_path, "a-seed0", rows=1)
    screen = Screen(log := io.StringIO())
    for rows, last in ((1, False), (2, False), (3, True)):
        (folder / "history.csv").write_text(HEADER + "".join(ROWS[:rows]))
        screen.show(find_histories(tmp_path), last)
    assert states(log.getvalue()) == [f"a-seed0: finished, epoch {epoch} of 8" for epoch in (1, 3)]
