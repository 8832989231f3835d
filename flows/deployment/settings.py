"""Where Prefect's settings come from: the environment, a file in the current folder, or a profile."""

import os
import tomllib
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

NAME = "PREFECT_API_URL"


def may_name_server() -> bool:
    """Return whether Prefect's settings may name a server. Prefect itself takes a second to read them.

    True if a variable or a profile sets PREFECT_API_URL, or a file in the current folder has any setting of
    Prefect.
    """
    if NAME in os.environ:
        return bool(os.environ[NAME])
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
    return (
        Path("prefect.toml").is_file()
        or _mentions(Path(".env"), "PREFECT_")
        or _mentions(Path("pyproject.toml"), "tool.prefect")
        or _mentions(profiles, NAME)
    )


def _mentions(path: Path, word: str) -> bool:
    try:
        return word.lower() in path.read_text(encoding="utf-8", errors="replace").lower()
    except OSError:
        return False


def api_url_source() -> str:
    """Return what sets PREFECT_API_URL, in the order in which Prefect looks for it."""
    from prefect.context import get_settings_context

    if NAME in os.environ:
        return "the environment"
    if NAME in dotenv_values(".env"):
        return str(Path(".env").resolve())
    for path, keys in (("prefect.toml", ()), ("pyproject.toml", ("tool", "prefect"))):
        if _has_api_url(Path(path), keys):
            return str(Path(path).resolve())
    return f"the Prefect profile {get_settings_context().profile.name!r}"


def _has_api_url(path: Path, keys: tuple[str, ...]) -> bool:
    if not path.is_file():
        return False
    found: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    for key in (*keys, "api"):
        found = found.get(key, {})
    return "url" in found
