"""What a retraining is asked to do: the form of the deployment, and what it changes in params.yaml."""

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from flows.repository.git import git
from tasks.settings.changes import Preset, parse_assignment, parse_preset, with_changes
from tasks.settings.schema import ALL, parse_mapping
from tasks.support.cli import InputError

PRESETS = PurePosixPath("presets")
PROJECT = Path(__file__).parent.parent

Publish = Literal["remotes", "here", "nowhere"]


def preset_names(folder: Path = PROJECT) -> list[str]:
    return sorted(path.stem for path in (folder / PRESETS).glob("*.yaml"))


def _offer_presets(schema: dict[str, Any]) -> None:
    schema["enum"] = preset_names()


def _offer_experiments(schema: dict[str, Any]) -> None:
    """Make the experiments that params.yaml holds today the form's choices.

    The revision of a run may hold others, so the model itself admits every word.
    """
    params = parse_preset((PROJECT / "params.yaml").read_text(encoding="utf-8"), "params.yaml")
    schema["items"] = {"type": "string", "enum": list(params["experiments"])}
    schema["uniqueItems"] = True


def _leave_empty(schema: dict[str, Any]) -> None:
    """Take out the defaults that are None: the form would send them, as values of the wrong type."""
    for field in schema["properties"].values():
        if field.get("default", ...) is None:
            del field["default"]


# Prefect's form draws a plain field for a plain type. None, which leaves the value as params.yaml or the
# preset has it, is the field left empty.
_Text = Annotated[str | None, WithJsonSchema({"type": "string", "minLength": 1})]
_Share = Annotated[float | None, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})]
_Count = Annotated[int | None, WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 100_000})]


class RetrainRequest(BaseModel):
    """What to run, and what to change in params.yaml for it. Left empty, a field changes nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_leave_empty)

    preset: _Text = Field(
        None,
        description="A file of presets/ whose values replace those of params.yaml.",
        json_schema_extra=_offer_presets,
    )
    experiments: tuple[str, ...] = Field(
        (),
        description="The experiments to train. None chosen: those that the preset chooses, or else all.",
        json_schema_extra=_offer_experiments,
    )
    alpha: _Share = Field(None, ge=0, le=1, description="Weight of BCE in combined losses, from 0 to 1.")
    epochs: _Count = Field(
        None, ge=1, le=100_000, description="Passes over the training images, in every experiment."
    )
    data_source: _Text = Field(
        None,
        title="Data source",
        min_length=1,
        description="The dataset: kaggle://, s3://, https://, a folder or zip on the worker's machine, or "
        "phantom:// (synthetic).",
    )
    changes: tuple[str, ...] = Field(
        (),
        description="Any other values of params.yaml, each as KEY=VALUE, for example training.width=32.",
    )
    revision: str = Field(
        "HEAD",
        min_length=1,
        description="The branch, tag or commit to start from. HEAD is what the worker's repository has "
        "checked out; what is not committed there takes no part.",
    )
    look_for_new_data: bool = Field(
        False,
        title="Look for new data",
        description="List the data source first, and take what is there now where it differs from the data "
        "that the revision was trained on.",
    )
    publish: Publish = Field(
        "remotes",
        description="Where the results go. remotes: a branch retrain/NAME here, pushed to origin, and the "
        "data to the DVC remote, where there are such; here: the branch alone; nowhere: the report alone.",
    )

    def asked(self) -> dict[str, str]:
        """What differs from the revision as it stands, in the words of params.yaml."""
        asked: dict[str, str] = {}
        if self.preset:
            asked["preset"] = self.preset
        if self.experiments:
            asked["experiments"] = ", ".join(self.experiments)
        return asked | dict(assignment.split("=", maxsplit=1) for assignment in self._changes())

    def params_text(self, repository: Path, commit: str) -> str:
        """The params.yaml of a commit with what is asked for changed in it, and checked.

        Raises:
            InputError: the commit has no such preset or experiment, or the schema of params.yaml refuses a
                value; in its own words.
        """
        text = _read_committed(repository, commit, "params.yaml")
        changes: dict[str, dict[str, Any]] = {}
        chosen = self.experiments
        if self.preset:
            path = f"{PRESETS}/{self.preset}.yaml"
            preset = parse_preset(_read_committed(repository, commit, path), path)
            changes[path] = preset
            chosen = chosen or _chosen_by(preset, text, path)
        return with_changes(text, changes | self._changes(), () if chosen == (ALL,) else chosen)

    def _changes(self) -> dict[str, dict[str, Any]]:
        """Each single change, under what it would be on a command line."""
        changes: dict[str, dict[str, Any]] = {}
        if self.alpha is not None:
            changes[f"alpha={self.alpha}"] = {"alpha": self.alpha}
        if self.epochs is not None:
            changes[f"epochs={self.epochs}"] = {"epochs": self.epochs}
        if self.data_source is not None:
            changes[f"data.source={self.data_source}"] = {"data": {"source": self.data_source}}
        return changes | {assignment: parse_assignment(assignment) for assignment in self.changes}


def _chosen_by(preset: Preset, text: str, path: str) -> tuple[str, ...]:
    """The experiments that a preset chooses among those of a params.yaml; none: it leaves them all."""
    there = parse_mapping(text, "params.yaml").get("experiments") or {}
    chosen = tuple(name for name in preset.only if name in there)
    if preset.only and not chosen:
        raise InputError(
            f"{path}: only: params.yaml has none of {', '.join(preset.only)}; choose with --experiments, "
            f"among {', '.join(there)}, or {ALL}"
        )
    return chosen


def _read_committed(repository: Path, commit: str, path: str) -> str:
    try:
        # With its final newline, which git() takes off.
        return git(repository, "show", f"{commit}:{path}") + "\n"
    except InputError:
        pass
    folder = PurePosixPath(path).parent
    names = git(repository, "ls-tree", "--name-only", commit, f"{folder}/").split()
    there = f"; {folder}/ holds {', '.join(PurePosixPath(name).stem for name in names)}" if names else ""
    raise InputError(f"{path}: no such file in commit {commit[:10]}{there}")
