"""params.yaml, checked once.

Outside input ends here: what `load_params` returns is complete, typed and within bounds, and the stages
trust it. A wrong word is answered with its place, the word itself and the words that would do.

    python -m tasks.params --preset presets/laptop.yaml --set alpha=0.3

writes a preset and single changes into params.yaml, keeping its comments.
"""

import argparse
import difflib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import RoundTripRepresenter

from tasks.cli import InputError, stage_main
from tasks.files import replacing
from tasks.raw import Half, ImageClass

Network = Literal["unet", "residual_unet"]
Loss = Literal["bce", "bce_iou"]
Target = Literal["infection", "lung"]

#: The losses that read the shared weight `alpha`; a change of alpha retrains these alone.
LOSSES_WITH_ALPHA: frozenset[Loss] = frozenset({"bce_iou"})

#: The trivial predictors that stand beside the experiments in metrics.json.
BASELINES = frozenset({"all_background", "all_foreground", "whole_lung"})

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _distinct(words: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(words)) < len(words):
        raise ValueError("a word stands there twice")
    return words


class Data(_Section):
    source: Annotated[str, Field(min_length=1)]
    fingerprint: Annotated[str, Field(pattern=r"^f[0-9a-f]{31}$")] | None = None

    @model_validator(mode="after")
    def _can_be_pinned(self) -> Self:
        if self.fingerprint and self.source.startswith("phantom://"):
            raise ValueError("phantom:// never changes and has no fingerprint; set data.fingerprint=null")
        return self


class Preprocess(_Section):
    max_rejected: Share


class Training(_Section):
    """What the experiments share, and each may set for itself."""

    batch_size: Positive
    width: Positive
    depth: Annotated[int, Field(ge=1, le=6)]
    optimiser: Literal["adam", "adamw"]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["constant", "cosine", "one_cycle"]
    flip: bool
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    precision: Literal["auto", "fp32", "bf16"]
    threads: Annotated[int, Field(ge=0)]


class Experiment(Training):
    """An entry under `experiments`, the shared values merged in."""

    network: Network
    loss: Loss
    targets: Annotated[tuple[Target, ...], Field(min_length=1, strict=False), AfterValidator(_distinct)]
    train_classes: Annotated[
        tuple[ImageClass, ...], Field(min_length=1, strict=False), AfterValidator(_distinct)
    ]
    epochs: Positive
    alpha: Share | None = None

    @model_validator(mode="after")
    def _has_the_alpha_it_reads(self) -> Self:
        reads = self.loss in LOSSES_WITH_ALPHA
        if reads != (self.alpha is not None):
            raise ValueError(
                f"loss {self.loss} {'reads alpha, which is missing' if reads else 'reads no alpha'}"
            )
        return self


