"""The parameters of a retraining: the deployment's form, and the resulting changes of params.yaml."""

from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.runtime import flow_run
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from flows.repository.git import author_options, git
from flows.repository.revision import change_params, unpacked
from tasks.settings.changes import Preset, parse_preset
from tasks.settings.errors import fault_line
from tasks.settings.reading import parse_mapping
from tasks.settings.schema import ALL
from tasks.support.cli import InputError, without_secrets

PRESETS = PurePosixPath("presets")
PROJECT = Path(__file__).parent.parent

#: The git trailer of a run's commit.
REQUESTED_BY = "Requested-By"

#: A run of a deployment that neither a schedule nor an automation started. Prefect's server without accounts
#: does not know who it was.
UNNAMED = "a user of the Prefect UI, CLI or API who gave no name"

Publish = Literal["remotes", "here", "nowhere"]
Promotion = Literal["never", "ask", "if better"]


def is_preset_name(text: str) -> bool:
    """Return whether a command line names a preset by its name, such as laptop, rather than by its path."""
    return Path(text).name == text and not text.endswith(".yaml")


def offer_presets(schema: dict[str, Any]) -> None:
    """Offer the presets of HEAD as choices in the form. Uncommitted files play no part in a run."""
    with suppress(InputError):  # outside a git repository the form has a text field
        names = git(PROJECT, "ls-tree", "--name-only", "HEAD", f"./{PRESETS}/").splitlines()
        schema["enum"] = sorted(PurePosixPath(name).stem for name in names if name.endswith(".yaml"))


def offer_experiments(schema: dict[str, Any]) -> None:
    """Offer the experiments of HEAD as choices in the form.

    The revision of a run may have other experiments, so the model accepts any name.
    """
    schema["uniqueItems"] = True
    with suppress(InputError):
        params = parse_mapping(git(PROJECT, "show", "HEAD:./params.yaml"), "params.yaml")
        if isinstance(params.get("experiments"), dict):
            schema["items"] = {"type": "string", "enum": list(params["experiments"])}


def drop_none_defaults(schema: dict[str, Any]) -> None:
    """Remove defaults of None from the schema. The form would send them as values of the wrong type."""
    for field in schema["properties"].values():
        if field.get("default", ...) is None:
            del field["default"]


# Prefect's form shows a simple input for a simple type. An empty input is None, which keeps the value of
# params.yaml or the preset.
Text = Annotated[str | None, WithJsonSchema({"type": "string", "minLength": 1})]
_Share = Annotated[float | None, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})]
_Count = Annotated[int | None, WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 100_000})]


def one_line(name: str | None) -> str | None:
    """Check a name. A line break would let it add another trailer to the commit."""
    if name and not name.isprintable():
        raise ValueError("must be one line of printable characters")
    return name


YourName = Annotated[
    Text,
    Field(title="Your name", min_length=1, max_length=100, description="Kept in the commit of the results."),
    AfterValidator(one_line),
]


class RetrainRequest(BaseModel):
    """What to run, and which values of params.yaml to change for it. An empty field changes nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=drop_none_defaults)

    preset: Text = Field(
        None,
        description="A file in presets/, whose values override params.yaml.",
        json_schema_extra=offer_presets,
    )
    experiments: tuple[str, ...] = Field(
        (),
        description="The experiments to train. If empty: those of the preset, or all.",
        json_schema_extra=offer_experiments,
    )
    alpha: _Share = Field(None, ge=0, le=1, description="Weight of BCE in combined losses, from 0 to 1.")
    epochs: _Count = Field(
        None, ge=1, le=100_000, description="Passes over the training images, in every experiment."
    )
    data_source: Text = Field(
        None,
        title="Data source",
        min_length=1,
        description="The dataset: kaggle://, s3://, https://, a folder or zip on the worker's machine, or "
        "phantom:// (synthetic).",
    )
    changes: tuple[str, ...] = Field(
        (),
        description="Other values of params.yaml to change, each as KEY=VALUE, such as training.width=32.",
    )
    revision: str = Field(
        "HEAD",
        min_length=1,
        description="The branch, tag or commit to start from. HEAD is the commit that is checked out in "
        "the worker's repository. Uncommitted changes are not included.",
    )
    look_for_new_data: bool = Field(
        False,
        title="Look for new data",
        description="List the data source first. If it differs from the data that the revision was "
        "trained on, use the new data.",
    )
    publish: Publish = Field(
        "remotes",
        description="Where to publish the results. remotes: on a branch retrain/NAME, pushed to origin, "
        "with the data pushed to the DVC remote, if these exist. here: on the branch only. "
        "nowhere: report only.",
    )
    promotion: Promotion = Field(
        "never",
        description="Whether the new network may replace the champion. ask: judge it, and wait for the "
        "decision of a person, with the deployment `promote`. if better: judge it, and promote it if it "
        "passes.",
    )
    requested_by: YourName = None

    @model_validator(mode="after")
    def _promoted_results_are_published(self) -> Self:
        if self.promotion != "never" and self.publish == "nowhere":
            raise ValueError(
                f"promotion: {self.promotion!r} needs a published branch; choose publish: here or remotes"
            )
        return self

    def requested(self) -> dict[str, str]:
        """Return the requested changes to the revision, keyed as in params.yaml, without secrets in URLs."""
        requested: dict[str, str] = {}
        if self.preset:
            requested["preset"] = self.preset
        if self.experiments:
            requested["experiments"] = ", ".join(self.experiments)
        assignments = (*self._changes(), *self.changes)
        return requested | dict(without_secrets(each).split("=", maxsplit=1) for each in assignments)

    def params_text(self, repository: Path, commit: str) -> str:
        """Return the params.yaml of a commit with the requested changes, validated by the commit's own code.

        Raises:
            InputError: the commit has no such preset or experiment, or a value is invalid. The message is
                that of the commit's params.yaml schema.
        """
        text = _read_committed(repository, commit, "params.yaml")
        path, chosen = None, self.experiments
        if self.preset:
            path = f"{PRESETS}/{self.preset}.yaml"
            preset = parse_preset(_read_committed(repository, commit, path), path)
            chosen = chosen or _chosen_by(preset, text, path)
        with unpacked(repository, commit) as tree:
            return change_params(
                tree,
                text,
                self._changes(),
                preset=path,
                assignments=self.changes,
                experiments=() if chosen == (ALL,) else chosen,
            )

    def _changes(self) -> dict[str, dict[str, Any]]:
        """Return the changes of the form's own fields, keyed by how they are written on a command line."""
        changes: dict[str, dict[str, Any]] = {}
        if self.alpha is not None:
            changes[f"alpha={self.alpha}"] = {"alpha": self.alpha}
        if self.epochs is not None:
            changes[f"epochs={self.epochs}"] = {"epochs": self.epochs}
        if self.data_source is not None:
            changes[f"data.source={self.data_source}"] = {"data": {"source": self.data_source}}
        return changes


