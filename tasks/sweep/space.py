"""What a sweep tries: keys of an experiment with values or ranges, and the trials that follow from them.

A trial is an experiment of its own. Its name follows from the settings in which it differs from its
experiment, and from nothing else, so equal settings have equal names in every sweep, and DVC's run cache has
their results.
"""

import difflib
import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

from tasks.settings.experiments import Experiment
from tasks.settings.reading import parse_yaml
from tasks.settings.schema import OVERRIDES, overlaid
from tasks.settings.training import uses_alpha
from tasks.support.cli import InputError

Scale = Literal["linear", "log"]
Method = Literal["grid", "random", "optuna"]

#: Dotted key -> value.
Settings = dict[str, Any]

#: An experiment, and the settings to try in it.
Point = tuple[str, Settings]

#: A range, such as 1e-4..1e-2, with its scale if that is given.
RANGE = re.compile(r"(?:(?P<scale>log|linear):)?(?P<low>[-+.\deE]+?)\.\.(?P<high>[-+.\deE]+)")

#: A range of positive numbers counts as logarithmic if its ends differ by this factor.
LOG_FACTOR = 10

#: Significant digits of drawn numbers. More would make names longer, and matter to no training.
DIGITS = 3

#: The largest number of trials of a sweep. Each pair of trials is compared.
MOST_TRIALS = 100

#: Attempts per trial to draw one that was not drawn before.
ATTEMPTS = 100

#: Longest name of a trial. It is part of file names.
LONGEST_NAME = 90

#: Why some keys of an experiment cannot be swept.
FIXED = {
    "seed": "the number of seeds is given by --seeds",
    "seeds": "the number of seeds is given by --seeds",
    "folds": "trials with other folds have other Val images; set it by --set",
    "targets": "trials with other targets have other scores; sweep experiments that differ in it one by one",
    "half": "trials on another half have other images; sweep experiments that differ in it one by one",
}


class Key(NamedTuple):
    """A key with the values to try, or with a range to draw from."""

    name: str
    """As below an experiment, such as `learning_rate` or `augment.flip`."""
    values: tuple[Any, ...] = ()
    """Empty for a range."""
    low: float = 0
    high: float = 0
    scale: Scale = "linear"
    whole: bool = False
    """Whether only whole numbers are drawn."""

    @property
    def is_range(self) -> bool:
        return not self.values

    def at(self, share: float) -> Any:
        """The value of a range at a share of it, from 0 up to, but not, 1."""
        low, high = (
            (math.log(self.low), math.log(self.high)) if self.scale == "log" else (self.low, self.high)
        )
        if self.whole and self.scale == "linear":
            return math.floor(self.low + share * (self.high - self.low + 1))
        found = low + share * (high - low)
        return self.rounded(math.exp(found) if self.scale == "log" else found)

    def rounded(self, value: float) -> Any:
        """The value with a few digits, within the range."""
        if self.whole:
            return int(min(max(round(value), self.low), self.high))
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def ends(self) -> tuple[Any, ...]:
        """All values, or the ends of the range."""
        return self.values or tuple(int(end) if self.whole else end for end in (self.low, self.high))


class Trial(NamedTuple):
    """One point of a sweep."""

    name: str
    """The name of its experiment in the sweep's params.yaml."""
    experiment: str
    settings: Settings
    """The value of each swept key."""
    entry: Settings
    """The entry of its experiment in params.yaml."""


# --- reading ------------------------------------------------------------------------------------------------


def parse_keys(texts: Sequence[str], method: Method) -> tuple[Key, ...]:
    """Read the swept keys, each as KEY=VALUE,VALUE,... or KEY=LOW..HIGH.

    Raises:
        InputError: a text has another form, or a key cannot be swept or is given twice.
    """
    if not texts:
        raise InputError("nothing to sweep; name a key with its values, such as alpha=0,0.5,1")
    keys = tuple(_parse_key(text, method) for text in texts)
    names = [key.name for key in keys]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{twice[0]}: this key is given twice")
    return keys