class Plan(Experiment):
    """One experiment with everything that determines its training, and nothing else.

    `alpha` is None where the loss does not read it, so that its plan does not change with alpha.
    """

    name: str
    half: Half
    image_size: int

    def to_json(self) -> str:
        return self.model_dump_json(indent=2, exclude_none=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        return cls.model_validate_json(text)


class Evaluate(_Section):
    threshold: Annotated[float, Field(gt=0, lt=1)]


class Report(_Section):
    figures: Annotated[tuple[Positive, ...], Field(strict=False)]


class Params(_Section):
    """The whole of params.yaml."""

    alpha: Share
    epochs: Positive
    data: Data
    half: Half
    image_size: Annotated[int, Field(ge=16)]
    preprocess: Preprocess
    training: Training
    experiments: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], Experiment], Field(min_length=1)
    ]
    evaluate: Evaluate
    report: Report

    @property
    def plans(self) -> dict[str, Plan]:
        """What each experiment's training depends on, by its name, in the order of params.yaml."""
        return {
            name: Plan(name=name, half=self.half, image_size=self.image_size, **experiment.model_dump())
            for name, experiment in self.experiments.items()
        }

    @model_validator(mode="before")
    @classmethod
    def _share(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Give each experiment the shared values that it does not set for itself."""
        entries, training = raw.get("experiments"), raw.get("training")
        if not isinstance(entries, dict) or not isinstance(training, dict):
            return raw
        merged = {name: cls._merged(raw, entry) for name, entry in entries.items()}
        return {**raw, "experiments": merged}

    @staticmethod
    def _merged(raw: dict[str, Any], entry: Any) -> Any:
        if not isinstance(entry, dict):
            return entry
        shared = {**raw["training"], "epochs": raw.get("epochs")}
        if entry.get("loss") in LOSSES_WITH_ALPHA:
            shared["alpha"] = raw.get("alpha")
        return {**shared, **entry}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name, experiment in self.experiments.items():
            place, stride = f"experiments.{name}", 2**experiment.depth
            if name in BASELINES:
                raise ValueError(f"{place}: a trivial predictor has this name; choose another")
            if self.image_size % stride or self.image_size == stride:
                raise ValueError(
                    f"{place}: image_size {self.image_size} is not 2, 3, ... times 2^depth = {stride}"
                )
            if "infection" in experiment.targets and self.half == "lung":
                raise ValueError(f"{place}: the lung half holds no infection masks; set targets: [lung]")
        return self


def load_params(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        InputError: the file is missing, is no YAML, or a value in it won't do; one line a fault.
    """
    return parse_params(_read_text(path, "run this in the folder that holds params.yaml"), str(path))


def parse_params(text: str, where: str = "params.yaml") -> Params:
    """Check the text of a params.yaml; `where` names it in what is said of its faults."""
    raw = parse_mapping(text, where)
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise InputError("\n".join(_fault_lines(error, where))) from None


def parse_mapping(text: str, where: str) -> dict[str, Any]:
    """Parse YAML 1.2 text whose top level is a mapping."""
    try:
        raw = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise InputError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected keys and values, found {type(raw).__name__}")
    return raw


def _read_text(path: Path, hint: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {hint}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _fault_lines(error: ValidationError, where: str) -> list[str]:
    faults = error.errors()
    # Experiments are made of what is shared: where that is at fault, theirs are its consequences.
    faults = [fault for fault in faults if _place(fault)[:1] != ("experiments",)] or faults
    misspelt = {(*_place(f)[:-1], _near_key(_place(f))) for f in faults if f["type"] == "extra_forbidden"}
    # A misspelt key is a missing key too: one line, of the word that stands there.
    faults = [f for f in faults if f["type"] != "missing" or _place(f) not in misspelt]
    return [f"{where}: {fault_line(fault)}" for fault in faults]


def fault_line(fault: ErrorDetails) -> str:
    """One fault that pydantic found: its place, the value, and what would do."""
    return ": ".join(filter(None, [".".join(_place(fault)), _say(fault)]))


def _place(fault: ErrorDetails) -> tuple[str, ...]:
    return tuple(str(part) for part in fault["loc"])


def _say(fault: ErrorDetails) -> str:
    place = _place(fault)
    match fault["type"]:
        case "extra_forbidden":
            near = _near_key(place)
            hint = f" (did you mean {near}?)" if near else ""
            return f"unknown key{hint}; the keys here are {', '.join(_keys_at(place[:-1]))}"
        case "missing":
            return "this key is missing"
        case "literal_error":
            return f"{fault['input']!r} is not one of {fault['ctx']['expected']}"
        case "value_error":
            return str(fault["ctx"]["error"])
        case "dict_type" | "model_type":
            return f"{fault['input']!r} won't do: expected keys and values"
    return f"{fault['input']!r} won't do: {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _near_key(place: tuple[str, ...]) -> str | None:
    """The key that somebody who wrote the last word of `place` may have meant."""
    return next(iter(difflib.get_close_matches(place[-1], _keys_at(place[:-1]), n=1)), None)


def _keys_at(place: tuple[str, ...]) -> list[str]:
    if place[:1] == ("experiments",):
        return sorted(Experiment.model_fields)
    section: Any = Params
    for part in place:
        section = section.model_fields[part].annotation
    return list(section.model_fields)


def with_changes(text: str, changes: Mapping[str, Mapping[str, Any]], experiments: Sequence[str] = ()) -> str:
    """The text of params.yaml with nested changes merged in, comments kept, and checked.

    Mappings are merged, everything else is replaced.

    Args:
        changes: each under the name of where it came from, which is named where the result won't do.
        experiments: those to keep, of the changed text; none named keeps them all.

    Raises:
        InputError: the text is no params.yaml, the changed one does not fit the schema, or it has no
            such experiment.
    """
    parse_mapping(text, "params.yaml")
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.width, yaml.preserve_quotes = 4096, True
    document = yaml.load(text)
    for change in changes.values():
        _merge(document, change)
    if experiments:
        _keep_experiments(document, experiments)
    buffer = io.StringIO()
    yaml.dump(document, buffer)
    parse_params(buffer.getvalue(), " with ".join(filter(None, ["params.yaml", ", ".join(changes)])))
    return buffer.getvalue()


class _Representer(RoundTripRepresenter):
    """Writes null as null, where ruamel.yaml would leave the value out."""


_Representer.add_representer(
    type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
)


def _keep_experiments(document: Any, names: Sequence[str]) -> None:
    there = document.get("experiments") or {}
    if unknown := [name for name in names if name not in there]:
        raise InputError(f"experiments: {unknown[0]!r} is not one of {', '.join(there)}")
    for name in [name for name in there if name not in names]:
        del there[name]


def read_changes(preset: Path | None, assignments: list[str]) -> dict[str, dict[str, Any]]:
    """The changes that a command line asks for: a preset first, then each KEY=VALUE."""
    changes = {str(preset): read_preset(preset)} if preset else {}
    return changes | {assignment: parse_assignment(assignment) for assignment in assignments}


def _merge(document: Any, changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(document.get(key), Mapping):
            _merge(document[key], value)
        else:
            document[key] = value


def read_preset(path: Path) -> dict[str, Any]:
    """The changes that a preset makes to params.yaml."""
    return parse_mapping(_read_text(path, "presets/ holds those that come with the project"), str(path))


def parse_assignment(assignment: str) -> dict[str, Any]:
    """`"training.width=32"` as `{"training": {"width": 32}}`; the value is read as YAML."""
    key, separator, value = assignment.partition("=")
    if not separator or not all(key.split(".")):
        raise InputError(f"{assignment}: expected KEY=VALUE, for example alpha=0.3")
    try:
        nested: Any = YAML(typ="safe", pure=True).load(value)
    except YAMLError:
        raise InputError(f"{assignment}: the value is not valid YAML") from None
    for part in reversed(key.split(".")):
        nested = {part: nested}
    result: dict[str, Any] = nested
    return result


def add_change_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `read_changes` reads."""
    parser.add_argument("--preset", type=Path, help="a YAML file of changes, for example presets/laptop.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a preset and single changes into params.yaml.")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    add_change_arguments(parser)
    args = parser.parse_args()
    changes = read_changes(args.preset, args.assignments)
    text = with_changes(_read_text(args.params, "name it with --params"), changes)
    with replacing(args.params) as beside:
        beside.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    stage_main(main)
