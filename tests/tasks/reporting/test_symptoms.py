import pandas as pd
import pytest

from tasks.reporting.findings import symptom_words
from tasks.support.symptoms import symptoms
from tests.histories import ALL, FINE, NONE, history, of_two

STEPS = "Try more steps (more epochs, a smaller batch_size), another learning_rate or another loss."
LOWER = "Try a lower learning_rate or another loss."
USELESS = "so the scores say nothing about the network or the loss"


CASES = {
    "healthy": (history(FINE, FINE, FINE, FINE), []),
    "one epoch, healthy": (history(FINE), []),
    "one or two dead epochs in between": (history(FINE, NONE, NONE, FINE, ALL, FINE), []),
    "alternating between no pixel and every pixel": (history(FINE, NONE, ALL, NONE, FINE), []),
    "few pixels are not none, many are not all": (history(1.1e-4, 1.1e-4, 1.1e-4, 0.95, 0.95, 0.95), []),
    "dead only at first": (history(NONE, NONE, NONE, NONE, FINE, FINE), []),
    "dead throughout": (
        history(NONE, 9e-5, NONE, dice=[0.0] * 3),
        [(f"Epochs 1 to 3, including the kept epoch 1, mark no Val pixel, {USELESS}. {STEPS}", True)],
    ),
    "dead in the only epoch": (
        history(ALL, dice=[0.2]),
        [(f"The kept epoch, 1, marks nearly every Val pixel, {USELESS}. {STEPS}", True)],
    ),
    "the first epoch is dead and kept": (
        history(ALL, FINE, FINE, dice=[0.3, 0.2, 0.1]),
        [(f"The kept epoch, 1, marks nearly every Val pixel, {USELESS}. {LOWER}", True)],
    ),
    "the only dead epoch is kept": (
        history(FINE, FINE, ALL, FINE, dice=[0.1, 0.2, 0.3, 0.1]),
        [(f"The kept epoch, 3, marks nearly every Val pixel, {USELESS}. {LOWER}", True)],
    ),
    "died, but an earlier epoch is kept": (
        history(FINE, FINE, ALL, 0.96, ALL, dice=[0.1, 0.7, 0.2, 0.2, 0.2]),
        [
            (
                "Epochs 3 to 5 (the last) mark nearly every Val pixel; "
                f"the kept epoch, 2, is an earlier one. {LOWER}",
                False,
            )
        ],
    ),
    "died and recovered": (
        history(FINE, NONE, NONE, NONE, FINE),
        [(f"Epochs 2 to 4 mark no Val pixel; training then recovered. {LOWER}", False)],
    ),
    "one of two targets": (
        of_two([NONE] * 4, [0.25] * 4),
        [
            (
                "Epochs 1 to 4, including the kept epoch 4, mark no Val pixel as infection, "
                f"{USELESS}. {STEPS}",
                True,
            )
        ],
    ),
    "both targets": (
        of_two([ALL] * 2, [ALL] * 2),
        [
            (
                "Epochs 1 to 2, including the kept epoch 2, mark nearly every Val pixel as infection and "
                f"lung, {USELESS}. {STEPS}",
                True,
            )
        ],
    ),
    "one of two targets, only at first": (of_two([NONE, NONE, NONE, FINE], [FINE] * 4), []),
    "no pixel of one target, every pixel of the other": (of_two([NONE, FINE], [ALL, FINE]), []),
    "the loss rises above twice its lowest value": (
        history(*[FINE] * 6, loss=[0.8, 0.5, 1.1, 2.25, 1.2, 0.9]),
        [
            (
                "The training loss diverged: it was 0.5 in epoch 2, then up to 2.25 in epochs 3 to 5; "
                "training then recovered. Try a lower learning_rate.",
                False,
            )
        ],
    ),
    "the loss stays high to the end": (
        history(*[FINE] * 4, loss=[0.5, 1.1, 1.2, 1.3]),
        [
            (
                "The training loss diverged: it was 0.5 in epoch 1, then up to 1.3 in epochs 2 to 4, "
                "and did not recover. Try a lower learning_rate.",
                False,
            )
        ],
    ),
    "exactly twice the lowest loss": (history(*[FINE] * 4, loss=[0.5, 1.0, 1.0, 1.0]), []),
    "high loss in two epochs only": (history(*[FINE] * 5, loss=[0.5, 1.1, 1.2, 0.9, 1.1]), []),
}


@pytest.mark.parametrize(("found", "expected"), CASES.values(), ids=CASES)
def test_sentences_on_a_finished_training(found: pd.DataFrame, expected: list[tuple[str, bool]]) -> None:
    assert [(symptom_words(symptom), symptom.spoils) for symptom in symptoms(found)] == expected
