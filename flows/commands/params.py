"""`cxr params`: change params.yaml, keeping its comments."""

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flows.commands import ROOT


def params(
    *,
    preset: Annotated[str | None, Parameter(metavar="NAME")] = None,
    assignments: Annotated[tuple[str, ...], Parameter(name="--set", metavar="KEY=VALUE")] = (),
    file: Annotated[Path | None, Parameter(name="--params", metavar="FILE")] = None,
) -> None:
    """Change values in params.yaml.

    Comments are kept, and the result is checked before it is written.

    Args:
        preset: A file of presets/, such as laptop, or the path of another YAML file.
        assignments: A value to change, for example alpha=0.3. Can be repeated.
        file: The file to change. By default the checkout's params.yaml.

    Examples:
        cxr params --set alpha=0.3
        cxr params --preset laptop --set data.source=data/covidqu.zip
    """
    from tasks.common.files import replacing
    from tasks.settings.changes import read_changes, with_changes
    from tasks.settings.schema import read_text

    path = file or ROOT / "params.yaml"
    changes = read_changes(_preset_file(preset) if preset else None, list(assignments))
    text = with_changes(read_text(path, "name it with --params"), changes)
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _preset_file(named: str) -> Path:
    """A word is the name of a preset, everything else a path."""
    is_word = Path(named).name == named and not named.endswith(".yaml")
    return Path(os.path.relpath(ROOT / "presets" / f"{named}.yaml")) if is_word else Path(named)
