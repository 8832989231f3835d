import json
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from tasks.settings.schema import Params
from tasks.support.symptoms import DeadEpochs, DivergedEpochs, marking, new_symptoms, symptoms
from tasks.train import train
from tests.histories import ALL, FINE, NONE, history, of_two


def test_symptoms_tell_their_epochs() -> None:
    dead = of_two([FINE, ALL, ALL, ALL], [FINE, ALL, ALL, ALL], dice=[0.5, 0.1, 0.1, 0.1])
    both = ("infection", "lung")
    assert symptoms(dead) == [
        DeadEpochs("nearly every", both, 2, 4, 1, throughout=False, ended=False, spoils=False)
    ]
    diverged = history(*[FINE] * 6, loss=[0.8, 0.5, 1.1, 2.25, 1.2, 0.9])
    assert symptoms(diverged) == [DivergedEpochs(3, 5, 0.5, 2, 2.25, ended=True)]


def said_after(found: pd.DataFrame) -> dict[int, list[str]]:
    """What is new after each epoch, where anything is."""
    new = {epoch: new_symptoms(found[:epoch]) for epoch in range(1, len(found) + 1)}
    return {epoch: said for epoch, said in new.items() if said}


SLOW = "usual at first where an epoch is a few steps, else lower learning_rate or change loss"


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
                    "the train loss was 0.5 in epoch 1, is 1.3 and above twice that since epoch 2; "
                    "lower learning_rate"
                ],
                9: [
                    "the train loss was 0.4 in epoch 6, is 0.9 and above twice that since epoch 7; "
                    "lower learning_rate"
                ],
            },
        ),
    ],
)
def test_a_symptom_is_news_once(found: pd.DataFrame, expected: dict[int, list[str]]) -> None:
    assert said_after(found) == expected


def test_marking_has_a_bound_at_either_end() -> None:
    shares = (0.0, 9.9e-5, 1e-4, 0.5, 0.95, 0.951, 1.0)
    assert [marking(share) for share in shares] == ["no", "no", "", "", "", *["nearly every"] * 2]


def test_a_training_that_dies_says_so(
    tiny_params: Params, tiny_packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too low a learning rate for anything to be learnt in as few steps."""
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
