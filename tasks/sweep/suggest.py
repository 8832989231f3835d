"""Optuna's suggestions: the tree-structured Parzen estimator (Bergstra et al. 2011).

Watanabe 2023, arXiv:2304.11127, explains the estimator. Optuna comes with the extra `sweep`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.support.cli import InputError
from tasks.sweep.space import Key, Settings

if TYPE_CHECKING:
    from optuna import Trial as OptunaTrial
    from optuna.distributions import BaseDistribution

MISSING = "Optuna is not installed. It comes with the extra `sweep`: pip install '.[sweep]'"


class Suggestion(NamedTuple):
    """A point to try, and Optuna's own record of it."""

    settings: Settings
    trial: "OptunaTrial"


class Suggester:
    """Suggests points in rounds. Equal keys, seeds, rounds and scores give equal suggestions."""

    def __init__(self, keys: Sequence[Key], seed: int) -> None:
        """Create it.

        Raises:
            InputError: Optuna is not installed.
        """
        try:
            import optuna
        except ModuleNotFoundError:
            raise InputError(MISSING) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=seed)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._keys = {key.name: key for key in keys}
        self._distributions = {key.name: _distribution(key) for key in keys}

    def ask(self, count: int) -> list[Suggestion]:
        """Return the points of the next round."""
        trials = [self._study.ask(self._distributions) for _ in range(count)]
        return [
            Suggestion({name: self._value(name, found) for name, found in trial.params.items()}, trial)
            for trial in trials
        ]

    def tell(self, suggestion: Suggestion, score: float) -> None:
        """Report the score of a point; higher is better."""
        self._study.tell(suggestion.trial, score)

    def _value(self, name: str, found: Any) -> Any:
        key = self._keys[name]
        return key.rounded(found) if key.is_range else key.values[found]


def check_installed() -> None:
    """Check that Optuna is installed.

    Raises:
        InputError: it is not.
    """
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise InputError(MISSING)


def _distribution(key: Key) -> "BaseDistribution":
    from optuna import distributions

    if not key.is_range:
        return distributions.CategoricalDistribution(range(len(key.values)))
    is_log = key.scale == "log"
    if key.whole:
        return distributions.IntDistribution(int(key.low), int(key.high), log=is_log)
    return distributions.FloatDistribution(key.low, key.high, log=is_log)
