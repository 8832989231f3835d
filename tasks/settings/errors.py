"""Error messages for values that pydantic refuses: the key, the invalid value, and the valid ones."""

import difflib
import reprlib
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tasks.settings.earlier import missing_key
from tasks.settings.experiments import Experiment
from tasks.settings.training import TrainingSettings

Schema = type[BaseModel]


def fault_lines(error: ValidationError, schema: Schema) -> list[str]:
    """One line per error in a params.yaml, each error once; `schema` is that of the whole file."""
    faults = error.errors()
    # Experiments inherit shared values, so an error in a shared value repeats in each of them. Show it once.
    faults = [fault for fault in faults if _place(fault)[:1] != ("experiments",)] or faults
    misspelt = {
        (*_place(f)[:-1], _near_key(_place(f), schema)) for f in faults if f["type"] == "extra_forbidden"
    }
    # A misspelt key is also reported as missing. Keep only the line about the misspelt word.
    faults = [f for f in faults if f["type"] != "missing" or _place(f) not in misspelt]
    return [fault_line(fault, schema) for fault in faults]


def fault_line(fault: ErrorDetails, schema: Schema) -> str:
    """One line for an error in values of `schema`: the key, the value, and what is valid."""
    return ": ".join(filter(None, [".".join(_place(fault)), _message(fault, schema)]))


def _place(fault: ErrorDetails) -> tuple[str, ...]:
    return tuple(str(part) for part in fault["loc"])


def _message(fault: ErrorDetails, schema: Schema) -> str:
    place = _place(fault)
    match fault["type"]:
        case "extra_forbidden":
            return _unknown_key(place, schema)
        case "missing":
            return missing_key(".".join(place))
        case "literal_error":
            return f"{_shown(fault['input'])} is not one of {fault['ctx']['expected']}"
        case "value_error":
            return str(fault["ctx"]["error"])
        case "dict_type" | "model_type":
            return f"{_shown(fault['input'])} is invalid: expected keys and values"
    return f"{_shown(fault['input'])} is invalid: {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _shown(value: Any) -> str:
    """A value as Python writes it, without the middle of long texts and the end of long lists."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 3, 120, 120, 120
    return short.repr(value)


def _unknown_key(place: tuple[str, ...], schema: Schema) -> str:
    near = _near_key(place, schema)
    at_the_top = len(place) == 1 and "training" in schema.model_fields
    if not near and at_the_top and place[0] in TrainingSettings.model_fields:
        near = f"training.{place[0]}"
    hint = f" (did you mean {near}?)" if near else ""
    return f"unknown key{hint}; the keys here are {', '.join(_keys_at(place[:-1], schema))}"


def _near_key(place: tuple[str, ...], schema: Schema) -> str | None:
    """The valid key that is most similar to the last part of `place`, if any is similar."""
    return next(iter(difflib.get_close_matches(place[-1], _keys_at(place[:-1], schema), n=1)), None)


def _keys_at(place: tuple[str, ...], schema: Schema) -> list[str]:
    """The keys of the section at `place`."""
    section: Any = schema
    for part in place:
        if get_origin(section) is dict:  # such as `experiments`, whose keys are names
            section = get_args(section)[1]
        else:
            section = _without_null(section.model_fields[part].annotation)
    names = [field.alias or name for name, field in section.model_fields.items()]
    return sorted(names) if section is Experiment else names


def _without_null(annotation: Any) -> Any:
    """The section itself, if a key may hold a section or null."""
    if get_origin(annotation) is dict:
        return annotation
    return next((kind for kind in get_args(annotation) if hasattr(kind, "model_fields")), annotation)
