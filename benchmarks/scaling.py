"""Simulate how long many experiments take on many GPUs, and what the bottleneck is, from measured costs.

    python benchmarks/scaling.py COSTS.json [--experiments 100] [--gpus 1,8,64] [--minutes 4,60]

All experiments are like the first one of dvc.yaml: a training and an evaluation in a pool of machines with up
to eight GPUs each. The other stages run on the parent, the machine of the flow, one at a time. The parent
submits stages and fetches results under one lock. A GPU takes the run that has waited longest. Its machine
pulls for one stage at a time, and keeps what it has pulled. All transfers share the link of the S3 server.
The Prefect server handles one request at a time. Nothing is random: the same input gives the same table.
Prints Markdown.

COSTS.json contains one object with the costs listed below, in seconds, measured with small files, as in the
demo preset. The cost of large files is added from their sizes and the rates below. DVC needs longer to read a
dvc.yaml with more experiments, so measure with as many in params.yaml.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from dvc.repo import Repo
from pydantic import BaseModel, ConfigDict, Field, ValidationError

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.simulation import Clock, Flag, Link, Pool, Process
from tasks.settings.errors import fault_line
from tasks.support.cli import InputError, stage_main

ROOT = Path(__file__).parent.parent

#: The page with the measurements that defaults come from.
SCALING = "docs/explanation/scaling.md"

#: The kinds of stages that run in the pool. The others run on the parent.
REMOTE = {"train", "evaluate"}

#: For each stage, the stages whose outputs it reads.
Graph = Mapping[str, set[str]]


# --- input --------------------------------------------------------------------------------------------------


def _cost(meaning: str) -> Any:
    return Field(ge=0, allow_inf_nan=False, description=meaning)


Seconds = Annotated[float, Field(strict=True)]


class Costs(BaseModel):
    """Measured seconds. Costs of "a stage" apply to each stage in the pool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parent_begin: Seconds = _cost("the parent, before the first stage: checkout, reading dvc.yaml")
    parent_push: Seconds = _cost("the parent's lock, pushing inputs of a stage that the remote already has")
    parent_commit: Seconds = _cost("the parent's lock, committing dvc.lock and pushing the commit")
    parent_take: Seconds = _cost("the parent's lock, restoring a stage's result from the remote's run cache")
    parent_end: Seconds = _cost("the parent, after the last stage: commit and publishing")
    server_stage: Seconds = _cost("CPU time of the Prefect server per stage")
    server_worker: Seconds = _cost("CPU time of the Prefect server per idle worker and second")
    queue: Seconds = _cost("from the request of a stage until a free worker takes its flow run")
    start: Seconds = _cost("from then until the process of the flow run has started")
    checkout: Seconds = _cost("the worker, fetching the commit and creating a git worktree")
    pull: Seconds = _cost("the worker, pulling inputs that it already has, and a checkpoint")
    push: Seconds = _cost("the worker, pushing outputs and the run-cache entry of a stage")
    notice: Seconds = _cost("from the end of the flow run until the parent notices it")
    checkpoint: Seconds = _cost("an upload of a checkpoint, during the training")
    checkpoint_every: Seconds = Field(gt=0, description="the interval between two such uploads")
    stage_plan: Seconds = _cost("the stage plan, including DVC's time, as for all stages")
    stage_download: Seconds = _cost("the stage download")
    stage_preprocess: Seconds = _cost("the stage preprocess")
    stage_audit: Seconds = _cost("the stage audit")
    stage_baselines: Seconds = _cost("the stage baselines")
    stage_evaluate: Seconds = _cost("an evaluation (for a training, see --minutes)")
    stage_compare: Seconds = _cost("the stage compare")
    stage_report: Seconds = _cost("the stage report")

    @classmethod
    def read(cls, path: Path) -> "Costs":
        """Read a JSON file.

        Raises:
            InputError: a cost is missing, misspelled or not a number of seconds. One line per error.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            faults = [f"{path}: {fault_line(fault, cls)}" for fault in error.errors()]
            raise InputError("\n".join(faults)) from None

    def none_but_stages(self) -> "Costs":
        """Return the costs of a pool without overhead."""
        kept = ("stage_", "checkpoint_every")
        return self.model_copy(update={key: 0.0 for key in Costs.model_fields if not key.startswith(kept)})


class Scenario(NamedTuple):
    """The workload, and the machines that it runs on."""

    costs: Costs
    graph: Graph
    """The stages of one experiment, named as in dvc.yaml."""
    training: float
    """Seconds."""
    sizes: Mapping[str, float]
    """Size in MB of the outputs of each kind of stage, and of a `checkpoint`. Missing ones are empty."""
    pull_rate: float
    """Maximum MB/s of one client's pulls."""
    push_rate: float
    link: float
    """MB/s of all clients together."""
    gpus_per_machine: int = 1
    is_known: bool = False
    """Whether the S3 server has the dataset already, from an earlier run."""

    def seconds(self, stage: str) -> float:
        """Return the seconds of a stage itself."""
        kind = kind_of(stage)
        return self.training if kind == "train" else float(getattr(self.costs, f"stage_{kind}"))


