"""`cxr sweep` as its users run it, with a real repository, Prefect server and DVC."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.commands.cli import make_app
from flows.repository.git import environment
from tasks.support.cli import InputError
from tasks.sweep.document import Sweep
from tests.flows.cluster import Cluster
from tests.flows.server import User
from tests.helpers import Repository, cut_power, eventually, finished, with_cache_of

pytestmark = pytest.mark.usefixtures("prefect_server")

OURS = ("--experiments", "report1_bce_iou")


def sweep(repository: Repository, *arguments: str, fails: bool = False) -> str:
    return repository.run("cxr", "sweep", *arguments, *OURS, fails=fails)


def trained(output: str) -> set[str]:
    """The trainings that a sweep ran, rather than taking them from the run cache."""
    ends = re.findall(r"Task run '(train@\S+)' - Finished in state (\w+)", output)
    return {stage for stage, state in ends if state != "Cached"}


def metrics(repository: Repository, name: str) -> Any:
    return json.loads(repository.run("git", "show", f"retrain/{name}:metrics.json"))


def result(repository: Repository, name: str) -> Sweep:
    return Sweep.read(repository.folder / "runs" / name)


def artifacts(name: str) -> dict[str, Any]:
    """The content of the artifacts of a run on the tests' server, by key."""
    with closing(User(os.environ["PREFECT_API_URL"])) as user:
        run = next(run for run in user.runs("sweep") if run.name == name)
        return {found["key"]: found["data"] for found in user.artifacts(run.id)}


@pytest.fixture(scope="module")
def repository(
    make_prepared_repository: Callable[[Path], Repository], tmp_path_factory: pytest.TempPathFactory
) -> Repository:
    """A repository whose DVC cache has what `dvc repro` made, so also the trial with alpha 0.5."""
    return make_prepared_repository(tmp_path_factory.mktemp("sweep") / "repository")


