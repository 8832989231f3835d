"""The flow as its users run it: a real repository, a real temporary Prefect server, real DVC."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows.checkout import environment
from flows.retrain import compute_slots
from flows.stages import Outcome, read_pipeline, run_stage
from tasks.params import Params, parse_params
from tests.helpers import Repository


@pytest.fixture(scope="module")
def repository(
    make_repository: Callable[[Path], Repository], tmp_path_factory: pytest.TempPathFactory
) -> Repository:
    return make_repository(tmp_path_factory.mktemp("flow"))


@pytest.fixture(autouse=True)
def _own_prefect(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Prefect of the test's own, whatever the user's profile says."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path_factory.getbasetemp() / "prefect"))
    monkeypatch.setenv("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def retrain(repository: Repository, *arguments: str, fails: bool = False) -> str:
    return repository.run(sys.executable, "-m", "flows.retrain", *arguments, fails=fails)


def finished(output: str) -> dict[str, str]:
    """Each task run of the flow with the name of the state it finished in."""
    lines = [line for line in output.splitlines() if "| Task run " in line and "Finished in state" in line]
    return {line.split("'")[1]: line.split("Finished in state ")[1].partition("(")[0] for line in lines}


class TestInOrder:
    """Each of these takes up where the one before left the repository."""

    def test_runs_every_stage_and_commits_what_came_out(self, repository: Repository) -> None:
        (repository.folder / "notes.txt").write_text("the user's own")
        with (repository.folder / "README.md").open("a") as readme:
            readme.write("an uncommitted word\n")
        before = repository.run("git", "status", "--porcelain")
        output = retrain(repository, "--name", "first", "--set", "alpha=0.4")

        assert "not part of this run, since not committed: README.md" in output
        states = finished(output)
        assert states.keys() == read_pipeline(repository.folder).upstream.keys()
        assert set(states.values()) == {"Completed"}
        assert "'train@report1_bce' - report1_bce epoch 1/2: train loss" in output
        report, metrics, commit = (line.partition(":")[2].strip() for line in output.splitlines()[-3:])
        assert "report1_bce_iou" in Path(report).read_text(encoding="utf-8")
        committed = repository.run("git", "show", "retrain/first:metrics.json")
        assert json.loads(Path(metrics).read_text()) == json.loads(committed)
        assert commit.split(" on ") == [
            repository.run("git", "rev-parse", "retrain/first").strip(),
            "retrain/first",
        ]

        # The params were committed before anything ran, the results after.
        changes = repository.run("git", "log", "--name-only", "--format=> %s", "main..retrain/first").split(
            "\n"
        )
        assert [line for line in changes if line] == [
            "> Results of first",
            "dvc.lock",
            "metrics.json",
            "> Params of first",
            "params.yaml",
        ]
        assert repository.run("git", "status", "--porcelain") == before
        assert repository.run("git", "worktree", "list").count("\n") == 1
        assert repository.run("git", "branch", "--show-current").strip() == "main"

    def test_again_everything_is_cached(self, repository: Repository) -> None:
        output = retrain(repository, "--name", "again", "--set", "alpha=0.4")
        stages = read_pipeline(repository.folder).upstream
        assert finished(output) == dict.fromkeys(stages, "Cached")
        locks = [repository.run("git", "show", f"retrain/{name}:dvc.lock") for name in ("first", "again")]
        assert locks[0] == locks[1]

    def test_dvc_alone_makes_the_same_lock_from_the_same_cache(self, repository: Repository) -> None:
        repository.run("git", "checkout", "--quiet", "README.md")
        repository.set("alpha=0.4")
        output = repository.run("dvc", "repro")
        assert "Running stage" not in output
        assert repository.read("dvc.lock") == repository.run("git", "show", "retrain/first:dvc.lock")
        repository.run("git", "checkout", "--quiet", "params.yaml")

    def test_metrics_are_compared_across_branches(self, repository: Repository) -> None:
        retrain(repository, "--name", "second", "--set", "alpha=0.9", "--revision", "retrain/first")
        text = repository.run("dvc", "metrics", "diff", "retrain/first", "retrain/second", "--json")
        difference = json.loads(text)["metrics.json"]
        assert any(name.startswith("report1_bce_iou.infection.covid") for name in difference)
        assert not any(name.startswith("report1_bce.") for name in difference)

    def test_a_failing_stage_fails_the_flow_with_its_own_last_lines(self, repository: Repository) -> None:
        output = retrain(repository, "--name", "bad", "--set", "data.source=data/nothing.zip", fails=True)
        assert finished(output)["download"] == "Failed"
        assert "train@report1_bce" not in finished(output)
        last = output.splitlines()[-2:]
        assert any(
            "error: download failed: error: data.source: data/nothing.zip: nothing is there" in s
            for s in last
        )
        assert repository.run("git", "worktree", "list").count("\n") == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_flow_ends_its_trainings_and_leaves_nothing(
    repository: Repository, how: signal.Signals
) -> None:
    command = [sys.executable, "-m", "flows.retrain", "--name", "stopped", "--set", "epochs=5000"]
    with subprocess.Popen(
        command,
        cwd=repository.folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
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


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--set", "alpha=1.5"],
            "error: params.yaml with --set alpha=1.5: alpha: 1.5 won't do",
        ),
        (
            ["--set", "alhpa=1"],
            "error: params.yaml with --set alhpa=1: alhpa: unknown key (did you mean alpha?)",
        ),
        (["--preset", "presets/dmeo.yaml"], "error: presets/dmeo.yaml: no such file; presets/ holds"),
        (["--revision", "nowhere"], "error: nowhere: no such revision"),
        (["--name", "a b"], "error: name: 'a b'"),
    ],
)
def test_bad_input_is_one_line(repository: Repository, arguments: list[str], line: str) -> None:
    output = retrain(repository, *arguments, fails=True)
    assert output.startswith(line)
    assert output.count("\n") == 1
    assert not repository.run("git", "branch", "--list", "retrain/params-*")


def test_slots_on_a_cpu_follow_the_threads_of_a_training(
    tiny_params_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))

    def slots(threads: int) -> int:
        return len(compute_slots(parse_params(tiny_params_text.replace("threads: 1", f"threads: {threads}"))))

    assert [slots(threads) for threads in (1, 2, 3, 4, 8, 0)] == [4, 2, 1, 1, 1, 1]


def test_each_gpu_is_a_slot_of_its_own(tiny_params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert compute_slots(tiny_params) == [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "5"}]


def test_a_stage_tells_its_lines_and_its_outcome(
    make_repository: Callable[[Path], Repository], tmp_path: Path
) -> None:
    repository = make_repository(tmp_path / "one")
    lines: list[str] = []
    assert run_stage(repository.folder, "plan", lines.append).outcome is Outcome.RAN
    assert lines[0] == "Running stage 'plan':"
    assert run_stage(repository.folder, "plan", lines.append).outcome is Outcome.CACHED
    repository.set("data.source=nowhere.zip")
    failed = run_stage(repository.folder, "download", lines.append)
    assert failed.outcome is Outcome.FAILED
    assert failed.tail.startswith("error: data.source: nowhere.zip: nothing is there")