def _parse_key(text: str, method: Method) -> Key:
    written, separator, values = text.partition("=")
    if not (separator and values and all(written.split("."))):
        raise InputError(f"{text}: expected KEY=VALUE,VALUE,... or KEY=LOW..HIGH, such as alpha=0,0.5,1")
    name = _checked_name(written)
    if match := RANGE.fullmatch(values):
        if method == "grid":
            raise InputError(
                f"{text}: a range needs --random N or --optuna N; or list values, such as 0,0.5,1"
            )
        return _range(text, name, match)
    try:
        listed = parse_yaml(f"[{values}]")
    except ValueError:
        raise InputError(f"{text}: the values are not valid YAML") from None
    if any(isinstance(value, dict) for value in listed):
        raise InputError(
            f"{text}: a value is a mapping; sweep its keys one by one, such as augment.flip=0,0.5"
        )
    try:
        distinct = {_as_json(value) for value in listed}
    except TypeError:  # such as a date
        raise InputError(f"{text}: the values must be numbers, words or lists of these") from None
    if len(distinct) < len(listed):
        raise InputError(f"{text}: a value is listed twice")
    return Key(name, tuple(listed))


def _checked_name(written: str) -> str:
    """The key as below an experiment."""
    name = written.removeprefix("training.")
    if why := FIXED.get(name):
        raise InputError(f"{written}: cannot be swept: {why}")
    if hasattr(_field(written, name), "model_fields"):
        raise InputError(f"{written}: is a section; name one of its keys, such as augment.flip")
    return name


def _field(written: str, name: str) -> Any:
    """The type of a key.

    Raises:
        InputError: there is no such key.
    """
    section: Any = Experiment
    for part in name.split("."):
        fields = getattr(section, "model_fields", {})
        if part not in fields:
            known = sorted(fields.keys() - FIXED.keys())
            near = difflib.get_close_matches(part, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else f"; the keys here are {', '.join(known)}"
            raise InputError(f"{written}: unknown key of an experiment{hint if known else ''}")
        section = fields[part].annotation
    return section


def _range(text: str, name: str, match: "re.Match[str]") -> Key:
    try:
        low, high = float(match["low"]), float(match["high"])
    except ValueError:
        raise InputError(f"{text}: {match['low']}..{match['high']} is not a range of numbers") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"{text}: {match['low']} is not below {match['high']}")
    whole = _is_whole(text, name)
    if whole and not (low.is_integer() and high.is_integer()):
        raise InputError(f"{text}: {name} takes whole numbers")
    wide = not whole and low > 0 and high >= LOG_FACTOR * low
    scale: Scale = "log" if match["scale"] == "log" or (match["scale"] is None and wide) else "linear"
    if scale == "log" and low <= 0:
        raise InputError(f"{text}: a logarithmic range must start above 0")
    return Key(name, low=low, high=high, scale=scale, whole=whole)


def _is_whole(text: str, name: str) -> bool:
    """Whether the values of a key are whole numbers."""
    kind = _field(name, name)
    kinds = {kind, *(get_origin(each) or each for each in get_args(kind))}
    kinds |= {part for each in get_args(kind) for part in get_args(each)}
    if not kinds & {int, float}:
        raise InputError(f"{text}: {name} is not a number; list its values")
    return float not in kinds


