"""A revision's params.yaml is judged by that revision's own code."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from flows.repository.git import environment, git
from flows.repository.revision import plan_trainings, unpacked
from flows.request import RetrainRequest
from tasks.settings.params import parse_params
from tasks.support.cli import InputError
from tests.helpers import ROOT, trainings_of

#: The commits of this repository that changed params.yaml, latest first. A shallow clone has fewer.
HISTORY = git(ROOT, "log", "--format=%H", "--", "params.yaml").split()


def committed(revision: str) -> str:
    return git(ROOT, "show", f"{revision}:params.yaml") + "\n"


def own_words(revision: str, text: str, folder: Path) -> str:
    """Return what the stage `plan` of a revision prints about a params.yaml, without `error: params.yaml`."""
    git(ROOT, "archive", f"--output={folder / 'code.tar'}", revision)
    with tarfile.open(folder / "code.tar") as code:
        code.extractall(folder / "code", filter="data")
    (folder / "code" / "params.yaml").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tasks.plan", "params.yaml", "plans"],
        cwd=folder / "code",
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip().removeprefix("error: params.yaml: ")


@pytest.mark.parametrize(
    "revision",
    # The latest and the first one, whose schemas differ most. The others take minutes.
    [
        pytest.param(revision, marks=[] if revision in (HISTORY[0], HISTORY[-1]) else pytest.mark.soak)
        for revision in HISTORY
    ],
    ids=lambda revision: str(revision)[:8],
)
def test_every_params_yaml_of_the_history_is_judged_in_its_own_words(revision: str, tmp_path: Path) -> None:
    text = committed(revision)
    assert RetrainRequest(revision=revision).params_text(ROOT, revision) == text
    with unpacked(ROOT, revision) as tree:
        trainings = plan_trainings(tree)
    assert trainings["report1_bce-seed0" if "report1_bce-seed0" in text else "report1_bce"].epochs == 100
    wrong = re.sub(r"(?m)^(  batch_size:) +\d+", r"\1 0", text)
    words = own_words(revision, wrong, tmp_path)
    assert words.startswith("training.batch_size: 0 ")
    with pytest.raises(InputError) as refused:
        RetrainRequest(changes=("training.batch_size=0",)).params_text(ROOT, revision)
    assert str(refused.value).partition("training.batch_size=0: ")[2] == words


def test_the_trainings_are_those_of_the_schema() -> None:
    text = committed("HEAD")
    with unpacked(ROOT, "HEAD") as tree:
        assert plan_trainings(tree) == trainings_of(parse_params(text))
