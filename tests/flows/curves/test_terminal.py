"""The drawing of known histories."""

import math
from pathlib import Path

import pytest

from flows.curves.histories import find_histories, read_history
from flows.curves.picture import as_markdown, as_svg, table_in
from flows.curves.terminal import curve, draw, frame
from tasks.support.locks import in_use
from tests.flows.curves.test_histories import HEADER, ROWS, training


@pytest.mark.parametrize(
    ("y", "rows"),
    [
        ((0.0, 1.0), [" ⢀⠎", "⡰⠁ "]),  # a straight line over 6 columns of 8 dots
        ((0.0, 0.0), ["   ", "⣀⣀⣀"]),
        ((1.0, 1.0), ["⠉⠉⠉", "   "]),
        ((1.0, math.nan), ["⠁  ", "   "]),
    ],
)
def test_a_line_of_braille_dots(y: tuple[float, ...], rows: list[str]) -> None:
    assert curve((0.0, 1.0), y, 3, 2) == rows


def test_a_value_that_is_not_finite_is_a_gap() -> None:
    x = (0.0, 0.25, 0.5, 0.75, 1.0)
    assert curve(x, (0.0, 0.0, math.nan, 0.0, math.inf), 3, 1) == ["⣀ ⡀"]


def test_the_drawing_of_a_known_history(tmp_path: Path) -> None:
    training(tmp_path, "a-seed0")
    history = read_history(tmp_path, "a-seed0")
    assert history
    assert draw(history, 56) == [
        "a-seed0: finished, epoch 3 of 8",
        "best val score 0.7500 in epoch 2, val Dice infection 0.2",
        "   train loss          val loss           val score",
        " 0.7500│            0.7500│⠑⢄          0.7500│   ⢠⠋⠉⠉⠉⠉",
        "       │                  │  ⠑⢄ ⣀⠤⠒⠉         │  ⢠⠃",
        "       │⠑⢄⡀               │    ⠉             │ ⢀⠎",
        "       │  ⠈⠢⣀             │                  │ ⡜",
        " 0.1250│     ⠉⠒⠤⣀   0.1250│            0.2500│⡜",
        "        1 epoch 3          1 epoch 3          1 epoch 3",
    ]


@pytest.mark.parametrize(
    ("table", "second"),
    [
        ("seed,epoch,train_loss,val_loss,val_score,val_dice\n0,1,nan,,,\n", [""]),  # it diverged at once
        ("epoch,train_loss,val_loss,val_dice\n1,0.5,0.5,0.25\n", ["val Dice 0.2500"]),  # of an early version
        ("seed,epoch\n", []),
    ],
)
def test_tables_without_some_values_can_be_drawn(tmp_path: Path, table: str, second: list[str]) -> None:
    (training(tmp_path, "a-seed0") / "history.csv").write_text(table)
    history = read_history(tmp_path, "a-seed0")
    assert history
    lines = draw(history, 80)
    assert len(lines) == (9 if history.last_epoch else 1)
    assert lines[1:2] == second
    assert as_svg(history).endswith("</svg>")


def test_the_frame_of_a_small_terminal_draws_running_trainings_first(tmp_path: Path) -> None:
    training(tmp_path, "a-seed0")
    running = training(tmp_path, "b-seed0", rows=1, network=False)
    with in_use(running):
        histories = find_histories(tmp_path)
    whole = frame(histories, 80)
    assert [line for line in whole if "epoch" in line and "seed" in line] == [
        "b-seed0: training, epoch 1 of 8",
        "a-seed0: finished, epoch 3 of 8",
    ]
    assert len(whole) == 20
    small = frame(histories, 80, 13)
    assert len(small) <= 13 and small[-1] == "a-seed0: finished, epoch 3 of 8"
    assert "train loss" in small[2]
    assert frame(histories, 80, 1) == ["b-seed0: training, epoch 1 of 8"]
    assert all(len(line) <= 20 for line in frame(histories, 20))
    assert frame([], 80) == []


def test_the_picture_and_the_table_of_a_page(tmp_path: Path) -> None:
    training(tmp_path, "a-seed0")
    history = read_history(tmp_path, "a-seed0")
    assert history
    page = as_markdown(history, text := HEADER + "".join(ROWS))
    assert table_in(page) == text
    assert table_in("# Another page") is None
    assert "a-seed0: finished, epoch 3 of 8. Best val score 0.7500 in epoch 2, val Dice" in page
    picture = as_svg(history)
    # 3 epochs from 32 to 243, and losses of 0.5, 0.25, 0.125 on an axis from 145 (0) up to 24 (0.8).
    assert 'points="32,69.38 137.5,107.19 243,126.09"' in picture
    # Dice of 0.5, 0.875 and 1 on an axis up to 1.
    assert 'points="32,84.5 137.5,39.12 243,24"' in picture
    for word in ("train", "val", "infection", "lung", "best epoch 2"):
        assert f">{word}</text>" in picture