def _as_json(value: Any) -> str:
    """The value as text; equal numbers have equal texts."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)


def is_same(first: Any, second: Any) -> bool:
    return _as_json(first) == _as_json(second)


# --- drawing ------------------------------------------------------------------------------------------------


def grid(keys: Sequence[Key]) -> list[Settings]:
    """Every combination of the values; the first key varies slowest."""
    names = [key.name for key in keys]
    combinations = itertools.product(*(key.values for key in keys))
    return [dict(zip(names, values, strict=True)) for values in combinations]


def draw(keys: Sequence[Key], count: int, seed: int) -> list[Settings]:
    """Draw different points at random, fewer if there are not so many.

    A larger `count` with the same seed starts with the same points.
    """
    generator = random.Random(seed)
    found: dict[str, Settings] = {}
    for _ in range(count * ATTEMPTS):
        shares = [generator.random() for _ in keys]
        point = {key.name: _drawn(key, share) for key, share in zip(keys, shares, strict=True)}
        found.setdefault(_as_json(point), point)
        if len(found) == count:
            break
    return list(found.values())


def _drawn(key: Key, share: float) -> Any:
    return key.at(share) if key.is_range else key.values[int(share * len(key.values))]


def corners(keys: Sequence[Key]) -> list[Settings]:
    """Points that together have every value, and the ends of every range."""
    ends = [key.ends() for key in keys]
    most = max(len(each) for each in ends)
    names = [key.name for key in keys]
    rows = ([each[min(row, len(each) - 1)] for each in ends] for row in range(most))
    return [dict(zip(names, row, strict=True)) for row in rows]


# --- trials -------------------------------------------------------------------------------------------------


class Base(NamedTuple):
    """The params.yaml that a sweep starts from."""

    raw: Mapping[str, Any]
    """Its content, without values that override swept keys in every experiment."""
    overrides: dict[str, None]
    """Top-level keys to set to null, because they are swept."""
    others: dict[str, Settings]
    """What experiments get instead of the values at the top level."""

    @classmethod
    def of(cls, raw: Mapping[str, Any], keys: Iterable[Key]) -> "Base":
        """Give each experiment the values that override it, so that a trial can have others."""
        swept = {key.name for key in keys}
        overrides = {name: raw[name] for name in OVERRIDES if name in swept and raw.get(name) is not None}
        others = {
            name: {key: overrides[key] for key in overrides if key != "alpha" or uses_alpha(entry)}
            for name, entry in raw["experiments"].items()
        }
        nulls = dict.fromkeys(overrides)
        return cls(overlaid(dict(raw), {**nulls, "experiments": others}), nulls, others if overrides else {})

    def value(self, experiment: str, key: str) -> Any:
        """The value of a key in an experiment, or None."""
        entry = self.raw["experiments"][experiment]
        training = dict(self.raw.get("training") or {})
        if not uses_alpha(entry):
            training.pop("alpha", None)
        shared = training | {section: self.raw.get(section) for section in ("losses", "prediction")}
        found: Any = overlaid(shared, entry)
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found

    def trial(self, experiment: str, settings: Settings, seeds: int | None) -> Trial:
        """A trial of an experiment; `seeds` None keeps the experiment's own number."""
        changed = {
            key: value for key, value in settings.items() if not is_same(value, self.value(experiment, key))
        }
        entry = self.raw["experiments"][experiment]
        for key, value in changed.items():
            entry = overlaid(entry, nested(key, value))
        if seeds is not None:
            entry = entry | {"seeds": seeds}
        return Trial(_name(experiment, changed), experiment, settings, entry)

    def changes(self, trials: Iterable[Trial]) -> dict[str, Any]:
        """The nested changes of params.yaml that add the trials as experiments."""
        entries = {trial.name: trial.entry for trial in trials}
        return {**self.overrides, "experiments": {**self.others, **entries}}


def nested(key: str, value: Any) -> dict[str, Any]:
    """`augment.flip`, 0.5 -> `{"augment": {"flip": 0.5}}`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    found: dict[str, Any] = value
    return found


def trials_of(base: Base, points: Sequence[Point], seeds: int | None) -> list[Trial]:
    """The trials at some points.

    Raises:
        InputError: params.yaml has another experiment with the name of a trial, or there are too many.
    """
    if len(points) > MOST_TRIALS:
        raise InputError(
            f"these are {len(points):,} trials, more than {MOST_TRIALS}; use fewer values, or --random N"
        )
    trials = [base.trial(experiment, settings, seeds) for experiment, settings in points]
    for trial in trials:
        if trial.name != trial.experiment and trial.name in base.raw["experiments"]:
            raise InputError(f"experiments: {trial.name} is also the name of a trial; rename the experiment")
    return trials


def _name(experiment: str, changed: Settings) -> str:
    parts = [f"{key.replace('.', '_')}-{_word(changed[key])}" for key in sorted(changed)]
    name = "-".join([experiment, *parts])
    return name if len(name) <= LONGEST_NAME else f"{experiment}-{_digest(changed)}"


def _word(value: Any) -> str:
    """The value as part of a name, which may hold letters, digits, hyphens and underscores."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:.12g}".replace(".", "_").replace("+", "")
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_-]+", value):
        return value
    return "null" if value is None else _digest(value)


def _digest(value: Any) -> str:
    return hashlib.sha256(_as_json(value).encode()).hexdigest()[:8]
