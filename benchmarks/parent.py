"""Measure how long the machine that runs a flow is busy per stage on another machine, for many experiments.

    python benchmarks/parent.py REVISION [--experiments 2,100]

Run it in a clone whose DVC remote has the results of REVISION, a run's branch. It multiplies the experiments
of params.yaml and their entries in dvc.lock, in a separate checkout. Then it does five times, one at a time,
what a flow does for a stage: look up a result that does not exist, commit and push to origin, restore a
result. Prints one line of JSON per number of experiments, with medians in seconds: of time, and of processor
time, which says more on a busy machine.
"""

import argparse
import copy
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

sys.path.insert(0, str(Path(__file__).parent.parent))
from flows.remote.run_cache import Remote
from flows.repository.checkout import checked_out
from flows.repository.git import commit, find_repository, resolve, run
from flows.repository.refs import forget_commits, send_commit, sent_commits
from tasks.support.cli import stage_main

#: The id of the run under which commits are pushed to origin during the benchmark.
RUN = "benchmark"
TRIES = 5


def grow(checkout: Path, experiments: int) -> tuple[str, str]:
    """Copy one experiment until there are enough. Returns a stage without a result, and one with a result."""
    yaml = YAML()
    yaml.width = 4000

    def edit(name: str, change: Callable[[Any], None]) -> None:
        path = checkout / name
        data = yaml.load(path.read_text(encoding="utf-8"))
        change(data)
        with path.open("w", encoding="utf-8") as file:
            yaml.dump(data, file)

    params = yaml.load((checkout / "params.yaml").read_text(encoding="utf-8"))
    first = next(iter(params["stages"]["train"]))
    copies = [f"copy{number}" for number in range(experiments - 1)]

    def more_trainings(data: Any) -> None:
        entries = data["stages"]["train"]
        data["stages"]["train"] = {name: copy.deepcopy(entries[first]) for name in [first, *copies]}
        data["stages"]["lungs"] = {}

    def more_entries(data: Any) -> None:
        stages = data["stages"]
        for name in copies[1:]:
            for kind in ("train", "evaluate"):
                stages[f"{kind}@{name}"] = copy.deepcopy(stages[f"{kind}@{first}"])

    edit("params.yaml", more_trainings)
    edit("dvc.lock", more_entries)
    for folder, ending in (("artifacts/plans", "json"), ("artifacts/audit/folds", "csv")):
        shutil.copyfile(checkout / folder / f"{first}.{ending}", checkout / folder / f"{copies[0]}.{ending}")
    return f"train@{copies[0]}", f"train@{first}"


def forget(checkout: Path, stage: str) -> None:
    """Delete a stage's entry in dvc.lock, and its outputs."""
    yaml = YAML()
    yaml.width = 4000
    path = checkout / "dvc.lock"
    data = yaml.load(path.read_text(encoding="utf-8"))
    del data["stages"][stage]
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(data, file)
    shutil.rmtree(checkout / "artifacts" / "train" / stage.partition("@")[2], ignore_errors=True)


def measure(repository: Path, revision: str, experiments: int) -> dict[str, float]:
    with checked_out(repository, resolve(repository, revision), "parent", "") as checkout:
        text = (checkout / "params.yaml").read_text(encoding="utf-8")
        sizes = YAML(typ="safe").load(text)["stages"]["preprocess"]
        run(
            checkout, "dvc", "checkout", "--quiet", "plan", *(f"preprocess@{size}" for size in sizes), "audit"
        )
        new, done = grow(checkout, experiments)
        seconds = dict[str, list[float]]()

        @contextmanager
        def measured(part: str) -> Iterator[None]:
            started, busy = time.monotonic(), sum(os.times()[:4])
            yield
            seconds.setdefault(part, []).append(time.monotonic() - started)
            seconds.setdefault(f"{part} processor", []).append(sum(os.times()[:4]) - busy)

        remote = Remote(checkout, print)
        for number in range(TRIES):
            with measured("look"):
                assert not remote.restore(new)
            forget(checkout, done)
            with measured("commit"):
                send_commit(checkout, RUN, commit(checkout, f"Inputs {number}", "dvc.lock", "params.yaml"))
            with measured("take"):
                assert remote.restore(done)
        forget_commits(repository, [ref for ref, owner in sent_commits(repository).items() if owner == RUN])
    return {part: round(statistics.median(values), 2) for part, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the time of a flow per stage on another machine.")
    parser.add_argument("revision", help="a branch that a run has published")
    parser.add_argument("--experiments", default="2,100", help="numbers of experiments, separated by commas")
    args = parser.parse_args()
    for count in args.experiments.split(","):
        print(json.dumps({"experiments": int(count)} | measure(find_repository(), args.revision, int(count))))


if __name__ == "__main__":
    stage_main(main)
