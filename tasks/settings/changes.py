"""Applies presets and single assignments to the text of params.yaml. Comments are kept."""

import copy
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.representer import RoundTripRepresenter

from tasks.settings.data import PINS
from tasks.settings.params import parse_params, stages_for
from tasks.settings.reading import parse_mapping, parse_yaml, read_text
from tasks.settings.training import lungs_from
from tasks.support.cli import InputError, without_secrets


def with_changes(text: str, changes: Mapping[str, Mapping[str, Any]], experiments: Sequence[str] = ()) -> str:
    """Merge nested changes into the text of params.yaml, keep its comments, and validate the result.

    Mappings are merged; all other values are replaced. If a change sets another `data.source`, the pins of
    the previous source are removed unless one of the changes sets them. The section `stages` is rewritten to
    match the experiments.

    Args:
        changes: each change under the name of its origin, which appears in error messages.
        experiments: the experiments to keep, together with those that they build on; empty keeps all.

    Raises:
        InputError: the text is not valid YAML, the result does not match the schema, or an experiment in
            `experiments` does not exist.
    """
    parse_mapping(text, "params.yaml")
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.width, yaml.preserve_quotes = 4096, True
    document = yaml.load(text)
    for change in changes.values():
        _drop_pins(document, change, list(changes.values()))
        _merge(document, change.among(document) if isinstance(change, Preset) else change, _shared(document))
    if experiments:
        _keep_experiments(document, experiments)
    where = " with ".join(filter(None, ["params.yaml", without_secrets(", ".join(changes))]))
    _write_stages(document, stages_for(parse_mapping(_dumped(yaml, document), where), where))
    changed = _dumped(yaml, document)
    parse_params(changed, where)
    return changed


def _dumped(yaml: YAML, document: Any) -> str:
    buffer = io.StringIO()
    yaml.dump(document, buffer)
    return buffer.getvalue()


def _write_stages(document: Any, stages: Mapping[str, Any]) -> None:
    """Replace the derived lists that differ, with one line per entry."""
    if not isinstance(document.get("stages"), Mapping):
        document["stages"] = {}
    for name, entries in stages.items():
        if document["stages"].get(name) != entries:
            document["stages"][name] = _in_lines(entries)


def _in_lines(entries: Any) -> Any:
    """A list on one line, or a mapping with one line per entry."""
    if not isinstance(entries, Mapping):
        listed = CommentedSeq(entries)
        listed.fa.set_flow_style()
        return listed
    mapping = CommentedMap(entries)
    if not entries:
        mapping.fa.set_flow_style()
    for name, entry in entries.items():
        mapping[name] = CommentedMap(entry)
        mapping[name].fa.set_flow_style()
    return mapping


class _Representer(RoundTripRepresenter):
    """Writes null as `null`; ruamel.yaml would write an empty value."""


_Representer.add_representer(
    type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
)


def _drop_pins(document: Any, change: Mapping[str, Any], changes: Sequence[Mapping[str, Any]]) -> None:
    """Remove the pins of each source that the change replaces, except pins that one of the changes sets."""
    places = [("data",), *(("external", name) for name in _section(document, "external"))]
    for place in places:
        data = _section(document, *place)
        set_there = {pin for each in changes for pin in _section(each, *place)}
        if _section(change, *place).get("source", data.get("source")) != data.get("source"):
            for pin in PINS:
                if pin in data and pin not in set_there:
                    data[pin] = None


def _section(document: Any, *names: str) -> Any:
    section = document
    for name in names:
        section = section.get(name)
        if not isinstance(section, Mapping):
            return {}
    return section


def _keep_experiments(document: Any, names: Sequence[str]) -> None:
    there = _section(document, "experiments")
    if unknown := [name for name in names if name not in there]:
        raise InputError(f"experiments: {unknown[0]!r} is not one of {', '.join(there) or 'none'}")
    kept = {*names, *filter(None, (_lungs_from(there[name]) for name in names))}
    for name in [name for name in there if name not in kept]:
        del there[name]
    _keep_in_groups(_section(document, "report").get("groups"), there)
    _keep_in_list(_section(document, "export").get("experiments"), there)
    promotion = _section(document, "promotion")
    if promotion.get("experiment") not in list(there) and "experiment" in promotion:
        promotion["experiment"] = None


