import json
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from tasks.settings.schema import Params
from tasks.support.symptoms import marking, new_symptoms, symptoms
from tasks.train import train

STEPS = "What may help: more steps (epochs, a smaller batch_size), another learning_rate, another loss."
LOWER = "What may help: a lower learning_rate, another loss."
USELESS = "such figures say nothing of network or loss"


def history(
    *marked: float, dice: list[float] | None = None, loss: list[float] | None = None, **columns: list[float]
) -> pd.DataFrame:
    """An epoch a marked share; where not said otherwise, the loss falls and the last epoch is the best."""
    count = len(marked)
    return pd.DataFrame(
        {
            "epoch": range(1, count + 1),
            "train_loss": loss or [1 / epoch for epoch in range(1, count + 1)],
            "val_dice": dice or [epoch / count for epoch in range(1, count + 1)],
            "val_marked": marked,
            **columns,
        }
    )


def of_two(infection: list[float], lung: list[float], dice: list[float] | None = None) -> pd.DataFrame:
    means = [(one + other) / 2 for one, other in zip(infection, lung, strict=True)]
    return history(*means, dice=dice, val_marked_infection=infection, val_marked_lung=lung)


FINE, NONE, ALL = 0.1, 0.0, 1.0
CASES = {
    "healthy": (history(FINE, FINE, FINE, FINE), []),
    "one epoch, healthy": (history(FINE), []),
    "a dead epoch or two on the way": (history(FINE, NONE, NONE, FINE, ALL, FINE), []),
    "now no pixel, now every one": (history(FINE, NONE, ALL, NONE, FINE), []),
    "few pixels are some, many are not all": (history(1.1e-4, 1.1e-4, 1.1e-4, 0.95, 0.95, 0.95), []),
    "dead at first alone": (history(NONE, NONE, NONE, NONE, FINE, FINE), []),
    "dead throughout": (
        history(NONE, 9e-5, NONE, dice=[0.0] * 3),
        [(f"The epoch kept, 1, marks no Val pixel, as epochs 1 to 3 do: {USELESS}. {STEPS}", True)],
    ),
    "dead for as few epochs as there are": (
        history(ALL, dice=[0.2]),
        [(f"The epoch kept, 1, marks nearly every Val pixel: {USELESS}. {STEPS}", True)],
    ),
    "the first epoch is kept and dead, the others are not": (
        history(ALL, FINE, FINE, dice=[0.3, 0.2, 0.1]),
        [(f"The epoch kept, 1, marks nearly every Val pixel: {USELESS}. {LOWER}", True)],
    ),
    "the one dead epoch is kept": (
        history(FINE, FINE, ALL, FINE, dice=[0.1, 0.2, 0.3, 0.1]),
        [(f"The epoch kept, 3, marks nearly every Val pixel: {USELESS}. {LOWER}", True)],
    ),
    "died, an earlier epoch is kept": (
        history(FINE, FINE, ALL, 0.96, ALL, dice=[0.1, 0.7, 0.2, 0.2, 0.2]),
        [
            (
                "Epochs 3 to 5, the last, mark nearly every Val pixel; "
                f"the epoch kept, 2, is from before. {LOWER}",
                False,
            )
        ],
    ),
    "died and came back": (
        history(FINE, NONE, NONE, NONE, FINE),
        [(f"Epochs 2 to 4 mark no Val pixel; later ones do not. {LOWER}", False)],
    ),
    "one target of two": (
        of_two([NONE] * 4, [0.25] * 4),
        [
            (
                "The epoch kept, 4, marks no Val pixel as infection, as epochs 1 to 4 do: "
                f"{USELESS}. {STEPS}",
                True,
            )
        ],
    ),
    "both targets": (
        of_two([ALL] * 2, [ALL] * 2),
        [
            (
                "The epoch kept, 2, marks nearly every Val pixel as infection and lung, as epochs 1 to 2 do: "
                f"{USELESS}. {STEPS}",
                True,
            )
        ],
    ),
    "one target of two at first alone": (of_two([NONE, NONE, NONE, FINE], [FINE] * 4), []),
    "no pixel of one, every one of the other": (of_two([NONE, FINE], [ALL, FINE]), []),
    "the loss above twice its lowest": (
        history(*[FINE] * 6, loss=[0.8, 0.5, 1.1, 2.25, 1.2, 0.9]),
        [
            (
                "The train loss diverged: it was 0.5 in epoch 2 and up to 2.25 in epochs 3 to 5; later it "
                "recovered. What may help: a lower learning_rate.",
                False,
            )
        ],
    ),
    "the loss, to the end": (
        history(*[FINE] * 4, loss=[0.5, 1.1, 1.2, 1.3]),
        [
            (
                "The train loss diverged: it was 0.5 in epoch 1 and up to 1.3 in epochs 2 to 4, the last. "
                "What may help: a lower learning_rate.",
                False,
            )
        ],
    ),
    "just twice is not above": (history(*[FINE] * 4, loss=[0.5, 1.0, 1.0, 1.0]), []),
    "two epochs of a high loss": (history(*[FINE] * 5, loss=[0.5, 1.1, 1.2, 0.9, 1.1]), []),
}


@pytest.mark.parametrize(("found", "expected"), CASES.values(), ids=CASES)
def test_what_a_finished_training_showed(found: pd.DataFrame, expected: list[tuple[str, bool]]) -> None:
    assert symptoms(found) == expected


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
    assert symptoms(found)[0].spoils
    kept = json.loads((tmp_path / "out" / "network" / "network.json").read_text())["best_epoch"]
    assert f"The epoch kept, {kept}, marks no Val pixel, as epochs 1 to 4 do" in symptoms(found)[0].text
