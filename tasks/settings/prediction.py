"""The section `prediction`: how probabilities become masks. Every experiment may override it."""

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from tasks.settings.section import Section


def _threshold(value: Any) -> Any:
    if value == "val" or (type(value) is float and 0 < value < 1):
        return value
    raise ValueError(f"{value!r} is neither val nor a number between 0 and 1")


def _presence(value: Any) -> Any:
    if value == "val" or (type(value) in (int, float) and 0 <= value < 1):
        return value if value == "val" else float(value)
    raise ValueError(f"{value!r} is neither val nor a number from 0 to below 1")


class Prediction(Section):
    """How probabilities become masks. The stage evaluate reads one such file per experiment.

    These files lack `ensemble`, on which no network's own scores depend.
    """

    threshold: Annotated[float | Literal["val"], PlainValidator(_threshold)]
    presence: Annotated[float | Literal["val"], PlainValidator(_presence)]
    flip_average: bool
    within_lungs: bool
    min_area: Annotated[float, Field(ge=0, lt=1)]
    fill_holes: bool
    ensemble: Literal["none", "seeds"] = "none"

    def to_json(self) -> str:
        return self.model_dump_json(indent=2, exclude={"ensemble"}) + "\n"