def read_graph() -> Graph:
    """Return the stages of the first independent experiment in dvc.yaml, and those of no experiment.

    Without those that only some experiments have: predicted lungs and bundles.
    """
    with Repo(str(ROOT)) as repo:
        graph = repo.index.graph
        stages = {stage.name: {up.name for up in graph.successors(stage)} for stage in repo.index.stages}
    trainings = [stage for stage in stages if kind_of(stage) == "train"]
    plain = next(stage for stage in trainings if "lungs" not in map(kind_of, stages[stage]))
    taken = {stage for stage in stages if not is_of_training(stage) or key_of(stage) == key_of(plain)}
    taken -= {stage for stage in stages if kind_of(stage) in ("lungs", "convert", "export")}
    return {stage: stages[stage] & taken for stage in taken}


def multiplied(graph: Graph, experiments: int) -> Graph:
    """Return the graph with this many experiments instead of one."""

    def copies(stages: Iterable[str], numbers: Iterable[int]) -> set[str]:
        return {f"{kind_of(s)}@{n}" if is_of_training(s) else s for s in stages for n in numbers}

    result: dict[str, set[str]] = {}
    for stage, upstream in graph.items():
        if is_of_training(stage):
            result |= {f"{kind_of(stage)}@{n}": copies(upstream, [n]) for n in range(experiments)}
        else:
            result[stage] = copies(upstream, range(experiments))
    return result


def is_of_training(stage: str) -> bool:
    """Return whether the stage exists once per training."""
    return kind_of(stage) in REMOTE


def kind_of(stage: str) -> str:
    return stage.partition("@")[0]


def key_of(stage: str) -> str:
    """Return the name of a stage's experiment, or an empty string if it has none."""
    return stage.partition("@")[2]


# --- the pipeline -------------------------------------------------------------------------------------------


class Usage(NamedTuple):
    """The usage of a whole run, in seconds except for `moved`."""

    wall: float
    used: float
    """Stages on GPUs, without overhead, summed over GPUs."""
    held: float
    """Stages on GPUs with all of their overhead on the worker, summed over GPUs."""
    parent: float
    """Time under the parent's lock."""
    moved: float
    """MB from and to the S3 server."""
    server: float
    """Busy time of the Prefect server."""


class Machine:
    """What the GPUs of a machine share."""

    def __init__(self, clock: Clock) -> None:
        #: The stages whose large outputs it has.
        self.data = set[str]()
        #: The turn to pull.
        self.pulling = Pool[None](clock, [None])


