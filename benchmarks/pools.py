"""Measure the costs and gains of work pools: the same experiments on one and several workers, one core each.

    python benchmarks/pools.py [--preset FILE] [--set KEY=VALUE] [--workers 1,2] [--alone] [--costs FILE]

Starts the same services as the tests of pools: a Prefect server with a password on PostgreSQL, Ceph for S3,
and hosts with their own clones, DVC caches and processes, on this machine. Each worker is restricted to one
core. Trainings and evaluations run in one pool, `baselines` in another, and everything else on the parent.
For each number of workers, the DVC remote and all caches start empty.

Prints how long each took, how many stages of the pool ran at a time on average, how many each worker ran,
which requests reached the Prefect server, and whether dvc.lock and metrics.json are the same, with --alone
also compared to `dvc repro` on one machine. The number of stages at a time ignores how much parallel
trainings slow each other down. A number of workers that is given several times runs as often, and its median
counts: 2,1,2 compensates for a drifting speed of a shared machine. --costs writes the input of
benchmarks/scaling.py, from the last run.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))
from prefect.client.schemas.objects import FlowRun

from tasks.settings.changes import parse_assignment, parse_preset, with_changes
from tasks.support.cli import stage_main
from tests.conftest import make_repository_of
from tests.flows.cluster import Cluster, Host, running
from tests.helpers import ROOT
from tests.s3 import serving

POOLS = ("--pool", "train@*=gpu", "--pool", "evaluate@*=gpu", "--pool", "baselines@*=cpu")

#: Minimum seconds between two uploads of a checkpoint, as in flows.remote.checkpoints for small ones.
CHECKPOINT_EVERY = 5.0

#: Seconds for the server to become idle, and seconds for which it is then measured.
SETTLE, IDLE = 15.0, 60.0


def params_text(args: argparse.Namespace) -> str:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    preset = parse_preset(Path(args.preset).read_text(encoding="utf-8"), args.preset)
    changes = {args.preset: preset} | {each: parse_assignment(each) for each in args.assignments}
    return with_changes(text, changes, args.experiments.split(",") if args.experiments else ())


class Measured:
    """One run of the pipeline on a number of workers."""

    def __init__(
        self, cluster: Cluster, parent: Host, workers: list[Host], timeout: float, costs: bool
    ) -> None:
        """Run it. `costs`: also measure the costs of the Prefect server, which takes a few minutes more."""
        self.cluster, self.parent, self.name = cluster, parent, f"by-{len(workers)}"
        alone = self._server_share() if costs else 0.0
        hosts = [*workers, cluster.host("cpu")]
        programs = [worker.worker("gpu", limit=1) for worker in workers]
        programs.append(hosts[-1].worker("cpu", limit=1))
        for program in programs:
            program.wait_for_output("stages of pool")
        together = self._server_share() if costs else 0.0
        self.per_worker = (together - alone) / len(programs)
        busy, before, began = self._server_seconds(), cluster.requests(), time.monotonic()
        output = parent.retrain("--name", self.name, *POOLS).finish(timeout)
        self.seconds, self.output = time.monotonic() - began, output
        self.server = self._server_seconds() - busy - together * self.seconds
        self.requests = cluster.requests() - before
        self.run = next(run for run in cluster.user.runs("retrain") if run.name == self.name)
        self.tasks = cluster.user.tasks(self.run.id)
        self.stages = [run for run in cluster.user.runs("stage") if self.name in run.tags]

    def _server_share(self) -> float:
        """Return the share of a core that the server uses when no run is active."""
        time.sleep(SETTLE)
        before, began = self._server_seconds(), time.monotonic()
        time.sleep(IDLE)
        return (self._server_seconds() - before) / (time.monotonic() - began)

    def _server_seconds(self) -> float:
        """Return the CPU time of the Prefect server and its database so far."""
        total = 0.0
        for parent in (self.cluster.server.process, self.cluster.database.process):
            process = psutil.Process(parent.pid)
            for each in [process, *process.children(recursive=True)]:
                times = each.cpu_times()
                total += times.user + times.system
            total += process.cpu_times().children_user + process.cpu_times().children_system
        return total

    def messages(self) -> dict[str, str]:
        messages = {name: task.state.message or "" for name, task in self.tasks.items() if task.state}
        return {name: message for name, message in messages.items() if message.startswith("on ")}

    def spread(self) -> Counter[str]:
        return Counter(message.split(":")[0].removeprefix("on ") for message in self.messages().values())

    def parts(self, pattern: str = "") -> dict[str, list[float]]:
        """Return the seconds of each part, `here` or `there`, for the stages that match a pattern."""
        parts: dict[str, list[float]] = {}
        for name, message in self.messages().items():
            if re.match(pattern, name):
                there, here = message.split("; here: ")
                for place, text in (("there", there), ("here", here)):
                    for part, seconds in re.findall(r"(\w+) ([\d.]+) s", text):
                        parts.setdefault(f"{place} {part}", []).append(float(seconds))
        return parts

    def result(self) -> tuple[str, str]:
        show = ("git", "show")
        branch = f"retrain/{self.name}"
        run = self.parent.repository.run
        return run(*show, f"{branch}:dvc.lock"), run(*show, f"{branch}:metrics.json")

    def parent_costs(self, experiments: int) -> dict[str, float]:
        """Measure the parent's seconds per stage with this many experiments."""
        output = self.parent.repository.run(
            sys.executable,
            str(ROOT / "benchmarks" / "parent.py"),
            f"retrain/{self.name}",
            "--experiments",
            str(experiments),
        )
        print(output, end="", flush=True)
        costs: dict[str, float] = json.loads(output.splitlines()[-1])
        return costs

    def costs(self, experiments: int) -> dict[str, float]:
        """Return the input of benchmarks/scaling.py. On a busy machine the server's cost may be negative."""
        parent = self.parent_costs(experiments)
        every, evaluations = self.parts(r"train@|evaluate@"), self.parts("evaluate@")
        middle = statistics.median
        queue, start, notice = [], [], []
        for run in self.stages:
            times = self._times(run)
            queue.append(times["Submitting"] - times["Scheduled"])
            start.append(times["Running"] - times["Submitting"])
        task = self.tasks
        first = min(t.start_time for t in task.values() if t.start_time)
        last = max(t.end_time for t in task.values() if t.end_time)
        assert self.run.start_time and self.run.end_time and first and last
        own = {name.partition("@")[0]: t.total_run_time.total_seconds() for name, t in task.items()}
        for run in self.stages:
            stage = run.name.partition(" of ")[0]
            if "evaluate@" in stage and stage in self.messages():
                away = float(re.search(r"away ([\d.]+) s", self.messages()[stage])[1])  # type: ignore[index]
                assert run.end_time and run.created
                notice.append(max(0.0, away - (run.end_time - run.created).total_seconds()))
        return {
            "parent_begin": (first - self.run.start_time).total_seconds(),
            "parent_push": parent["look"] + middle(evaluations["here inputs"]),
            "parent_commit": parent["commit"],
            "parent_take": parent["take"],
            "parent_end": (self.run.end_time - last).total_seconds(),
            "server_stage": self.server / len(self.stages),
            "server_worker": self.per_worker,
            "queue": middle(every["here send"]) + min(queue),
            "start": middle(start),
            "checkout": middle(every["there clone"]),
            "pull": middle(every["there inputs"]) + middle(every["there look"]),
            "push": middle(every["there result"]),
            "notice": middle(notice),
            "checkpoint": 0.1,
            "checkpoint_every": CHECKPOINT_EVERY,
            **{f"stage_{name}": own[name] for name in ("plan", "download", "preprocess", "audit")},
            "stage_baselines": own["baselines"],
            "stage_evaluate": middle(evaluations["there stage"]),
            "stage_compare": own["compare"],
            "stage_report": own["report"],
        }

    def _times(self, run: FlowRun) -> dict[str, float]:
        """Return when a run first entered each state."""
        found: Any = self.cluster.user.client._client.get(
            "/flow_run_states/", params={"flow_run_id": str(run.id)}
        ).json()
        times: dict[str, float] = {}
        for state in found:
            times.setdefault(state["name"], datetime.fromisoformat(state["timestamp"]).timestamp())
        return times


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a pipeline on one worker and on several.")
    parser.add_argument("--preset", default="presets/demo.yaml")
    parser.add_argument("--set", action="append", default=[], dest="assignments", metavar="KEY=VALUE")
    parser.add_argument("--experiments", help="names of experiments, separated by commas; default: all")
    parser.add_argument("--workers", default="1,2", help="numbers of workers, separated by commas")
    parser.add_argument("--alone", action="store_true", help="run `dvc repro` on one machine first")
    parser.add_argument("--costs", type=Path, help="write the input of benchmarks/scaling.py")
    parser.add_argument("--costs-of", type=int, default=100, help="experiments to measure costs for")
    parser.add_argument("--timeout", type=float, default=3600, help="maximum seconds per run")
    args = parser.parse_args()
    make_repository = make_repository_of(params_text(args))
    counts = [int(count) for count in args.workers.split(",")]
    results: dict[str, tuple[str, str]] = {}
    walls: dict[int, list[float]] = {}
    with serving() as s3, tempfile.TemporaryDirectory(prefix="pools-") as folder:
        for turn, count in enumerate(counts, start=1):
            with running(Path(folder, str(turn)), make_repository, lambda: s3) as cluster:
                if args.alone and not results:
                    alone = cluster.host("alone")
                    began = time.monotonic()
                    alone.repository.run("dvc", "repro")
                    print(f"dvc repro on one machine: {time.monotonic() - began:.1f} s", flush=True)
                    results["alone"] = (
                        alone.repository.read("dvc.lock"),
                        alone.repository.read("metrics.json"),
                    )
                workers = [cluster.host(f"gpu-{core + 1}", core=core) for core in range(count)]
                costs_wanted = bool(args.costs) and turn == len(counts)
                done = Measured(cluster, cluster.host("parent"), workers, args.timeout, costs_wanted)
                results[f"run {turn} by {count}"] = done.result()
                walls.setdefault(count, []).append(done.seconds)
                spread = ", ".join(f"{name} {number}" for name, number in sorted(done.spread().items()))
                at_a_time = sum(done.parts(r"train@|evaluate@")["there stage"]) / done.seconds
                print(
                    f"{count} workers: {done.seconds:.1f} s; {at_a_time:.2f} stages at a time; {spread}",
                    flush=True,
                )
                for part, seconds in done.parts().items():
                    span = f"{min(seconds):.1f} to {max(seconds):.1f}"
                    print(f"  {part}: {statistics.median(seconds):.1f} s ({span})", flush=True)
                print(f"  {len(done.stages)} stages; requests to the Prefect server, for each of them:")
                for request, number in done.requests.most_common():
                    print(f"  {number / len(done.stages):6.1f} {request}", flush=True)
                if costs_wanted:
                    costs = done.costs(args.costs_of)
                    args.costs.write_text(json.dumps(costs, indent=2) + "\n", encoding="utf-8")
    fewest, *more = sorted(walls)
    for count in more:
        ratio = statistics.median(walls[fewest]) / statistics.median(walls[count])
        print(f"{count} workers against {fewest}: {ratio:.2f} times as fast")
    same = len(set(results.values())) == 1
    print(f"dvc.lock and metrics.json of {', '.join(results)}: {'the same' if same else 'NOT THE SAME'}")


if __name__ == "__main__":
    stage_main(main)
