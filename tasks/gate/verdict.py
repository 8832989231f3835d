"""What the gate found: one verdict, with a finding for each rule and image set."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.support.cli import InputError

Rule = Literal["main score", "image class", "external set", "false alarms", "parity", "audit"]
Outcome = Literal["passed", "failed", "undecided"]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Finding(Model):
    """One rule on one set of images."""

    rule: Rule
    images: str
    """The set of images, such as `Val, COVID-19`; for parity and audit, what was checked."""
    count: int
    """Images judged; those that a network was trained on are not among them."""
    champion: float | None = None
    challenger: float | None = None
    """Mean score over the images; None if there is none."""
    difference: float | None = None
    """Challenger minus champion."""
    low: float | None = None
    high: float | None = None
    """The bounds of its 95% interval."""
    bound: float | None = None
    """The rule's limit; see `limit`."""
    limit: Literal["low above", "high at most", "at most"] | None = None
    """What the bound limits: the low end of the interval, its high end, or the challenger's value."""
    passed: bool | None = None
    """None: too few images, or only reported."""
    decides: bool = True
    """False for what is only reported, such as the scores on Test."""
    reason: str = ""
    """Why nothing was decided, or why a check failed."""


class LeftOut(Model):
    """Images that are not judged, because a network was trained on them."""

    images: str
    """The split or external dataset."""
    challenger: int
    champion: int
    either: int
    """How many of them each network was trained on; `either` counts each image once."""
    judged: int
    """How many images remain."""


class Verdict(Model):
    outcome: Outcome
    challenger: str
    champion: str | None
    """SHA-256 of the two files bundle.json; no champion: the challenger would be the first."""
    target: str
    selection: str
    """The main score, see `models.metrics.DiceSums.score`."""
    findings: tuple[Finding, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"

    def to_json(self) -> str:
        return self.model_dump_json(indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a verdict.json.

        Raises:
            InputError: it is no verdict.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise InputError(f"{path}: not a verdict: {error.errors()[0]['msg']}") from None


def outcome_of(findings: tuple[Finding, ...]) -> Outcome:
    """Failed if a deciding rule failed, else undecided if one could not be decided, else passed.

    Every rule must pass, each tested at its own level. The chance that a challenger passes although it breaks
    one of them is then at most the level of that rule, so the levels need no correction for their number
    (intersection-union test: Berger 1982, doi 10.1080/00401706.1982.10487790).
    """
    results = {finding.passed for finding in findings if finding.decides}
    if False in results:
        return "failed"
    return "undecided" if None in results or not results else "passed"
