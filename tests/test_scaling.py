"""benchmarks/scaling.py against cases computed by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scaling import (
    Costs,
    Scenario,
    bounds,
    ideal,
    marginal,
    multiplied,
    read_graph,
    shortest_training,
    simulate,
)
from benchmarks.simulation import Clock, Link, Process
from tasks.support.cli import InputError
from tests.helpers import ROOT

#: No costs, and an hour between checkpoints.
FREE = dict.fromkeys(Costs.model_fields, 0.0) | {"checkpoint_every": 3600.0}
CHAIN = {
    "download": set[str](),
    "train@one": {"download"},
    "evaluate@one": {"download", "train@one"},
    "report": {"evaluate@one"},
}
#: The work of a worker around a stage: 15 seconds.
AROUND = {"queue": 1.0, "start": 2.0, "checkout": 3.0, "pull": 4.0, "push": 5.0}


def scenario(training: float = 0.0, sizes: dict[str, float] | None = None, **costs: float) -> Scenario:
    """Return a scenario with a link of 10 MB/s, all of which one client can use."""
    return Scenario(Costs(**FREE | costs), CHAIN, training, sizes or {}, 10.0, 10.0, 10.0)


def first(one: Scenario, gpus: int, experiments: int) -> str:
    limits = bounds(one, gpus, simulate(one, gpus, experiments), simulate(one, 1, 1))
    return max(limits, key=lambda what: limits[what])


def test_one_experiment_takes_the_sum_of_its_stages() -> None:
    once = {
        "parent_begin": 1.0,
        "parent_end": 2.0,
        "stage_download": 4.0,
        "stage_evaluate": 8.0,
        "stage_report": 16.0,
    }
    each = AROUND | {"parent_push": 32.0, "parent_commit": 64.0, "parent_take": 128.0, "server_stage": 256.0}
    one = scenario(training=100.0, notice=512.0, **once, **each)
    used = simulate(one, 1, 1)
    assert used.wall == sum(once.values()) + 100 + 2 * (sum(each.values()) + 512)
    assert (used.used, used.held, used.parent, used.server) == (108, 138, 448, 512)


def test_one_worker_takes_the_sum_of_all_experiments() -> None:
    one = scenario(training=100.0, stage_download=7.0, stage_evaluate=10.0, stage_report=3.0, **AROUND)
    used = simulate(one, 1, 5)
    assert used.wall == 7 + 5 * (100 + 10 + 2 * 15) + 3
    assert used.held == 700
    assert used.used == 550
    assert first(one, 1, 5) == "GPUs"


def test_with_one_worker_per_experiment_the_longest_path_remains() -> None:
    one = scenario(training=100.0, stage_download=7.0, stage_evaluate=10.0, stage_report=3.0, **AROUND)
    assert simulate(one, 5, 5).wall == 7 + 100 + 10 + 2 * 15 + 3
    assert ideal(one, 5, 5) == 7 + 100 + 10 + 3
    assert first(one, 5, 5) == "one experiment"


def test_experiments_run_in_whole_rounds() -> None:
    assert simulate(scenario(training=100.0), 4, 6).wall == 200


def test_stages_of_the_parent_run_one_at_a_time() -> None:
    graph = {"download": set[str](), "audit": {"download"}, "baselines": {"download"}}
    one = scenario(stage_download=1.0, stage_audit=2.0, stage_baselines=4.0)._replace(graph=graph)
    assert simulate(one, 1, 1).wall == 7


def test_the_parents_lock_bounds_the_throughput() -> None:
    # Twenty stages of seven seconds, for any number of workers.
    one = scenario(training=5.0, parent_commit=7.0)
    used = simulate(one, 10, 10)
    assert used.wall == used.parent == 140
    assert first(one, 10, 10) == "parent"


def test_the_server_bounds_the_throughput_and_idle_workers_slow_it() -> None:
    one = scenario(server_stage=2.0)
    assert simulate(one, 10, 10).wall == 40
    assert first(one, 10, 10) == "Prefect server"
    slowed = scenario(server_stage=2.0, server_worker=0.05)
    used = simulate(slowed, 10, 10)
    assert used.wall == used.server == 80
    assert bounds(slowed, 10, used, used)["Prefect server"] == 80
    with pytest.raises(InputError, match="server_worker: 20 idle workers"):
        simulate(slowed, 20, 1)


def test_simultaneous_pulls_share_the_link() -> None:
    data = {"download": 100.0}
    # The parent pushed them before, which took ten seconds.
    assert simulate(scenario(training=50.0, sizes=data), 1, 1).wall == 10 + 10 + 50
    assert simulate(scenario(training=50.0, sizes=data), 2, 2).wall == 10 + 20 + 50
    assert simulate(scenario(training=50.0, sizes=data)._replace(pull_rate=5.0), 2, 2).wall == 10 + 20 + 50
    assert simulate(scenario(training=50.0, sizes=data)._replace(link=20.0), 2, 2).wall == 10 + 10 + 50


def test_a_known_dataset_is_not_pushed() -> None:
    used = simulate(scenario(training=50.0, sizes={"download": 100.0})._replace(is_known=True), 1, 1)
    assert (used.moved, used.wall) == (100, 10 + 50)


def test_each_worker_pulls_the_data_once() -> None:
    used = simulate(scenario(training=50.0, sizes={"download": 100.0}), 2, 6)
    assert used.moved == 100 + 2 * 100
    assert used.wall == 10 + 20 + 3 * 50


def test_a_machine_with_several_gpus_pulls_the_data_once_for_all_of_them() -> None:
    one = scenario(training=50.0, sizes={"download": 100.0})
    used = simulate(one._replace(gpus_per_machine=2), 2, 6)
    assert used.moved == 100 + 100
    assert used.wall == 10 + 10 + 3 * 50  # the second GPU waits for the pull of the first
    assert simulate(one._replace(gpus_per_machine=2), 3, 3).moved == 100 + 2 * 100
    assert simulate(one._replace(gpus_per_machine=8), 3, 6).moved == 100 + 100


def test_a_network_is_pushed_to_the_remote_and_pulled_by_the_parent() -> None:
    used = simulate(scenario(training=50.0, sizes={"train": 30.0}), 1, 1)
    assert used.moved == 60  # its own worker already has it for the evaluation
    assert used.wall == 50 + 3 + 3
    assert (used.held, used.parent) == (53, 3)


def test_checkpoints_are_pushed_during_the_training() -> None:
    # Starting at seconds 30, 61 and 92, for one second each.
    used = simulate(scenario(training=100.0, sizes={"checkpoint": 10.0}, checkpoint_every=30.0), 1, 1)
    assert used.moved == 30
    assert used.wall == 100


def test_transfers_share_the_link_equally() -> None:
    clock = Clock()
    link = Link(clock, 10.0)
    ended = {}

    def move(name: str, start: float, size: float, rate: float) -> Process:
        yield clock.sleep(start)
        yield link.transfer(size, rate)
        ended[name] = clock.now

    clock.start(move("alone for five seconds", 0.0, 100.0, 10.0))
    clock.start(move("then beside it", 5.0, 50.0, 10.0))
    clock.start(move("slow by itself", 20.0, 10.0, 1.0))
    clock.run()
    assert ended == {"alone for five seconds": 15.0, "then beside it": 15.0, "slow by itself": 30.0}


def test_the_parent_is_the_bottleneck_for_trainings_below_the_reported_length() -> None:
    one = scenario(parent_commit=3.0, parent_take=2.0, stage_evaluate=4.0, **AROUND)
    # Four GPUs finish an experiment every quarter of its 34 seconds plus its training. The parent needs ten.
    shortest = shortest_training(one, 4)
    assert shortest == 4 * 10 - 34
    assert first(one._replace(training=0.8 * shortest), 4, 300) == "parent"
    assert first(one._replace(training=1.2 * shortest), 4, 300) == "GPUs"
    assert shortest_training(one, 3) == 0


def test_how_many_gpus_each_resource_keeps_busy() -> None:
    one = scenario(training=90.0, sizes={"train": 50.0}, parent_take=1.0, server_stage=0.5)
    more = marginal(one)
    # A GPU is occupied for 90 s plus the push of 50 MB. The parent pulls those too.
    assert more == pytest.approx((95, 7, 10, 1))
    assert more.most_gpus(0.0) == pytest.approx({"parent": 95 / 7, "S3 link": 9.5, "Prefect server": 95})
    assert more.most_gpus(1 / 95)["Prefect server"] == pytest.approx(95 / 2)
    assert marginal(scenario(training=90.0)).most_gpus(0.0)["parent"] == float("inf")


def test_the_graph_is_that_of_dvc_yaml() -> None:
    graph = read_graph()
    assert {s.partition("@")[0] for s in graph} == {
        *("plan", "download", "preprocess", "audit", "baselines", "train", "evaluate", "compare", "report")
    }
    many = multiplied(graph, 3)
    assert many["train@2"] == {"plan", "preprocess@256", "audit"}
    assert many["evaluate@1"] == {"plan", "download", "preprocess@256", "audit", "train@1"}
    assert {"train@0", "train@1", "train@2", "evaluate@2"} <= many["compare"]
    assert many["report"] == {"compare"}
    assert len(many) == 7 + 2 * 3


def test_invalid_costs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"

    def read(**changes: Any) -> Costs:
        path.write_text(json.dumps(FREE | changes))
        return Costs.read(path)

    assert read(queue=1).queue == 1
    with pytest.raises(InputError, match=r"costs\.json: qeue: unknown key \(did you mean queue\?\)"):
        read(qeue=1)
    for name, value in {"queue": -1.0, "checkpoint_every": 0.0, "pull": "1", "wait": 1.0}.items():
        with pytest.raises(InputError, match=rf"costs\.json: {name}: "):
            read(**{name: value})
    path.write_text("{}")
    with pytest.raises(InputError, match=r"costs\.json: parent_begin: "):
        Costs.read(path)
    path.write_text("[")
    with pytest.raises(InputError, match=r"costs\.json: "):
        Costs.read(path)


def test_the_same_input_gives_the_same_tables(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(dict.fromkeys(FREE, 0.7) | {"server_worker": 0.003}))

    def printed(seed: str) -> str:
        command = [sys.executable, "benchmarks/scaling.py", str(path), "--experiments", "9", "--gpus", "2,8"]
        variables = os.environ | {"PYTHONHASHSEED": seed}
        return subprocess.run(
            command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    once = printed("1")
    assert once == printed("2")
    assert "9 experiments:" in once
    assert [line.count("|") for line in once.splitlines() if line.startswith("|")] == [11] * 6 + [6] * 4
