"""`cxr sweep best`: write the best settings of a sweep as a preset."""

import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.repository.checkout import RUNS
from flows.request import PRESETS
from flows.sweep.request import read_preset_at
from tasks.common.files import replacing
from tasks.settings.changes import parse_assignment, parse_preset, with_changes
from tasks.settings.reading import parse_mapping, read_text
from tasks.settings.schema import OVERRIDES, overlaid
from tasks.support.cli import InputError
from tasks.sweep.document import SWEEP_FILE, Sweep
from tasks.sweep.page import settings_words
from tasks.sweep.space import nested

#: Names of presets.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def read_sweep(repository: Path, name: str) -> Sweep:
    """Read the result of a sweep in runs/.

    Raises:
        InputError: there is no such sweep.
    """
    folder = repository / RUNS / name
    if Path(name).name != name or not (folder / SWEEP_FILE).is_file():
        there = sorted(path.parent.name for path in (repository / RUNS).glob(f"[!.]*/{SWEEP_FILE}"))
        words = f"sweeps are {', '.join(there)}" if there else "there are none"
        raise InputError(f"{name!r}: no sweep of this name in {RUNS}/; {words}")
    try:
        return Sweep.read(folder)
    except ValueError as error:
        line = str(error).splitlines()[0]
        raise InputError(
            f"{folder / SWEEP_FILE}: not the result of a sweep of this version: {line}"
        ) from None


def write_best(repository: Path, sweep: Sweep, preset: str) -> Path:
    """Write the settings of the best trial as presets/PRESET.yaml, and return its path.

    The preset has what the sweep itself changed: its own preset, and values given by --set.

    Raises:
        InputError: the name is invalid or taken, or the preset does not fit the present params.yaml.
    """
    if not NAME.fullmatch(preset):
        raise InputError(f"--as {preset!r}: must consist of letters, digits, _ and -")
    path = repository / PRESETS / f"{preset}.yaml"
    if path.exists():
        raise InputError(f"--as {preset}: {PRESETS / path.name} exists; choose another name, or remove it")
    content = _heading(sweep) + _dumped(best_preset(repository, sweep))
    where = str(PRESETS / path.name)
    params = read_text(repository / "params.yaml", "it is part of the project")
    with_changes(params, {where: parse_preset(content, where)})
    with replacing(path) as beside:
        beside.write_text(content, encoding="utf-8")
    return path


def best_preset(repository: Path, sweep: Sweep) -> dict[str, Any]:
    """Return the changes of params.yaml that give the best trial's settings to its experiment."""
    best = sweep.best
    found: dict[str, Any] = dict(
        read_preset_at(repository, sweep.commit, sweep.preset) if sweep.preset else {}
    )
    for change in sweep.changes:
        found = overlaid(found, parse_assignment(change))
    raw = parse_mapping(read_text(repository / "params.yaml", ""), "params.yaml")
    for key in (key for key in OVERRIDES if key in best.settings):
        if found.get(key, raw.get(key)) is not None:  # it would override the experiment's own value
            found[key] = None
    entry: dict[str, Any] = {}
    for key, value in best.settings.items():
        entry = overlaid(entry, nested(key, value))
    experiments = overlaid(found.get("experiments") or {}, {best.experiment: entry})
    return {"only": [best.experiment], **found, "experiments": experiments}


def _heading(sweep: Sweep) -> str:
    best = sweep.best
    score = f"{best.score.value:.4f}"
    return (
        f"# {settings_words(sweep, best)}: the best of {len(sweep.trials)} trials of {sweep.name}, "
        f"with Val score {score}.\n# Started from commit {sweep.commit[:10]}.\n"
    )


def _dumped(content: dict[str, Any]) -> str:
    yaml = YAML()
    yaml.default_flow_style = False
    buffer = io.StringIO()
    yaml.dump(content, buffer)
    return buffer.getvalue()
