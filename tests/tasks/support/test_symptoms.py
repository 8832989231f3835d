import json
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from tasks.settings.params import Params
from tasks.support.symptoms import DeadEpochs, DivergedEpochs, marking, new_symptoms, symptoms
from tasks.train import train
from tests.histories import ALL, FINE, NONE, history, of_two


def test_symptoms_have_their_epochs() -> None:
    dead = of_two([FINE, ALL, ALL, ALL], [FINE, ALL, ALL, ALL], dice=[0.5, 0.1, 0.1, 0.1])
    both = ("infection", "lung")
    assert symptoms(dead) == [
        DeadEpochs("nearly every", both, 2, 4, 1, throughout=False, ended=False, spoils=False)
    ]
    diverged = history(*[FINE] * 6, loss=[0.8, 0.5, 1.1, 2.25, 1.2, 0.9])
    assert symptoms(diverged) == [DivergedEpochs(3, 5, 0.5, 2, 2.25, ended=True)]


def said_after(found: pd.DataFrame) -> dict[int, list[str]]:
    """Epoch -> new warnings, for epochs that have any."""
    new = {epoch: new_symptoms(found[:epoch]) for epoch in range(1, len(found) + 1)}
    return {epoch: said for epoch, said in new.items() if said}


SLOW = "normal at first if epochs have few steps; otherwise lower learning_rate or change loss"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (history(FINE, NONE, NONE, FINE, FINE, FINE), {}),
        (history(*[NONE] * 6), {3: [f"marks no Val pixel since epoch 1; {SLOW}"]}),
        (
            history(FINE, *[ALL] * 5),
            {4: ["marks nearly every Val pixel since epoch 2; lower learning_rate or change loss"]},
        ),
        (
            of_two([NONE] * 4, [FINE, NONE, NONE, NONE]),
            {
                3: [f"marks no Val pixel as infection since epoch 1; {SLOW}"],
                4: ["marks no Val pixel as lung since epoch 2; lower learning_rate or change loss"],
            },
        ),
        (
            history(*[FINE] * 12, loss=[0.5, 1.1, 1.2, 1.3, 1.4, 0.4, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]),
            {
                4: [
                    "the training loss was 0.5 in epoch 1, is 1.3 and more than twice as high since epoch 2; "
                    "lower learning_rate"
                ],
                9: [
                    "the training loss was 0.4 in epoch 6, is 0.9 and more than twice as high since epoch 7; "
                    "lower learning_rate"
                ],
            },
        ),
    ],
)
def test_warning_is_printed_once(found: pd.DataFrame, expected: dict[int, list[str]]) -> None:
    assert said_after(found) == expected


def test_marking_has_a_lower_and_an_upper_bound() -> None:
    shares = (0.0, 9.9e-5, 1e-4, 0.5, 0.95, 0.951, 1.0)
    assert [marking(share) for share in shares] == ["no", "no", "", "", "", *["nearly every"] * 2]


def test_dead_training_prints_a_warning(
    tiny_params: Params, tiny_packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a learning rate that is too low to learn anything in this many steps."""
    plan = tiny_params.plans["report1_bce-seed0"].model_copy(update={"learning_rate": 1e-7, "epochs": 4})
    train(plan, tiny_packed, tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    warning = f"warning: report1_bce-seed0: marks no Val pixel since epoch 1; {SLOW}"
    assert [line for line in lines if "warning" in line] == [warning]
    before = next(one for one, other in pairwise(lines) if other == warning)
    assert "epoch 3/4:" in before
    found = pd.read_csv(tmp_path / "out" / "history.csv")
    kept = json.loads((tmp_path / "out" / "network" / "network.json").read_text())["best_epoch"]
    assert symptoms(found) == [DeadEpochs("no", (), 1, 4, kept, throughout=True, ended=False, spoils=True)]
