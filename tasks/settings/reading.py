"""Reads YAML files, with one line about each error."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.support.cli import InputError


def parse_mapping(text: str, where: str) -> dict[str, Any]:
    """Parse YAML 1.2 text whose top level is a mapping; `where` names it in error messages.

    Raises:
        InputError: it is not valid YAML, or something else.
    """
    try:
        raw = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise InputError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected keys and values, found {type(raw).__name__}")
    return raw


def read_text(path: Path, hint: str) -> str:
    """Read a file; `hint` ends the message if there is none.

    Raises:
        InputError: there is no such file, or it is not UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {hint}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
