"""The parameters of a sweep: the deployment's form, and the trials that follow from it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from flows.repository.git import git
from flows.repository.revision import change_params, unpacked
from flows.request import (
    PRESETS,
    Publish,
    RetrainRequest,
    Text,
    YourName,
    drop_none_defaults,
    offer_experiments,
    offer_presets,
)
from tasks.settings.changes import Preset, parse_preset
from tasks.settings.errors import fault_line
from tasks.settings.reading import parse_mapping
from tasks.settings.schema import ALL
from tasks.settings.training import Selection
from tasks.support.cli import InputError, without_secrets
from tasks.sweep.space import (
    MOST_TRIALS,
    Base,
    Key,
    Method,
    Point,
    Settings,
    Trial,
    corners,
    draw,
    grid,
    is_same,
    parse_keys,
    trials_of,
)
from tasks.sweep.suggest import check_installed

#: What all experiments of a sweep share, because one score ranks their trials.
COMMON = ("targets", "half", "train_classes", "selection", "folds")

#: The key of the choice between experiments.
EXPERIMENT = "experiment"


#: A number of trainings or trials, as a simple input of the form.
_Count = Annotated[int | None, WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MOST_TRIALS})]


class SweepRequest(BaseModel):
    """Which settings to try in which experiments. Every trial is trained and scored on the Val split."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=drop_none_defaults)

    settings: tuple[str, ...] = Field(
        min_length=1,
        description="Keys of an experiment with the values to try, each as KEY=VALUE,VALUE,... such as "
        "alpha=0,0.25,0.5. With random or optuna also KEY=LOW..HIGH, such as learning_rate=1e-4..1e-2.",
    )
    experiments: tuple[str, ...] = Field(
        min_length=1,
        description="The experiments in which to try them.",
        json_schema_extra=offer_experiments,
    )
    seeds: _Count = Field(
        None,
        ge=1,
        le=MOST_TRIALS,
        description="Trainings of each trial. If empty: as many as the experiment has.",
    )
    method: Method = Field(
        "grid",
        description="grid: every combination of the values. random: draw trials. optuna: Optuna suggests "
        "trials, from the scores of earlier ones.",
    )
    trials: _Count = Field(
        None, ge=1, le=MOST_TRIALS, description="The number of trials, for random and optuna."
    )
    sampler_seed: int = Field(
        0, ge=0, lt=2**32, title="Sampler seed", description="Seed of the choice of trials."
    )
    round: _Count = Field(
        None,
        ge=1,
        le=MOST_TRIALS,
        description="How many trials Optuna suggests at a time. If empty: as many as run side by side on the "
        "worker's machine.",
    )
    preset: Text = Field(
        None,
        description="A file in presets/, whose values override params.yaml.",
        json_schema_extra=offer_presets,
    )
    changes: tuple[str, ...] = Field(
        (),
        description="Other values of params.yaml to change, each as KEY=VALUE, such as training.width=32.",
    )
    revision: str = Field(
        "HEAD",
        min_length=1,
        description="The branch, tag or commit to start from. Uncommitted changes are not included.",
    )
    publish: Publish = Field(
        "remotes",
        description="Where to publish the results. remotes: on a branch retrain/NAME, pushed to origin, "
        "with the data pushed to the DVC remote, if these exist. here: on the branch only. "
        "nowhere: report only.",
    )
    requested_by: YourName = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.method == "grid" and self.trials:
            raise ValueError("trials: a grid has as many trials as combinations; choose random or optuna")
        if self.method != "grid" and not self.trials:
            raise ValueError(f"trials: {self.method} needs a number of trials")
        if ALL in self.experiments:
            raise ValueError(f"experiments: {ALL!r} is not the name of one; name those to sweep")
        if len(set(self.experiments)) < len(self.experiments):
            raise ValueError("experiments: one of them is named twice")
        if self.round and self.method != "optuna":
            raise ValueError("round: only optuna suggests trials in rounds")
        return self

    def describe(self) -> list[str]:
        """Return the request in lines, without secrets in URLs."""
        lines = [f"settings: {' '.join(self.settings)}", f"experiments: {', '.join(self.experiments)}"]
        if self.method != "grid":
            lines.append(f"method: {self.method}, {self.trials} trials, sampler seed {self.sampler_seed}")
        more = {"seeds": self.seeds, "preset": self.preset}
        lines += [f"{name}: {value}" for name, value in more.items() if value]
        return lines + [f"changed: {without_secrets(change)}" for change in self.changes]

    def params_text(self, repository: Path, commit: str, experiments: tuple[str, ...]) -> str:
        """Return the params.yaml of a commit with the preset and the other changes."""
        request = RetrainRequest(preset=self.preset, changes=self.changes, experiments=experiments)
        return request.params_text(repository, commit)