class TestInOrder:
    """The tests build on each other."""

    def test_trains_what_is_new_and_says_which_is_best(self, repository: Repository) -> None:
        output = sweep(repository, "alpha=0.25,0.5", "--name", "first")
        new = "report1_bce_iou-alpha-0_25"
        assert trained(output) == {f"train@{new}-seed0"}
        states = finished(output)
        assert states["train@report1_bce_iou-seed0"] == states["evaluate@report1_bce_iou-seed0"] == "Cached"
        assert not {"compare", "report"} & states.keys()
        assert {"measure networks", "compare trials"} <= states.keys()
        assert " Val images of COVID-19: IoU" in output
        assert " Test images of " not in output

        scores = {name: found["val"]["score"] for name, found in metrics(repository, "first").items()}
        assert scores.keys() == {new, "report1_bce_iou"}
        found = result(repository, "first")
        assert {trial.name: trial.score.value for trial in found.trials} == scores
        assert found.best.score.value == max(scores.values())
        assert all(trial.cost.milliseconds and trial.cost.parameters > 100 for trial in found.trials)
        assert f"Best on the Val split: alpha {found.best.settings['alpha']}, with mean Dice " in output
        page = (repository.folder / "runs" / "first" / "index.html").read_text()
        assert "Sweep of alpha in report1_bce_iou" in page

        # Prune identifies the commits of runs by their trailers.
        marks = "--format=%(trailers:key=Retrain-Run,valueonly)"
        assert repository.run("git", "log", marks, "main..retrain/first").split() == ["first", "first"]
        lock = repository.run("git", "show", "retrain/first:dvc.lock")
        kinds = {line.strip(" :").partition("@")[0] for line in re.findall(r"(?m)^  [a-z].*:$", lock)}
        assert kinds == {"plan", "download", "preprocess", "audit", "train", "evaluate"}
        assert repository.run("git", "worktree", "list").count("\n") == 1

    def test_the_curve_and_the_table_are_in_the_ui(self) -> None:
        found = artifacts("first")
        assert "(data:image/svg+xml;base64," in found["sweep-summary"]
        assert "| 0.25 |" in found["sweep-summary"]
        assert {row["alpha"] for row in json.loads(found["sweep-trials"])} == {"0.25", "0.5"}

    def test_dvc_lists_the_trials(self, repository: Repository) -> None:
        (commit,) = json.loads(repository.run("dvc", "exp", "show", "--json"))[1:]
        shown = {}
        for experiment in commit["experiments"]:
            (state,) = experiment["revs"]
            params = state["data"]["params"]["params.yaml"]["data"]["experiments"]["report1_bce_iou"]
            scores = state["data"]["metrics"]["metrics.json"]["data"]["report1_bce_iou"]
            shown[experiment["name"]] = (params["alpha"], scores["val"]["score"])
        ours = metrics(repository, "first")
        assert shown == {
            "first.alpha-0_25": (0.25, ours["report1_bce_iou-alpha-0_25"]["val"]["score"]),
            "first.report1_bce_iou": (0.5, ours["report1_bce_iou"]["val"]["score"]),
        }

    def test_the_same_sweep_again_has_nothing_to_do(self, repository: Repository) -> None:
        output = sweep(repository, "alpha=0.25,0.5", "--name", "again")
        page = repository.folder / "runs" / "first" / "index.html"
        assert output == f"nothing changed; nothing to do; report: {page}\n"

    def test_the_best_settings_become_a_preset(self, repository: Repository) -> None:
        output = repository.run("cxr", "sweep", "best", "first", "--as", "best_alpha")
        best = result(repository, "first").best.settings["alpha"]
        assert output.startswith(f"presets/best_alpha.yaml: alpha {best}\n")
        repository.run("cxr", "params", "--preset", "best_alpha")
        changes = repository.run("git", "diff", "--unified=0", "params.yaml")
        assert re.findall(r"(?m)^\+ .*", changes) == [f"+    alpha: {best}"]
        repository.run("git", "checkout", "params.yaml")
        taken = repository.run("cxr", "sweep", "best", "first", "--as", "best_alpha", fails=True)
        assert (
            taken
            == "error: --as best_alpha: presets/best_alpha.yaml exists; choose another name, or remove it\n"
        )
        unknown = repository.run("cxr", "sweep", "best", "frist", "--as", "other", fails=True)
        assert unknown == "error: 'frist': no sweep of this name in runs/; sweeps are first\n"
        odd = repository.run("cxr", "sweep", "best", "first", "--as", "../x", fails=True)
        assert odd == "error: --as '../x': must consist of letters, digits, _ and -\n"
        (repository.folder / "presets" / "best_alpha.yaml").unlink()

    @pytest.mark.soak
    def test_a_sweep_of_more_values_trains_only_those(self, repository: Repository) -> None:
        output = sweep(repository, "alpha=0.25,0.5,1", "--seeds", "2", "--name", "more")
        assert trained(output) == {
            "train@report1_bce_iou-alpha-0_25-seed1",
            "train@report1_bce_iou-seed1",
            "train@report1_bce_iou-alpha-1-seed0",
            "train@report1_bce_iou-alpha-1-seed1",
        }
        assert [len(trial.seed_scores) for trial in result(repository, "more").trials] == [2, 2, 2]
        # A grid of two keys has the trials of one of them, where the other has the experiment's own value.
        output = sweep(repository, "batch_size=8,16", "alpha=0.25,1", "--seeds", "2", "--name", "both")
        assert trained(output) == {
            f"train@report1_bce_iou-alpha-{alpha}-batch_size-8-seed{seed}"
            for alpha in ("0_25", "1")
            for seed in (0, 1)
        }

    @pytest.mark.soak
    def test_optuna_suggests_the_same_again_and_nothing_is_trained_twice(
        self, repository: Repository
    ) -> None:
        pytest.importorskip("optuna")
        arguments = ("alpha=0..1", "--optuna", "3", "--round", "2", "--name", "suggested")
        output = sweep(repository, *arguments)
        found = result(repository, "suggested")
        assert len(trained(output)) == len(found.trials) == 3
        assert found.round == 2
        again = sweep(repository, *arguments[:-1], "repeated")
        assert trained(again) == set()
        assert "nothing changed since retrain/suggested; nothing published" in again
        more = sweep(repository, "alpha=0..1", "--optuna", "5", "--round", "2", "--name", "longer")
        assert len(trained(more)) == 2  # the first round is the same, and the second has one trial more

    @pytest.mark.soak
    def test_a_killed_sweep_continues_to_the_same_numbers(
        self, repository: Repository, make_prepared_repository: Callable[[Path], Repository], tmp_path: Path
    ) -> None:
        arguments = ["alpha=0.1,0.9", "--seeds", "2", "--set", "epochs=60", "--name", "killed"]
        second = "report1_bce_iou-alpha-0_9-seed0"
        log = tmp_path / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["cxr", "sweep", *arguments, *OURS],
                cwd=repository.folder,
                env=environment() | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        eventually("a later training saves checkpoints", lambda: f"{second} epoch 8/60" in log.read_text())
        flow = psutil.Process(process.pid)
        cut_power(lambda: [flow, *flow.children(recursive=True)])
        process.wait()
        before = trained(log.read_text())
        output = sweep(repository, *arguments)
        assert trained(output).isdisjoint(before)
        assert f"{second}: continuing after epoch" in output or f"{second} epoch 1/60" not in output
        whole = make_prepared_repository(tmp_path / "whole")
        sweep(whole, *arguments)
        assert metrics(whole, "killed") == metrics(repository, "killed")