class Run:
    """A simulated run of the pipeline."""

    def __init__(self, scenario: Scenario, gpus: int, experiments: int) -> None:
        """Create a run.

        Raises:
            InputError: the Prefect server is too slow for this many workers, even if they are idle.
        """
        self._of, self._costs, self._gpus = scenario, scenario.costs, gpus
        self._graph = multiplied(scenario.graph, experiments)
        self._idle_load = gpus * self._costs.server_worker
        if self._idle_load >= 1:
            raise InputError(
                f"server_worker: {gpus} idle workers alone exceed the capacity of the Prefect server"
            )
        self._clock = clock = Clock()
        # Each place keeps a set of the stages whose large outputs it has.
        self._remote = {s for s in self._graph if scenario.is_known and not is_of_training(s)}
        self._parent = Pool[set[str]](clock, [set()])
        machines = [Machine(clock) for _ in range(-(-gpus // scenario.gpus_per_machine))]
        self._workers = Pool[Machine](clock, (machines * scenario.gpus_per_machine)[:gpus])
        self._cores = Pool[None](clock, [None])
        self._server = Pool[None](clock, [None])
        self._link = Link(clock, scenario.link)
        self._done = {stage: Flag(clock) for stage in self._graph}
        self._used = self._wall = 0.0

    def usage(self) -> Usage:
        # The flow starts ready stages in the order of their names.
        for stage in sorted(self._graph):
            self._clock.start(self._stage(stage))
        self._clock.start(self._end())
        self._clock.run()
        # The server's time for stages, which is stretched by polls of workers, plus the polls.
        server = self._server.held * (1 - self._idle_load) + self._wall * self._idle_load
        return Usage(self._wall, self._used, self._workers.held, self._parent.held, self._link.moved, server)

    def _stage(self, stage: str) -> Process:
        if not self._graph[stage]:
            yield self._clock.sleep(self._costs.parent_begin)
        for upstream in sorted(self._graph[stage]):
            yield self._done[upstream].wait()
        yield from self._elsewhere(stage) if kind_of(stage) in REMOTE else self._here(stage)
        self._done[stage].raise_()

    def _end(self) -> Process:
        for flag in self._done.values():
            yield flag.wait()
        yield self._clock.sleep(self._costs.parent_end)
        self._wall = self._clock.now

    def _here(self, stage: str) -> Process:
        core = yield self._cores.take()
        yield self._clock.sleep(self._of.seconds(stage))
        self._cores.give(core)

    def _elsewhere(self, stage: str) -> Process:
        costs = self._costs
        here = yield self._parent.take()
        yield self._clock.sleep(costs.parent_push)
        yield from self._move(self._graph[stage], self._remote, self._of.push_rate)
        yield self._clock.sleep(costs.parent_commit)
        self._parent.give(here)
        turn = yield self._server.take()
        yield self._clock.sleep(costs.server_stage / (1 - self._idle_load))
        self._server.give(turn)
        machine = yield self._workers.take()
        yield from self._on_worker(stage, machine)
        self._workers.give(machine)
        yield self._clock.sleep(costs.notice)
        here = yield self._parent.take()
        yield self._clock.sleep(costs.parent_take)
        yield from self._move([stage], here, self._of.pull_rate)
        self._parent.give(here)

    def _on_worker(self, stage: str, machine: Machine) -> Process:
        costs = self._costs
        yield self._clock.sleep(costs.queue + costs.start + costs.checkout + costs.pull)
        turn = yield machine.pulling.take()
        yield from self._move(self._graph[stage], machine.data, self._of.pull_rate)
        machine.pulling.give(turn)
        ended = Flag(self._clock)
        if kind_of(stage) == "train":
            self._clock.start(self._checkpoints(ended))
        seconds = self._of.seconds(stage)
        self._used += seconds
        yield self._clock.sleep(seconds)
        ended.raise_()
        machine.data.add(stage)
        yield self._clock.sleep(costs.push)
        yield from self._move([stage], self._remote, self._of.push_rate)

    def _move(self, stages: Iterable[str], place: set[str], rate: float) -> Process:
        """Transfer the outputs of these stages that are missing at `place`."""
        missing = sorted(stage for stage in stages if stage not in place)
        place.update(missing)
        if size := sum(self._of.sizes.get(kind_of(stage), 0.0) for stage in missing):
            yield self._link.transfer(size, rate)

    def _checkpoints(self, ended: Flag) -> Process:
        yield self._clock.sleep(self._costs.checkpoint_every)
        while not ended.up:
            yield self._clock.sleep(self._costs.checkpoint)
            if size := self._of.sizes.get("checkpoint", 0.0):
                yield self._link.transfer(size, self._of.push_rate)
            yield self._clock.sleep(self._costs.checkpoint_every)


def simulate(scenario: Scenario, gpus: int, experiments: int) -> Usage:
    """Simulate a run.

    Raises:
        InputError: the Prefect server is too slow for this many workers, even if they are idle.
    """
    return Run(scenario, gpus, experiments).usage()


# --- bottlenecks --------------------------------------------------------------------------------------------


def ideal(scenario: Scenario, gpus: int, experiments: int) -> float:
    """Return the seconds of the same stages on as many GPUs, without any overhead."""
    free = scenario._replace(costs=scenario.costs.none_but_stages(), sizes={})
    return simulate(free, gpus, experiments).wall


def bounds(scenario: Scenario, gpus: int, usage: Usage, alone: Usage) -> dict[str, float]:
    """Return a lower bound in seconds from each resource. `alone` is the usage of one experiment."""
    idle_load = gpus * scenario.costs.server_worker
    return {
        "GPUs": usage.held / gpus,
        "one experiment": alone.wall,
        "parent": usage.parent,
        "S3 link": usage.moved / scenario.link,
        "Prefect server": (usage.server - idle_load * usage.wall) / (1 - idle_load),
    }


class Marginal(NamedTuple):
    """The cost of one additional experiment once data is in place, in seconds."""

    held: float
    """Time on a GPU."""
    parent: float
    link: float
    """Time on the whole link."""
    server: float

    def most_gpus(self, server_worker: float) -> dict[str, float]:
        """Return how many GPUs each resource can keep busy, for many experiments."""
        per_second = {
            "parent": self.parent / self.held,
            "S3 link": self.link / self.held,
            "Prefect server": self.server / self.held + server_worker,
        }
        return {what: 1 / share if share else float("inf") for what, share in per_second.items()}


def marginal(scenario: Scenario) -> Marginal:
    # Simultaneous transfers must not slow each other down here.
    rates = (min(rate, scenario.link) for rate in (scenario.pull_rate, scenario.push_rate))
    alone = scenario._replace(link=float("inf"), pull_rate=next(rates), push_rate=next(rates))
    one, two = (simulate(alone, 1, experiments) for experiments in (1, 2))
    polls = scenario.costs.server_worker * (two.wall - one.wall)
    return Marginal(
        two.held - one.held,
        two.parent - one.parent,
        (two.moved - one.moved) / scenario.link,
        two.server - one.server - polls,
    )


def shortest_training(scenario: Scenario, gpus: int) -> float:
    """Return the training time in seconds below which the parent cannot keep this many GPUs busy."""
    more = marginal(scenario)
    return max(0.0, gpus * more.parent - (more.held - scenario.training))


# --- tables -------------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table, with all columns but the first right-aligned."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


RUNS = [
    "one training",
    "GPUs",
    "wall time",
    "of ideal",
    "GPUs held",
    "GPUs used",
    "parent",
    "S3 link",
    "Prefect server",
    "bounded by",
]


def run_row(scenario: Scenario, gpus: int, experiments: int) -> list[str]:
    usage = simulate(scenario, gpus, experiments)
    limits = bounds(scenario, gpus, usage, simulate(scenario, 1, 1))
    shares = [
        ideal(scenario, gpus, experiments) / usage.wall,
        usage.held / gpus / usage.wall,
        usage.used / gpus / usage.wall,
        usage.parent / usage.wall,
        usage.moved / scenario.link / usage.wall,
        usage.server / usage.wall,
    ]
    percents = [f"{share:.1%}" for share in shares]
    first = max(limits, key=lambda what: limits[what])
    return [duration(scenario.training), str(gpus), duration(usage.wall), *percents, first]


def most_row(scenario: Scenario) -> list[str]:
    most = marginal(scenario).most_gpus(scenario.costs.server_worker)
    first = min(most, key=lambda what: most[what])
    return [duration(scenario.training), *(f"{count:,.0f}" for count in most.values()), first]


def main() -> None:
    args = parse_arguments()
    scenario = Scenario(
        Costs.read(args.costs),
        read_graph(),
        training=0.0,
        sizes={
            "download": args.raw,
            "preprocess": args.packed,
            "train": args.network,
            "checkpoint": args.checkpoint,
        },
        pull_rate=args.pull,
        push_rate=args.push,
        link=args.link,
        gpus_per_machine=args.per_machine,
        is_known=args.known_dataset,
    )
    lengths = [scenario._replace(training=60 * minutes) for minutes in args.minutes]
    print(f"{args.experiments} experiments:\n")
    print(table(RUNS, [run_row(one, gpus, args.experiments) for one in lengths for gpus in args.gpus]))
    print("\nWith many experiments, the number of GPUs that each resource can keep busy:\n")
    head = ["one training", "parent", "S3 link", "Prefect server", "first"]
    print(table(head, [most_row(one) for one in lengths]))
    shortest = duration(shortest_training(scenario, max(args.gpus)))
    print(f"\nWith {max(args.gpus)} GPUs the parent is the bottleneck for trainings shorter than {shortest}.")


def parse_arguments() -> argparse.Namespace:
    names = [f"  {name:17} {field.description}" for name, field in Costs.model_fields.items()]
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="\n".join(["costs, in seconds:", *names]),
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "--known-dataset", action="store_true", help="the S3 server has it from an earlier run"
    )
    number = partial(parser.add_argument, type=_positive)
    parser.add_argument("costs", type=Path, help="JSON file of the costs below, as measured")
    parser.add_argument("--experiments", type=_count, default=100, help="default: 100")
    parser.add_argument("--gpus", type=_counts, default=[1, 8, 64], help="default: 1,8,64")
    parser.add_argument("--per-machine", type=_count, default=8, help="GPUs of one machine; default: 8")
    parser.add_argument(
        "--minutes",
        type=_numbers,
        default=[4.0, 60.0],
        help="minutes per training; default: 4,60: as in presets/laptop.yaml, and an hour",
    )
    number("--raw", default=1500.0, help=f"MB of data/raw; default: 1500, at 33,920 images ({SCALING})")
    number("--packed", default=6500.0, help="MB of data/packed; default: 6500, 192 KB per image at 256x256")
    number(
        "--network",
        default=127.0,
        help="MB of a network; default: 127, report 1's in params.yaml, 4 bytes per weight",
    )
    number(
        "--checkpoint", default=381.0, help="MB; default: 381, that network's weights and Adam's two means"
    )
    number(
        "--pull",
        default=230.0,
        help=f"MB/s of one client; default: 230, data/raw and data/packed in 13.9 s ({SCALING})",
    )
    number("--push", default=100.0, help="MB/s of one client; default: 100, the same in 31.4 s")
    number(
        "--link",
        default=1250.0,
        help="MB/s of all clients; default: 1250, a server on 10 Gbit/s Ethernet",
    )
    return parser.parse_args()


def _positive(word: str) -> float:
    number = float(word)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{word}: must be more than 0")
    return number


def _count(word: str) -> int:
    if (number := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"{word}: must be 1 or more")
    return number


def _counts(words: str) -> list[int]:
    return [_count(word) for word in words.split(",")]


def _numbers(words: str) -> list[float]:
    return [_positive(word) for word in words.split(",")]


if __name__ == "__main__":
    stage_main(main)
