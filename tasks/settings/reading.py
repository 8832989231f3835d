"""Reads YAML files, with one line about each error."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tasks.support.cli import InputError


def parse_mapping(text: str, where: str) -> dict[str, Any]:
    """Parse YAML 1.2 text whose top level is a mapping; `where` names it in error messages.

    Raises:
        InputError: it is not valid YAML, or something else.
    """
    try:
        raw = parse_yaml(text)
    except ValueError as error:
        raise InputError(f"{where}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected keys and values, found {type(raw).__name__}")
    return raw


def parse_yaml(text: str) -> Any:
    """Parse YAML 1.2 text.

    Raises:
        ValueError: it is invalid. The message is one line.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MemoryError:
        raise
    except Exception as error:  # not only YAMLError: a date such as 2026-02-31, or a wrong tag
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


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
