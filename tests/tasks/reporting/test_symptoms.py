import pandas as pd
import pytest

from tasks.comparison.trainings import symptoms_of
from tasks.reporting.symptoms import symptom_words
from tests.histories import ALL, FINE, NONE, history, of_two

STEPS = "What may help: more steps (epochs, a smaller batch_size), another learning_rate, another loss."
LOWER = "What may help: a lower learning_rate, another loss."
USELESS = "such figures say nothing of network or loss"


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
    assert [(symptom_words(symptom), symptom.spoils) for symptom in symptoms_of(found)] == expected