@pytest.mark.soak
def test_two_machines_share_the_trials(cluster: Cluster, finished_repository: Repository) -> None:
    parent = cluster.host("parent")
    workers = [cluster.host(name, core) for core, name in enumerate(("gpu-1", "gpu-2"))]
    for program in [host.worker("gpu", limit=1) for host in workers]:
        program.wait_for_output("stages of pool gpu at a time")
    with_cache_of(finished_repository, parent.repository)
    arguments = ("alpha=0.2,0.8", *OURS, "--name", "shared", "--pool", "train@*=gpu")
    parent.sweep(*arguments).finish(400)
    run = next(run for run in cluster.user.runs("sweep") if run.name == "shared")
    tasks = cluster.user.tasks(run.id)
    places = {
        str(tasks[f"train@report1_bce_iou-alpha-{alpha}-seed0"].state.message).partition(":")[0]
        for alpha in ("0_2", "0_8")
    }
    assert places == {"on gpu-1", "on gpu-2"}
    scores = json.loads(parent.repository.run("git", "show", "retrain/shared:metrics.json"))
    assert len(scores) == 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["alhpa=0,1"], "alhpa: unknown key of an experiment (did you mean alpha?)"),
        (
            ["alpha=0,2,3"],
            "params.yaml with alpha=0,2,3: experiments.report1_bce_iou-alpha-2.alpha: 2 is invalid: "
            "input should be less than or equal to 1 (and 1 more such errors)",
        ),
        (
            ["alpha=0..1"],
            "alpha=0..1: a range needs --random N or --optuna N; or list values, such as 0,0.5,1",
        ),
        (["alpha=0..1", "--random", "0"], "trials: 0 is invalid: input should be greater than or equal to 1"),
        (["alpha=0..1", "--random", "2", "--optuna", "2"], "--random and --optuna: choose one of them"),
        (["alpha=0,1", "--seeds", "0"], "seeds: 0 is invalid: input should be greater than or equal to 1"),
        (["alpha=0,1", "--round", "2"], "round: only optuna suggests trials in rounds"),
        (
            ["alpha=0,1", "--name", "a/b"],
            "--name a/b: this name is not valid in branches and paths; choose ",
        ),
        (["alpha=0,1", "--name", "taken"], "--name taken: this name is taken; choose another one"),
        (["alpha=0,1", "--pool", "gpu"], "--pool gpu: expected PATTERN=POOL, such as train@*=gpu"),
        (
            ["alpha=0,1", "--pool", "train@*=a", "--pool", "train@*=b"],
            "--pool train@*=b: train@* has the pool a already",
        ),
        (["alpha=2026-02-31"], "alpha=2026-02-31: the values are not valid YAML"),
        (["alpha=0,1", "--preset", "nope"], "presets/nope.yaml: no such file in commit "),
        (
            ["alpha=0,1", "--set", "training.width=x"],
            "params.yaml with training.width=x: training.width: 'x' ",
        ),
        (["alpha=0,1", "--revision", "nowhere"], "revision: 'nowhere': no such branch, tag or commit"),
    ],
)
def test_invalid_input_is_reported_in_one_line(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, arguments: list[str], line: str
) -> None:
    (repository.folder / "runs" / "taken").mkdir(parents=True, exist_ok=True)
    refused(repository, monkeypatch, [*arguments, *OURS], line)


@pytest.mark.parametrize(
    ("experiments", "line"),
    [
        (["report1"], "experiments: 'report1' is not one of report1_bce, report1_bce_iou"),
        (["all"], "experiments: 'all' is not the name of one; name those to sweep"),
        (["report1_bce_iou", "report1_bce_iou"], "experiments: one of them is named twice"),
        (
            ["report1_bce"],
            "params.yaml with alpha=0,1: experiments.report1_bce-alpha-0: loss bce does not use ",
        ),
    ],
)
def test_an_experiment_that_does_not_fit_is_reported_in_one_line(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, experiments: list[str], line: str
) -> None:
    refused(repository, monkeypatch, ["alpha=0,1", "--experiments", *experiments], line)


def refused(repository: Repository, monkeypatch: pytest.MonkeyPatch, arguments: list[str], line: str) -> None:
    monkeypatch.chdir(repository.folder)
    before = repository.run("git", "for-each-ref")
    with pytest.raises(InputError) as error:
        make_app()(["sweep", *arguments], result_action="return_value")
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
    assert repository.run("git", "for-each-ref") == before
