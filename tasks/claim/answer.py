"""An answer to one item of the checklist."""

from dataclasses import dataclass
from typing import Literal, get_args

Status = Literal["reported", "partly", "not reported", "not applicable"]
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True)
class Answer:
    """What a run says about an item, and what it cannot know; or why the item does not apply.

    The status follows from the texts, so no item is reported without an answer.
    """

    said: str = ""
    missing: str = ""
    """What the authors must add."""
    inapplicable: str = ""

    def __post_init__(self) -> None:
        assert bool(self.inapplicable) != bool(self.said or self.missing), "nothing or both"

    @property
    def status(self) -> Status:
        if self.inapplicable:
            return "not applicable"
        if not self.said:
            return "not reported"
        return "partly" if self.missing else "reported"
