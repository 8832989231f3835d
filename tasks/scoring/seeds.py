"""Mean scores of networks that differ only in their seed."""

from collections.abc import Mapping, Sequence
from typing import Any

#: target -> image set -> metric -> value.
Metrics = dict[str, dict[str, dict[str, float]]]


def mean_metrics(of_seeds: Sequence[Metrics]) -> Metrics:
    """The means over seeds; a metric that some seed lacks is omitted."""
    means: Metrics = _mean(of_seeds)
    return means


def _mean(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Mapping):
        keys = [key for key in values[0] if all(key in value for value in values)]
        return {key: _mean([value[key] for value in values]) for key in keys}
    mean = sum(values) / len(values)
    return values[0] if isinstance(values[0], int) else round(mean, 6)
