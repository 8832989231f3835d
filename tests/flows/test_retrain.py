"""The flow as its users run it, with a real repository, Prefect server and DVC."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from flows.commands.cli import make_app
from flows.repository.git import environment
from flows.request import preset_of
from tasks.support.cli import InputError
from tests.flows.server import User
from tests.helpers import Repository, finished, retrain

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def repository(
    make_repository: Callable[[Path], Repository], tmp_path_factory: pytest.TempPathFactory
) -> Repository:
    return make_repository(tmp_path_factory.mktemp("flow"))


class TestInOrder:
    """The tests build on each other."""

    def test_runs_every_stage_and_commits_the_results(self, repository: Repository) -> None:
        (repository.folder / "notes.txt").write_text("the user's own")
        with (repository.folder / "README.md").open("a") as readme:
            readme.write("an uncommitted word\n")
        before = repository.run("git", "status", "--porcelain")
        output = retrain(repository, "--name", "first", "--set", "alpha=0.4")

        assert "ignoring uncommitted changes in README.md" in output
        states = finished(output)
        assert states.keys() == set(repository.run("dvc", "stage", "list", "--name-only").split())
        assert set(states.values()) == {"Completed"}
        assert "'train@report1_bce-seed0' - report1_bce-seed0 epoch 1/2: train loss" in output
        assert progress_bars()["train@report1_bce-seed0: epochs of report1_bce-seed0"] == 100
        report, metrics, commit = (line.partition(":")[2].strip() for line in output.splitlines()[-3:])
        page = Path(report).read_text(encoding="utf-8")
        assert "report1_bce_iou" in page
        of_branch = repository.run("git", "rev-parse", "retrain/first").strip()
        assert f'<span class="commit"><code>{of_branch}</code></span>' in page
        committed = repository.run("git", "show", "retrain/first:metrics.json")
        assert json.loads(Path(metrics).read_text()) == json.loads(committed)
        assert commit.split(" on ") == [
            repository.run("git", "rev-parse", "retrain/first").strip(),
            "retrain/first",
        ]

        message = repository.run("git", "log", "-1", "--format=%B", "retrain/first")
        assert message.startswith("Retrain first: alpha=0.4\n\nStarted from ")
        iou = json.loads(committed)["report1_bce"]["test"]["infection"]["covid"]["iou"]
        score = r"report1_bce, infection: Val balanced 0\.\d{4}, new; "
        assert re.search(rf"^{score}Test IoU {iou:.4f}, Dice 0\.\d{{4}}$", message, re.MULTILINE)
        marks = "--format=%(trailers:key=Retrain-Run,valueonly)"  # by which `cxr prune` identifies them
        assert repository.run("git", "log", marks, "main..retrain/first").split() == ["first", "first"]
        # The params were committed before anything ran, the results afterwards.
        changes = repository.run("git", "log", "--name-only", "--format=> %s", "main..retrain/first").split(
            "\n"
        )
        assert [line for line in changes if line] == [
            "> Retrain first: alpha=0.4",
            "dvc.lock",
            "metrics.json",
            "> Params of first",
            "params.yaml",
        ]
        assert repository.run("git", "status", "--porcelain") == before
        assert repository.run("git", "worktree", "list").count("\n") == 1
        assert repository.run("git", "branch", "--show-current").strip() == "main"

    def test_two_clean_runs_give_the_same_bytes(
        self, repository: Repository, finished_repository: Repository
    ) -> None:
        ours = results(repository.run("git", "show", "retrain/first:dvc.lock"))
        others = results(finished_repository.read("dvc.lock"))  # by `dvc repro`
        of_experiment = {"train@report1_bce_iou-seed0", "evaluate@report1_bce_iou-seed0"}
        of_alpha = {"plan", *of_experiment, "compare", "report"}
        same = {stage for stage in others if ours[stage] == others[stage]}
        assert same == others.keys() - of_alpha

    @pytest.mark.soak
    def test_a_repeated_run_changes_and_publishes_nothing(self, repository: Repository) -> None:
        output = retrain(repository, "--name", "again", "--set", "alpha=0.4", "--publish", "nowhere")
        stages = repository.run("dvc", "stage", "list", "--name-only").split()
        assert finished(output) == dict.fromkeys(stages, "Cached")
        message = "nothing changed since retrain/first; nothing published; report: "
        assert output.splitlines()[-1].startswith(message)
        assert Path(output.splitlines()[-1].removeprefix(message)).exists()
        assert not repository.run("git", "branch", "--list", "retrain/again")
        assert not (repository.folder / "runs" / "again").exists()

    def test_a_run_that_would_repeat_another_is_not_started(self, repository: Repository) -> None:
        def report(*arguments: str) -> str:
            warning, message = retrain(repository, "--name", "again", *arguments).splitlines()
            assert warning == "ignoring uncommitted changes in README.md"
            assert message.startswith("nothing changed since retrain/first; nothing to do; report: ")
            return Path(message.partition("report: ")[2]).read_text(encoding="utf-8")

        assert "report1_bce_iou" in report("--set", "alpha=0.4")
        assert "report1_bce_iou" in report("--experiments", "all", "--set", "alpha=0.4")

    @pytest.mark.soak
    def test_a_deleted_report_is_restored(self, repository: Repository) -> None:
        shutil.rmtree(repository.folder / "runs" / "first")
        output = retrain(repository, "--name", "again", "--set", "alpha=0.4")
        assert set(finished(output).values()) == {"Cached"}
        assert (repository.folder / "runs" / "first" / "index.html").is_file()
        assert not (repository.folder / "runs" / "again").exists()

    def test_dvc_repro_writes_the_same_lock_from_the_same_cache(self, repository: Repository) -> None:
        repository.run("git", "checkout", "--quiet", "README.md")
        repository.set("alpha=0.4")
        output = repository.run("dvc", "repro")
        assert "Running stage" not in output
        assert repository.read("dvc.lock") == repository.run("git", "show", "retrain/first:dvc.lock")
        repository.run("git", "checkout", "--quiet", "params.yaml")

    @pytest.mark.soak
    def test_metrics_are_compared_across_branches(self, repository: Repository) -> None:
        retrain(repository, "--name", "second", "--set", "alpha=0.9", "--revision", "retrain/first")
        text = repository.run("dvc", "metrics", "diff", "retrain/first", "retrain/second", "--json")
        difference = json.loads(text)["metrics.json"]
        assert any(name.startswith("report1_bce_iou.test.infection.covid") for name in difference)
        assert not any(name.startswith("report1_bce.") for name in difference)
        message = repository.run("git", "log", "-1", "--format=%B", "retrain/second")
        line = r"^(\w+), infection: Val balanced 0\.\d{4}, ([a-z ]*[a-z])"
        words = dict(re.findall(line, message, re.MULTILINE))
        assert words.pop("report1_bce") == "same"
        # Networks trained for two epochs may well mark the same pixels.
        assert words.pop("report1_bce_iou") in ("better", "worse", "no significant difference", "same")

    def test_a_failed_stage_fails_the_flow_with_its_last_lines(self, repository: Repository) -> None:
        output = retrain(repository, "--name", "bad", "--set", "data.source=data/nothing.zip", fails=True)
        assert finished(output)["download"] == "Failed"
        assert "train@report1_bce-seed0" not in finished(output)
        last = output.splitlines()[-2:]
        assert any(
            "error: download failed: error: data.source: data/nothing.zip: does not exist" in s for s in last
        )
        assert repository.run("git", "worktree", "list").count("\n") == 1


def progress_bars() -> dict[str, float]:
    """Return the percentages of the task runs' progress artifacts, by their description."""
    with closing(User(os.environ["PREFECT_API_URL"])) as user:
        body = {"artifacts": {"type": {"any_": ["progress"]}}}
        found = user.client._client.post("/artifacts/filter", json=body).json()
    return {bar["description"].rpartition(":")[0]: float(bar["data"]) for bar in found if bar["task_run_id"]}


