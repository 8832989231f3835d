"""`cxr params`: change params.yaml and keep its comments."""

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flows.commands import ROOT


def params(
    *,
    preset: Annotated[str | None, Parameter(metavar="NAME")] = None,
    assignments: Annotated[tuple[str, ...], Parameter(name="--set", metavar="KEY=VALUE")] = (),
    keep: Annotated[tuple[str, ...], Parameter(metavar="EXPERIMENT")] = (),
    file: Annotated[Path | None, Parameter(name="--params", metavar="FILE")] = None,
) -> None:
    """Change values in params.yaml.

    Keeps comments, and validates the result before writing it.

    Args:
        preset: The name of a file in presets/, such as laptop, or the path of another YAML file.
        assignments: A value to change, such as alpha=0.3. Can be repeated.
        keep: An experiment to keep, with what it builds on; all others are removed. Can be repeated.
        file: The file to change. By default the checkout's params.yaml.

    Examples:
        cxr params --set alpha=0.3
        cxr params --preset laptop --set data.source=data/covidqu.zip
    """
    from tasks.common.files import replacing
    from tasks.settings.changes import read_changes, with_changes
    from tasks.settings.reading import read_text

    path = file or ROOT / "params.yaml"
    changes = read_changes(_preset_file(preset) if preset else None, list(assignments))
    text = with_changes(read_text(path, "name it with --params"), changes, keep)
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _preset_file(named: str) -> Path:
    """Return the file of a preset. A plain word is a name in presets/. Anything else is a path."""
    from flows.request import PRESETS, is_preset_name

    in_presets = Path(os.path.relpath(ROOT / PRESETS / f"{named}.yaml"))
    return in_presets if is_preset_name(named) else Path(named)