def make_request(**values: Any) -> SweepRequest:
    """Create a validated request.

    Raises:
        InputError: a value is invalid.
    """
    try:
        return SweepRequest(**values)
    except ValidationError as error:
        raise InputError(fault_line(error.errors()[0], SweepRequest)) from None


class Prepared(NamedTuple):
    """A request that has been checked against the params.yaml of its commit."""

    keys: tuple[Key, ...]
    text: str
    """The params.yaml that the trials are added to."""
    base: Base
    trials: tuple[Trial, ...]
    """All trials; empty for optuna, which suggests them one round after the other."""
    params: str
    """The params.yaml with all trials; empty for optuna."""
    what: str
    """The settings, for error messages."""

    def params_with(self, tree: Path, trials: Iterable[Trial]) -> str:
        """Return the params.yaml with these trials as its experiments, checked by the code in `tree`.

        Raises:
            InputError: a value is invalid. The message is one line.
        """
        trials = list(trials)
        changes = {self.what: self.base.changes(trials)}
        try:
            return change_params(tree, self.text, changes, experiments=[trial.name for trial in trials])
        except InputError as error:
            first, *more = str(error).splitlines()
            also = f" (and {len(more)} more such errors)" if more else ""
            raise InputError(first + also) from None

    def shared(self, experiment: str) -> "Shared":
        """Return what the trials have in common with an experiment."""
        value = {key: self.base.value(experiment, key) for key in COMMON}
        return Shared(
            value["selection"] or "all",  # revisions from before this key
            tuple(value["targets"]),
            tuple(value["train_classes"]),
        )


class Shared(NamedTuple):
    """What decides how trials are scored."""

    selection: Selection
    targets: tuple[str, ...]
    classes: tuple[str, ...]


def prepare(request: SweepRequest, repository: Path, commit: str) -> Prepared:
    """Check a request, and find its trials.

    Raises:
        InputError: a key, value or experiment is invalid. Nothing has run.
    """
    keys = parse_keys(request.settings, request.method)
    if request.method == "optuna":
        check_installed()
    text = request.params_text(repository, commit, request.experiments)
    raw = parse_mapping(text, "params.yaml")
    base = Base.of(raw, keys)
    _check_common(base, request.experiments)
    prepared = Prepared(keys, text, base, (), "", ", ".join(request.settings))
    trials = trials_of(base, _points(request, keys), request.seeds)
    with unpacked(repository, commit) as tree:
        params = prepared.params_with(tree, trials)
    if request.method == "optuna":
        return prepared
    return prepared._replace(trials=tuple(trials), params=params)


def _points(request: SweepRequest, keys: Sequence[Key]) -> list[Point]:
    """The points of the sweep; for optuna those that show whether all values are valid."""
    match request.method:
        case "grid":
            found = grid(space(request, keys))
        case "random":
            found = draw(space(request, keys), cast(int, request.trials), request.sampler_seed)
        case "optuna":
            return [(name, settings) for name in request.experiments for settings in corners(keys)]
    return [as_point(request, settings) for settings in found]


def _check_common(base: Base, experiments: Sequence[str]) -> None:
    first = experiments[0]
    for other in experiments[1:]:
        for key in COMMON:
            if not is_same(base.value(first, key), base.value(other, key)):
                raise InputError(
                    f"experiments: {first} and {other} differ in {key}, so their scores cannot be compared; "
                    "sweep them one by one"
                )


def space(request: SweepRequest, keys: Sequence[Key]) -> list[Key]:
    """Return the keys, after the choice between several experiments."""
    choice = [Key(EXPERIMENT, request.experiments)] if len(request.experiments) > 1 else []
    return [*choice, *keys]


def as_point(request: SweepRequest, settings: Settings) -> Point:
    """Return the experiment and the settings of a point of `space`."""
    others = {key: value for key, value in settings.items() if key != EXPERIMENT}
    return settings.get(EXPERIMENT, request.experiments[0]), others


def read_preset_at(repository: Path, commit: str, name: str) -> Preset:
    """Read a preset of a commit."""
    path = f"{PRESETS}/{name}.yaml"
    return parse_preset(git(repository, "show", f"{commit}:{path}") + "\n", path)
