"""The published scores of a version, from the metrics.json of its commit."""

import json
from pathlib import Path
from typing import Any, NamedTuple, get_args

from flows.registry.registry import Version
from flows.repository.git import git
from tasks.settings.training import Target
from tasks.support.cli import InputError


class Score(NamedTuple):
    """A mean over the experiment's trainings."""

    name: str
    """As in metrics.json, such as val.infection.all.balanced."""
    value: float


def main_score(repository: Path, version: Version) -> Score | None:
    """Return the score on all Val images, in [0, 1]: balanced, or else mean Dice.

    Returns:
        None if the version has no scores, such as one of `gto register`.
    """
    try:
        metrics: Any = json.loads(git(repository, "show", f"{version.commit}:./metrics.json"))
        of_val = metrics[version.model]["val"]
        for target in get_args(Target):
            for metric in ("balanced", "dice"):
                value = of_val.get(target, {}).get("all", {}).get(metric)
                if isinstance(value, float | int):
                    return Score(f"val.{target}.all.{metric}", float(value))
    except (InputError, ValueError, KeyError, TypeError, AttributeError):  # no metrics.json of this project
        pass
    return None