def _keep_in_groups(groups: Any, experiments: Any) -> None:
    """Remove experiments that no longer exist from the report's groups, and groups that become empty."""
    for title, names in list(groups.items()) if isinstance(groups, Mapping) else ():
        _keep_in_list(names, experiments)
        if not names:
            del groups[title]


def _keep_in_list(names: Any, experiments: Any) -> None:
    if isinstance(names, list):
        for name in [name for name in names if name not in list(experiments)]:
            names.remove(name)


def _lungs_from(entry: Any) -> str | None:
    """The experiment that this entry of params.yaml builds on, if any."""
    return lungs_from(str(entry.get("images", ""))) if isinstance(entry, Mapping) else None


def read_changes(preset: Path | None, assignments: list[str]) -> dict[str, dict[str, Any]]:
    """The changes from a command line: first the preset, then each KEY=VALUE."""
    changes = {str(preset): read_preset(preset)} if preset else {}
    return changes | {assignment: parse_assignment(assignment) for assignment in assignments}


def _shared(document: Any) -> set[int]:
    """The ids of the mappings that stand in several places, by YAML's aliases (`*name`, `<<: *name`)."""
    uses: Counter[int] = Counter()
    waiting = [document]
    while waiting:
        node = waiting.pop()
        for child in node.values() if isinstance(node, Mapping) else node:
            if isinstance(child, Mapping | list):
                uses[id(child)] += 1
                waiting += [child] if uses[id(child)] == 1 else []
    return {node for node, count in uses.items() if count > 1}


def _merge(document: Any, changes: Mapping[str, Any], shared: set[int]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(document.get(key), Mapping):
            if id(document[key]) in shared:  # the change is meant for this place alone
                document[key] = copy.deepcopy(document[key])
            _merge(document[key], value, shared)
        else:
            document[key] = value


class Preset(dict[str, Any]):
    """The changes of a preset. Changes to experiments that do not exist are ignored.

    `only` names the experiments that a flow trains with this preset; if it is empty, a flow trains all.
    `cxr params` ignores it, because it would delete the other experiments from the user's params.yaml.
    """

    only: tuple[str, ...] = ()

    def among(self, document: Mapping[str, Any]) -> dict[str, Any]:
        there, own = document.get("experiments"), self.get("experiments", {})
        if not isinstance(there, Mapping):  # the schema says so
            return {key: self[key] for key in self if key != "experiments"}
        return {**self, "experiments": {name: own[name] for name in own if name in there}}


def read_preset(path: Path) -> Preset:
    """Read the changes that a preset makes to params.yaml."""
    return parse_preset(read_text(path, "the project's presets are in presets/"), str(path))


def parse_preset(text: str, where: str) -> Preset:
    preset = Preset(parse_mapping(text, where))
    only = preset.pop("only", [])
    if not (isinstance(only, list) and all(isinstance(name, str) for name in only)):
        raise InputError(f"{where}: only: {only!r} is not a list of experiments, such as [report2, combined]")
    if not isinstance(preset.get("experiments", {}), Mapping):
        raise InputError(
            f"{where}: experiments: {preset['experiments']!r} is invalid: expected keys and values"
        )
    preset.only = tuple(only)
    return preset


def parse_assignment(assignment: str) -> dict[str, Any]:
    """Parse `"training.width=32"` as `{"training": {"width": 32}}`; the value is read as YAML."""
    key, separator, value = assignment.partition("=")
    if not separator or not all(key.split(".")):
        raise InputError(f"{assignment}: expected KEY=VALUE, for example alpha=0.3")
    try:
        nested = parse_yaml(value)
    except ValueError:
        raise InputError(f"{assignment}: the value is not valid YAML") from None
    for part in reversed(key.split(".")):
        nested = {part: nested}
    result: dict[str, Any] = nested
    return result