def _chosen_by(preset: Preset, text: str, path: str) -> tuple[str, ...]:
    """Return the experiments that a preset selects from a params.yaml. Empty if it keeps all of them."""
    there = parse_mapping(text, "params.yaml").get("experiments") or {}
    chosen = tuple(name for name in preset.only if name in there)
    if preset.only and not chosen:
        raise InputError(
            f"{path}: only: params.yaml has none of {', '.join(preset.only)}; use --experiments to choose "
            f"from {', '.join(there)}, or {ALL}"
        )
    return chosen


def _read_committed(repository: Path, commit: str, path: str) -> str:
    try:
        # git() removes the final newline.
        return git(repository, "show", f"{commit}:{path}") + "\n"
    except InputError:
        pass
    folder = PurePosixPath(path).parent
    names = git(repository, "ls-tree", "--name-only", commit, f"{folder}/").split()
    there = f"; {folder}/ holds {', '.join(PurePosixPath(name).stem for name in names)}" if names else ""
    raise InputError(f"{path}: no such file in commit {commit[:10]}{there}")


def requester(repository: Path, given: str | None) -> str:
    """Return who asked for the current flow run, in one line.

    Args:
        repository: The clone, whose git identity is that of whoever starts a run on the command line.
        given: The name that the user gave, if any.
    """
    if given:
        return given
    with get_client(sync_client=True) as client:
        return describe(client.read_flow_run(flow_run.id), repository)


def describe(run: FlowRun, repository: Path) -> str:
    if run.deployment_id is None:
        # As in commits, where git knows no author, as on a fresh machine. The time is left out.
        identity = git(repository, *author_options(repository), "var", "GIT_AUTHOR_IDENT")
        return identity.rpartition(">")[0] + ">"
    if run.auto_scheduled:
        return "a schedule of the deployment"
    if run.created_by and run.created_by.type == "AUTOMATION":
        return f"the automation {run.created_by.display_value}"
    return UNNAMED


# --- the command line ---------------------------------------------------------------------------------------


def make_request(**values: Any) -> RetrainRequest:
    """Create a validated request.

    Raises:
        InputError: a value is invalid. The message has one line per error.
    """
    try:
        return RetrainRequest(**values)
    except ValidationError as error:
        raise InputError("\n".join(fault_line(fault, RetrainRequest) for fault in error.errors())) from None


def preset_of(preset: str, repository: Path) -> str:
    """Return the name of the preset that a command line gives as a name or as a path.

    Raises:
        InputError: the path is not in presets/. A run reads its presets from the commit.
    """
    if is_preset_name(preset):
        return preset
    named = Path(preset)
    path = named.parent.resolve() / named.name
    if path.parent != repository / PRESETS or path.suffix != ".yaml":
        raise InputError(
            f"--preset {named}: a run reads presets from {PRESETS}/ of its commit; commit the file as "
            f"{PRESETS}/{named.stem}.yaml, or pass its values with --set"
        )
    return path.stem
