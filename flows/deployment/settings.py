"""Where Prefect's settings come from: the environment, a file in the current folder, or a profile."""

import os
import tomllib
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from prefect.context import get_settings_context

NAME = "PREFECT_API_URL"


def api_url_source() -> str:
    """Return what sets PREFECT_API_URL, in the order in which Prefect looks for it."""
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
