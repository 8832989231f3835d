"""What all sections of params.yaml have in common: the base class, and types of values."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A mapping in params.yaml, or in a file that is derived from it: immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls.model_validate_json(text)


def distinct(words: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse a list with repeated words; for `pydantic.AfterValidator`."""
    if len(set(words)) < len(words):
        raise ValueError("a value is listed twice")
    return words
