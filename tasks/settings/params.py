"""The whole of params.yaml, validated.

External input is checked here once: the result of `load_params` is complete, typed and within bounds, and
the stages rely on it. Error messages give the key, the invalid value and the valid ones.
"""

from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import ValidationError, model_validator

from tasks.settings.data import DataSource, External, ExternalDatasets
from tasks.settings.errors import fault_lines
from tasks.settings.reading import parse_mapping, read_text
from tasks.settings.schema import Settings
from tasks.settings.section import Section
from tasks.settings.stages import Stages, derive_stages
from tasks.support.cli import InputError

_Checked = TypeVar("_Checked", bound=Section)


class Params(Settings):
    """The complete params.yaml."""

    stages: Stages

    @model_validator(mode="after")
    def _lists_its_stages(self) -> Self:
        derived = derive_stages(self)
        for section in Stages.model_fields:
            found, wanted = getattr(self.stages, section), getattr(derived, section)
            if fault := _list_fault(found, wanted):
                raise ValueError(f"stages.{section}: {fault}; `cxr params` writes this section")
        return self


def _list_fault(found: Any, wanted: Any) -> str | None:
    """The first difference between a list of `stages` and its derived value; None if they are equal."""
    if not isinstance(wanted, dict):
        return None if found == wanted else f"expected [{', '.join(map(str, wanted))}]"
    for name, entry in wanted.items():
        if found.get(name) != entry:
            words = ", ".join(f"{key}: {value}" for key, value in entry.model_dump().items())
            return f"expected {name}: {{{words}}}"
    unknown = next((name for name in found if name not in wanted), None)
    return f"no experiment needs {unknown}" if unknown else None


def load_params(path: Path) -> Params:
    """Read and validate params.yaml.

    Raises:
        InputError: the file is missing, is not valid YAML, or has invalid values; one line per error.
    """
    return parse_params(read_text(path, "run this in the folder that contains params.yaml"), str(path))


def load_data(path: Path) -> DataSource:
    """Read and validate only the section `data`, whose layout one may try before the experiments fit it.

    Raises:
        InputError: as `load_params`.
    """
    raw = parse_mapping(read_text(path, "run this in the folder that contains params.yaml"), str(path))
    return _validated(_Data, {"data": raw.get("data")}, str(path)).data


def load_external(path: Path, name: str) -> External:
    """Read and validate only one entry of the section `external`.

    Raises:
        InputError: as `load_params`; or there is no such entry.
    """
    raw = parse_mapping(read_text(path, "run this in the folder that contains params.yaml"), str(path))
    entries = raw.get("external")
    if not isinstance(entries, dict) or name not in entries:
        there = ", ".join(map(str, entries)) if isinstance(entries, dict) and entries else "there are none"
        raise InputError(f"{path}: external: {name!r} is not one of its datasets ({there})")
    return _validated(_Externals, {"external": {name: entries[name]}}, str(path)).external[name]


class _Data(Section):
    data: DataSource


class _Externals(Section):
    external: ExternalDatasets


def parse_params(text: str, where: str = "params.yaml") -> Params:
    """Validate the text of a params.yaml; `where` names it in error messages."""
    return _validated(Params, parse_mapping(text, where), where)


def stages_for(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """Derive the section `stages` from the rest of a params.yaml, as plain lists and mappings.

    Raises:
        InputError: the rest is invalid.
    """
    settings = _validated(Settings, {key: raw[key] for key in raw if key != "stages"}, where)
    return derive_stages(settings).model_dump(mode="json")


def _validated(schema: type[_Checked], raw: dict[str, Any], where: str) -> _Checked:
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise InputError("\n".join(f"{where}: {line}" for line in fault_lines(error, Params))) from None
