"""The trials of a sweep as experiments of DVC, which `dvc exp show` lists below the commit of the sweep.

DVC stores an experiment as a commit on top of the commit that it started from, with a ref
refs/exps/XX/YYYY.../NAME where XXYYYY... is that commit. `dvc exp save` makes the same, in seconds and with
files of the workspace. These commits hold the params.yaml that a user would have written for the trial, and
its Val scores as metrics.json.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dvc.repo.experiments.refs import ExpRefInfo

from flows.repository.git import author_options, git
from tasks.settings.changes import with_changes
from tasks.settings.reading import parse_mapping
from tasks.settings.schema import overlaid
from tasks.support.cli import InputError
from tasks.sweep.space import Base, Key, Trial, nested


class Origin(NamedTuple):
    """What a sweep started from."""

    repository: Path
    commit: str
    text: str
    """The params.yaml that the settings of a trial change."""
    keys: Sequence[Key]


def save_experiments(
    origin: Origin,
    sweep: str,
    trials: Mapping[str, Trial],
    metrics: Mapping[str, str],
    log: Callable[[str], None],
) -> None:
    """Save each trial as an experiment of DVC called SWEEP.TRIAL.

    Args:
        origin: What the sweep started from.
        sweep: The name of the sweep.
        trials: The trials by name.
        metrics: The metrics.json of each trial.
        log: Receives a message if an experiment cannot be saved.
    """
    base = Base.of(parse_mapping(origin.text, "params.yaml"), origin.keys)
    entries = git(origin.repository, "ls-tree", origin.commit).splitlines()
    for name, trial in trials.items():
        try:
            files = {"params.yaml": _params(origin.text, base, trial), "metrics.json": metrics[name]}
            _save(origin.repository, origin.commit, f"{sweep}.{_short(trial)}", entries, files)
        except InputError as error:  # such as a revision with another schema
            log(f"{name} is not among the experiments of DVC: {error}")


def _params(text: str, base: Base, trial: Trial) -> str:
    """The params.yaml with the settings of a trial, also those that are the experiment's own."""
    own: Any = {"seeds": trial.entry["seeds"]} if "seeds" in trial.entry else {}
    for key, value in trial.settings.items():
        own = overlaid(own, nested(key, value))
    experiments = overlaid(base.others, {trial.experiment: own})
    return with_changes(text, {trial.name: {**base.overrides, "experiments": experiments}})


def _short(trial: Trial) -> str:
    """The name of a trial without that of its experiment."""
    return trial.name.removeprefix(f"{trial.experiment}-") if trial.name != trial.experiment else trial.name


def _save(repository: Path, base: str, name: str, entries: list[str], files: Mapping[str, str]) -> None:
    lines = [line for line in entries if line.partition("\t")[2] not in files]
    for path, content in files.items():
        blob = git(repository, "hash-object", "-w", "--stdin", stdin=content)
        lines.append(f"100644 blob {blob}\t{path}")
    tree = git(repository, "mktree", stdin="".join(f"{line}\n" for line in lines))
    message = f"dvc: commit experiment {name}"
    made = git(repository, *author_options(repository), "commit-tree", tree, "-p", base, "-m", message)
    git(repository, "update-ref", str(ExpRefInfo(base, name)), made)