def results(lock: str) -> dict[str, dict[str, str]]:
    """Return the hashes of the outputs of each stage in a dvc.lock."""
    stages = YAML(typ="safe").load(lock)["stages"]
    return {name: {out["path"]: out["md5"] for out in stage["outs"]} for name, stage in stages.items()}


@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.soak), signal.SIGTERM])
def test_a_stopped_flow_ends_its_trainings_and_leaves_nothing_behind(
    repository: Repository, how: signal.Signals
) -> None:
    command = ["cxr", "retrain", "--name", "stopped", "--set", "epochs=5000"]
    with subprocess.Popen(
        command,
        cwd=repository.folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Tests in the background ignore SIGINT, and their child processes would inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as flow:
        assert flow.stdout is not None
        seen = []
        for line in flow.stdout:
            seen.append(line)
            if "epoch 2/5000" in line:
                break
        family = psutil.Process(flow.pid).children(recursive=True)
        assert any("tasks.train" in " ".join(member.cmdline()) for member in family), seen
        flow.send_signal(how)
        flow.stdout.read()
    assert flow.returncode != 0
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert repository.run("git", "worktree", "list").count("\n") == 1
    assert not repository.run("git", "branch", "--list", "retrain/stopped")
    assert list((repository.folder / "runs" / ".checkouts").iterdir()) == []


def test_a_preset_is_given_by_name_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "presets").mkdir()
    monkeypatch.chdir(tmp_path)
    for named in ("laptop", "presets/laptop.yaml", f"{tmp_path}/presets/laptop.yaml"):
        assert preset_of(named, tmp_path) == "laptop"
    for another in ("laptop.yaml", "mine/laptop.yaml", "presets/laptop.yml", "presets/mine/laptop.yaml"):
        with pytest.raises(InputError, match=f"^--preset {another}: a run reads presets from presets/ of"):
            preset_of(another, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--set", "alpha=1.5"],
            "error: params.yaml with alpha=1.5: alpha: 1.5 is invalid",
        ),
        (
            ["--set", "alhpa=1"],
            "error: params.yaml with alhpa=1: alhpa: unknown key (did you mean alpha?)",
        ),
        (["--preset", "dmeo"], "error: presets/dmeo.yaml: no such file in commit"),
        (
            ["--preset", "/elsewhere/laptop.yaml"],
            "error: --preset /elsewhere/laptop.yaml: a run reads presets from presets/ of its commit; ",
        ),
        (["--pool", "train@*"], "error: --pool train@*: expected PATTERN=POOL, such as train@*=gpu"),
        (["--revision", "nowhere"], "error: revision: 'nowhere': no such branch, tag or commit"),
        (["--revision=--all"], "error: revision: '--all': no such branch, tag or commit"),
    ],
)
def test_invalid_input_is_reported_in_one_line(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, arguments: list[str], line: str
) -> None:
    monkeypatch.chdir(repository.folder)
    with pytest.raises(InputError) as refused:
        make_app()(["retrain", *arguments], result_action="return_value")
    assert f"error: {refused.value}".startswith(line)
    assert "\n" not in str(refused.value)
    assert not repository.run("git", "branch", "--list", "retrain/params-*")


def test_an_unknown_experiment_is_reported_in_one_line(repository: Repository) -> None:
    output = retrain(repository, "--experiments", "combined", fails=True)
    assert output == "error: experiments: 'combined' is not one of report1_bce, report1_bce_iou\n"
