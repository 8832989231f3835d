"""DVC's queue of experiments, with its own workers."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows.repository.git import environment
from tasks.support.slots import VARIABLE
from tests.helpers import Repository, eventually

ALPHAS = (0.1, 0.9)


def holders(folder: Path, *units: str) -> dict[str, int]:
    """The processes that hold the locks of these units, as the kernel lists them."""
    files = {(folder / unit).stat().st_ino: unit for unit in units if (folder / unit).exists()}
    fields = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    flocks = [line for line in fields if line[1] == "FLOCK"]
    found = {int(line[5].rpartition(":")[2]): int(line[4]) for line in flocks}
    return {unit: found[inode] for inode, unit in files.items() if inode in found}


@pytest.mark.soak
def test_queued_experiments_train_side_by_side_in_slots_of_their_own(
    make_repository: Callable[[Path], Repository], tmp_path: Path
) -> None:
    variables = environment() | {"CUDA_VISIBLE_DEVICES": "0,1", "TMPDIR": str(tmp_path)}
    del variables[VARIABLE]
    repository = make_repository(tmp_path / "repository")
    repository.set("epochs=150")
    repository.run("cxr", "params", "--keep", "report1_bce_iou")
    repository.commit("One experiment")
    queue = Repository(repository.folder, variables)
    queue.run("dvc", "exp", "run", "--queue", "--set-param", f"alpha={','.join(map(str, ALPHAS))}")
    # Its workers keep its output open until they end.
    start = ["dvc", "queue", "start", "--jobs", "2"]
    subprocess.run(start, cwd=queue.folder, env=variables, stdout=subprocess.DEVNULL, check=True)
    slots = tmp_path / f"covid-qu-ex-slots-{os.getuid()}"
    try:
        units = eventually(
            "both train", lambda: len(found := holders(slots, "gpu-0", "gpu-1")) == 2 and found, timeout=900
        )
        trainings = [psutil.Process(pid) for pid in units.values()]
        assert all("tasks.train" in training.cmdline() for training in trainings)
        assert len({training.cwd() for training in trainings}) == 2
        eventually(
            f"both end: {queue.run('dvc', 'queue', 'status')}",
            lambda: queue.run("dvc", "queue", "status").count("Success") == 2,
            timeout=1800,
        )
    finally:
        queue.run("dvc", "queue", "stop", "--kill")
    (commit,) = json.loads(queue.run("dvc", "exp", "show", "--json"))[1:]
    scores = {}
    for experiment in commit["experiments"]:
        (state,) = experiment["revs"]
        alpha = state["data"]["params"]["params.yaml"]["data"]["alpha"]
        metrics = state["data"]["metrics"]["metrics.json"]["data"]
        scores[alpha] = metrics["report1_bce_iou"]["val"]["infection"]["covid"]["dice"]
    assert scores.keys() == set(ALPHAS)
    assert len(set(scores.values())) == 2, scores
