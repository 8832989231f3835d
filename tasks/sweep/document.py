"""The result of a sweep: everything that its page, its tables and `cxr sweep best` say."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from tasks.settings.training import Selection
from tasks.sweep.space import Method

#: The file of the document in the folder of a sweep's results.
SWEEP_FILE = "sweep.json"

#: `best`: the highest score. `level`: the interval of its difference from the best includes zero. `worse`: it
#: does not.
Verdict = Literal["best", "level", "worse"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(_Part):
    """A score or a difference with its 95% interval. There is none for a single image."""

    value: float
    low: float | None = None
    high: float | None = None


class Cost(_Part):
    """What a network costs where it is used."""

    parameters: int
    megabytes: float
    """Size of its weights, in units of 1,000,000 bytes."""
    milliseconds: float | None = None
    """Time of the forward passes for an image; None if it could not be measured."""


class TrialResult(_Part):
    """What a trial scored on Val images."""

    name: str
    experiment: str
    settings: dict[str, Any]
    """Swept key -> value."""
    score: Estimate
    """The mean over seeds and images."""
    seed_scores: tuple[float, ...]
    """The mean over images, for each seed."""
    behind: Estimate | None
    """The best trial's score minus this one; None for the best. The intervals are simultaneous."""
    verdict: Verdict
    cost: Cost
    on_front: bool
    """Whether no other trial is at least as good in score, time and size, and better in one of them."""


class SweepKey(_Part):
    name: str
    is_range: bool
    is_log: bool
    """Whether charts show it on a logarithmic axis."""


class Sweep(_Part):
    """A sweep and its results."""

    name: str
    revision: str
    commit: str
    experiments: tuple[str, ...]
    swept: tuple[SweepKey, ...]
    method: Method
    sampler_seed: int
    round: int | None
    """Number of trials that Optuna suggested at a time."""
    preset: str | None
    changes: tuple[str, ...]
    """Other values of params.yaml that were changed, as KEY=VALUE."""
    seeds: int
    """Trainings of each trial."""
    selection: Selection
    targets: tuple[str, ...]
    classes: tuple[str, ...]
    """Classes of the Val images that count."""
    images: int
    covers_training: bool
    """Whether intervals include the variation between trainings."""
    phantoms: bool
    device: str
    """On which milliseconds were measured; empty if they were not."""
    trials: tuple[TrialResult, ...]
    """In the order in which they were chosen."""

    @property
    def best(self) -> TrialResult:
        return next(trial for trial in self.trials if trial.verdict == "best")

    @property
    def level(self) -> tuple[TrialResult, ...]:
        """The trials that cannot be told from the best."""
        return tuple(trial for trial in self.trials if trial.verdict == "level")

    @property
    def ranking(self) -> list[TrialResult]:
        return sorted(self.trials, key=lambda trial: -trial.score.value)

    @classmethod
    def read(cls, folder: Path) -> Self:
        return cls.model_validate_json((folder / SWEEP_FILE).read_text(encoding="utf-8"))

    def to_json(self) -> str:
        return self.model_dump_json(indent=1) + "\n"
