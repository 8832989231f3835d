"""benchmarks/gpu.sh, rehearsed on a CPU: what it runs, and how it reports what it skipped."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.settings.params import Params
from tasks.support.cli import InputError
from tests.helpers import ROOT, benchmark

train, inference, gpu = (benchmark(name) for name in ("train", "inference", "gpu"))

#: Packages that a GPU machine may lack.
ABSENT = ("dvc", "fastapi", "fsspec", "jinja2", "kagglehub", "monai", "prefect", "s3fs", "sqlalchemy")

BLOCKER = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
"""


def run_gpu(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "benchmarks" / "gpu.sh", *arguments]
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""} | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def call_gpu(*arguments: str | Path) -> None:
    """Run it in this process, on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "DEVICE", torch.device("cpu"))
        patch.setattr(sys, "argv", ["gpu.py", *map(str, arguments)])
        gpu.main()


@pytest.fixture(scope="module")
def rehearsed(tiny_packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of two calls: one on a machine without Prefect and DVC, and one without time left."""
    folder = tmp_path_factory.mktemp("gpu")
    prepared = folder / "work" / hashlib.sha256(b"phantom://45?size=64").hexdigest()[:8]
    prepared.mkdir(parents=True)
    (prepared / "packed-32").symlink_to(tiny_packed)
    (prepared / "raw").symlink_to(tiny_packed.parent / "raw")
    (folder / "sitecustomize.py").write_text(BLOCKER)
    done = run_gpu(folder, "--rehearse", "--parts", "smoke,throughput,combined", PYTHONPATH=str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    call_gpu(folder, "--rehearse", "--parts", "smoke,report2", "--minutes", "0")
    return folder


@pytest.fixture(scope="module")
def parts(rehearsed: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((rehearsed / "results.json").read_text())["parts"]
    return found


@pytest.mark.soak
def test_each_part_is_done_or_gives_a_reason(parts: dict[str, dict[str, Any]], rehearsed: Path) -> None:
    done = ("smoke", "throughput", "combined")
    left_out = ("inference", "report1_bce", "report1_bce_iou")
    assert {name: (of["status"], of.get("reason")) for name, of in parts.items()} == {
        **dict.fromkeys(done, ("done", None)),
        **dict.fromkeys(left_out, ("skipped", "not in --parts")),
        "report2": ("skipped", "no time was left"),
    }
    assert all(parts[name]["device"].endswith(", rehearsal") for name in done)
    table = (rehearsed / "results.md").read_text()
    assert all(f"\n| {name} | {of['status']} | " in table for name, of in parts.items())


@pytest.mark.soak
def test_the_smoke_test_killed_a_training_and_compared_bytes(parts: dict[str, dict[str, Any]]) -> None:
    smoke = parts["smoke"]
    assert smoke["killed"].startswith("resuming after epoch ")
    assert smoke["resumed_same_bytes"] is smoke["evaluated_same_bytes"] is True


@pytest.mark.soak
def test_rates_are_plausible(parts: dict[str, dict[str, Any]]) -> None:
    for row in parts["throughput"]["rows"]:  # one per number format in which this processor is fast
        assert row["network"] == "residual_unet, width 4, depth 2, patch 1"
        assert row["parameters"] == 7697
        assert 0 < row["mfu"] < 1
        assert 1 < min(row["images_per_second"]) < 1e5
        assert 1e8 < row["memory"] < 1e10
        assert 1e8 < row["matrix_rate"] < 1e14
        assert (row["layout"], row["compile"], row["batch"]) == ("channels_last", "none", 8)
        assert 0 <= row["wait"] < 1


@pytest.mark.soak
def test_an_experiment_reports_how_many_of_its_epochs_it_ran(parts: dict[str, dict[str, Any]]) -> None:
    combined = parts["combined"]
    assert combined["of_epochs"] == 4 and 1 <= combined["epochs"] <= 4
    assert combined["network"] == "residual_unet, width 4, depth 2, patch 2"
    assert 0 < combined["epoch_seconds"] < combined["seconds"]
    assert combined["scores"].keys() == {"infection", "lung"}
    for sets in combined["scores"].values():
        assert all(0 <= of["iou"] <= of["dice"] <= 1 for of in sets.values())


@pytest.mark.parametrize("sizes", ["WHOLE", "REHEARSED"])
def test_the_other_benchmarks_accept_its_options(sizes: str) -> None:
    chosen, places = getattr(gpu, sizes), ["--data", "x.zip", "--work", "work", "--json", "rows.jsonl"]
    assert train.make_parser().parse_args(["--table", *chosen.throughput, *places]).table
    inference.make_parser().parse_args([*chosen.inference, *places])


def test_epochs_leave_time_for_the_evaluation(tiny_params: Params, tiny_packed: Path) -> None:
    plan, rows = (
        tiny_params.plans["report1_bce-seed0"],
        [{"name": "evaluation", "images_per_second": [2.0, 1.0, 9.0]}],
    )
    assert gpu.evaluation_seconds({}, plan, tiny_packed, 100.0) == 25.0
    images = 8 + 9  # of Val and Test
    assert gpu.evaluation_seconds({"inference": {"rows": rows}}, plan, tiny_packed, 100.0) == 10 + images / 2
    assert gpu.evaluation_seconds({"inference": {"rows": rows}}, plan, tiny_packed, 20.0) == 10.0


def test_a_part_that_takes_too_long_is_stopped_and_the_rest_continues(tmp_path: Path) -> None:
    script = tmp_path / "sleeps.py"
    script.write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)\n")
    commands = gpu.Commands(tmp_path, tmp_path / "log.txt")
    with pytest.raises(gpu.CutOffError, match=r"sleeps\.py was stopped after 2 s"):
        commands.run([str(script)], 2.0)
    script.write_text("import sys\nsys.exit('error: no such thing')\n")
    with pytest.raises(gpu.UnfinishedError, match=r"sleeps\.py: error: no such thing"):
        commands.run([str(script)], 60)
    with pytest.raises(gpu.SkippedError, match="no time"):
        commands.run([str(script)], 0.5)
    script.write_text("print('fine')\n")
    assert [line.text for line in commands.run([str(script)], 60)] == ["fine"]


def test_on_cuda_each_stage_runs_in_its_own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DEVICE", torch.device("cuda"))
    commands = gpu.Commands(tmp_path, tmp_path / "log.txt")
    lines = commands.run(["tasks.common.cores", "--help"], 60)  # a module without a command line
    assert lines == [] and (tmp_path / "log.txt").exists() is False
    with pytest.raises(gpu.UnfinishedError, match=r"tasks\.other: .*No module named tasks\.other"):
        commands.run(["tasks.other"], 60)


def test_contradictory_scores_are_refused() -> None:
    gpu.check_scores({"lung": {"all": {"iou": 0.5, "dice": 0.6}}})
    with pytest.raises(gpu.UnfinishedError, match="measurement error: lung, all: "):
        gpu.check_scores({"lung": {"all": {"iou": 0.9344, "dice": 0.5767}}})


def test_a_missing_gpu_or_package_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^torch finds no GPU; --rehearse runs on the CPU$"):
        call_gpu(tmp_path)
    gone = (
        "import importlib.util as of\nfind = of.find_spec\nof.find_spec = lambda n: n != 'tqdm' and find(n)\n"
    )
    (tmp_path / "sitecustomize.py").write_text(gone)
    done = run_gpu(tmp_path, "--rehearse", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: missing Python packages: tqdm (") and done.stderr.count("\n") == 1
