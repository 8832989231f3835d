"""What the code of a revision says about its params.yaml. Its schema may differ from the present one.

`dvc repro` at a revision runs that revision's code, and so do the stages of a run. The start of a run must
not judge by other rules.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

from pydantic import BaseModel, ConfigDict, ValidationError

from flows.repository.git import git
from flows.repository.stage_environment import stage_environment
from tasks.settings.errors import fault_line
from tasks.settings.training import Selection
from tasks.support.cli import InputError

#: The files of a revision that are needed to check its params.yaml.
CODE = ("*.py", "*.yaml")

OWN_PARAMS = Path(__file__).with_name("own_params.py")

#: What follows the experiment's name in that of a training, as a regular expression; its group is the number.
TRAINING_SUFFIX = r"-(?:seed|fold)(\d+)"


class Training(BaseModel):
    """What a flow has to know about a training. Early revisions lack the values that have defaults."""

    model_config = ConfigDict(frozen=True)

    experiment: str
    epochs: int
    image_size: int
    width: int
    train_classes: tuple[str, ...]
    patch: int = 1
    threads: int = 0
    processes: int = 1
    selection: Selection = "all"


@contextmanager
def unpacked(repository: Path, commit: str) -> Iterator[Path]:
    """Yield a temporary folder with the code of a commit."""
    with TemporaryDirectory() as folder:
        tree, archive = Path(folder, "code"), Path(folder, "code.zip")
        git(repository, "archive", f"--output={archive}", commit, "--", *CODE)
        # A tar would need the safe extraction that Python 3.11.2 of Debian 12 lacks.
        with ZipFile(archive) as code:
            code.extractall(tree)
        yield tree


def change_params(
    tree: Path,
    text: str,
    changes: Mapping[str, Mapping[str, Any]],
    *,
    preset: str | None = None,
    assignments: Sequence[str] = (),
    experiments: Sequence[str] = (),
) -> str:
    """Change the text of a params.yaml, and check it, by the code in `tree`.

    Args:
        tree: A folder with the code of the revision.
        text: The params.yaml.
        changes: Nested changes, each under a name for error messages.
        preset: The path of a preset in `tree`, which is applied first.
        assignments: Further changes, as KEY=VALUE.
        experiments: The experiments to keep. Empty keeps all.

    Raises:
        InputError: the result is invalid. The message is that code's.
    """
    asked = {
        "text": text,
        "preset": preset,
        "changes": changes,
        "assignments": assignments,
        "experiments": experiments,
    }
    return _run(tree, str(OWN_PARAMS), stdin=json.dumps(asked))


def plan_trainings(tree: Path) -> dict[str, Training]:
    """Return the trainings that the params.yaml in `tree` describes, as the stage `plan` of that code does.

    Raises:
        InputError: params.yaml is invalid. The message is that code's.
    """
    with TemporaryDirectory() as folder:
        plans = Path(folder, "plans")
        _run(tree, "-m", "tasks.plan", "params.yaml", str(plans))
        paths = [path for path in sorted(plans.glob("*.json")) if not path.match("*.prediction.json")]
        return {path.stem: _read_plan(path) for path in paths}


def _read_plan(path: Path) -> Training:
    plan = json.loads(path.read_text(encoding="utf-8"))
    try:
        return Training.model_validate({"experiment": path.stem, **plan})
    except ValidationError as error:
        faults = "; ".join(fault_line(fault, Training) for fault in error.errors())
        raise InputError(f"the revision plans the training {path.stem} in an unknown way: {faults}") from None


def _run(tree: Path, *arguments: str, stdin: str = "") -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=stage_environment("plan") | {"PYTHONDONTWRITEBYTECODE": "1"},  # it is the revision's own code
        input=stdin.encode(),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip()
        if not message.startswith("error: "):  # a traceback: only its last line says what happened
            message = message.rpartition("\n")[2]
        raise InputError(message.removeprefix("error: "))
    return done.stdout.decode()
