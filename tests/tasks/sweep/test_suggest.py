"""Optuna's suggestions."""

import sys

import pytest

from tasks.support.cli import InputError
from tasks.sweep.space import Settings, parse_keys
from tasks.sweep.suggest import MISSING, Suggester, check_installed

KEYS = parse_keys(["learning_rate=1e-4..1e-2", "width=8..16", "loss=bce,dice"], "optuna")


def suggested(seed: int, rounds: int, at_once: int) -> list[Settings]:
    """What Optuna suggests if the best learning rate is 0.003."""
    suggester, found = Suggester(KEYS, seed), []
    for _ in range(rounds):
        asked = suggester.ask(at_once)
        found += [each.settings for each in asked]
        for each in asked:
            suggester.tell(each, -abs(each.settings["learning_rate"] - 0.003))
    return found


def test_suggestions_repeat_with_the_seed_and_get_better() -> None:
    pytest.importorskip("optuna")
    found = suggested(seed=0, rounds=10, at_once=4)
    assert suggested(seed=0, rounds=10, at_once=4) == found
    assert suggested(seed=1, rounds=10, at_once=4) != found
    assert all(1e-4 <= each["learning_rate"] <= 1e-2 and 8 <= each["width"] <= 16 for each in found)
    assert {each["loss"] for each in found} == {"bce", "dice"}

    def distance(part: list[Settings]) -> float:
        return sum(abs(each["learning_rate"] - 0.003) for each in part) / len(part)

    assert distance(found[20:]) < 0.7 * distance(found[:10])


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for check in (check_installed, lambda: Suggester(KEYS, 0)):
        with pytest.raises(InputError) as refused:
            check()
        assert str(refused.value) == MISSING
        assert "pip install '.[sweep]'" in MISSING
