"""What the stage `evaluate` costs beside the network's forward passes, here and in another checkout.

    python benchmarks/evaluation.py FOLDER NAME [--against CHECKOUT] [--rounds 3]

In FOLDER the pipeline ran as far as `train` (benchmarks/report1.sh does that without DVC): it holds
artifacts/plans, artifacts/train/NAME and data. Each round evaluates NAME in each checkout, in a process
of its own, into a temporary folder. Prints the median seconds of importing, of forward passes and of all
else, by the clock and of CPU time; with `--against`, the ratio of both, and whether they wrote the same
bytes.

Work that other threads do during a forward pass is not in "all else", but on a CPU it slows the pass down.
"Added to forward passes alone" counts that: all but importing and what the other checkout's passes take.

CPU time counts all cores, and says more on a machine that does other work too. Masks of a network that was
hardly trained have more parts and longer outlines than others, and so take longer to score.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

#: Runs the stage's command in the checkout that PYTHONPATH names, and prints seconds last.
MEASURED = """
import runpy, time

def now():
    return time.perf_counter(), time.process_time()

start = now()
try:
    from tasks.support import cli
except ModuleNotFoundError:  # an older checkout, without rooms
    from tasks import cli

forward = [0.0, 0.0]

def timed(load_network):
    def loaded(*arguments):
        import torch

        network = load_network(*arguments)
        call = network.forward

        def timed_forward(x):
            begin = now()
            y = call(x)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            for clock, end in enumerate(now()):
                forward[clock] += end - begin[clock]
            return y

        network.forward = timed_forward
        return network

    return loaded

def stage_main(main):
    imported = now()
    main.__globals__["load_network"] = timed(main.__globals__["load_network"])
    main()
    end = now()
    seconds = [(i - s, f, e - i - f) for s, i, f, e in zip(start, imported, forward, end)]
    import json

    print(json.dumps(seconds))

cli.stage_main = stage_main
runpy.run_module("tasks.evaluate", run_name="__main__")
"""
PARTS = ("importing", "forward passes", "all else", "total")


def measure(checkout: Path, folder: Path, name: str, images: str, out: Path) -> list[list[float]]:
    """Seconds of each of `PARTS`, by the clock and of CPU time."""
    plans, dropped = "artifacts/plans", "artifacts/audit/dropped.csv"
    experiment = name.rpartition("-seed")[0]
    command = [f"{plans}/{name}.json", f"{plans}/{experiment}.prediction.json"]
    command += [f"artifacts/train/{name}/network"]
    command += [images, "data/raw", str(out)]
    if (folder / dropped).exists():
        command += ["--dropped", dropped]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [[*seconds, sum(seconds)] for seconds in json.loads(done.stdout.splitlines()[-1])]


def added(rounds: dict[str, list[list[list[float]]]], clock: int) -> str:
    """What each checkout's total exceeds importing and the other checkout's forward passes by."""
    importing, forward, total = (PARTS.index(part) for part in ("importing", "forward passes", "total"))
    alone = median(one[clock][forward] for one in rounds["there"])
    here, there = (
        median(one[clock][total] - one[clock][importing] for one in of) - alone for of in rounds.values()
    )
    return f"here {here:.2f} s, there {there:.2f} s, ratio {here / there:.2f}"


def made(out: Path) -> dict[Path, bytes]:
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*.*")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", help="a training that is done there, such as report2-seed0")
    parser.add_argument("--against", type=Path, help="another checkout, for example a git worktree")
    parser.add_argument("--images", default="data/packed/256", help="what the training read, in FOLDER")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    checkouts = {"here": Path(__file__).resolve().parent.parent}
    if args.against:
        checkouts["there"] = args.against.resolve()
    rounds: dict[str, list[list[list[float]]]] = {place: [] for place in checkouts}
    with tempfile.TemporaryDirectory() as temporary:
        outs = {place: Path(temporary, place) for place in checkouts}
        for number in range(args.rounds):
            for place in sorted(checkouts, reverse=number % 2 == 1):
                seconds = measure(checkouts[place], args.folder, args.name, args.images, outs[place])
                rounds[place].append(seconds)
        for clock, kind in enumerate(("by the clock", "of CPU time")):
            for index, part in enumerate(PARTS):
                found = {place: median(one[clock][index] for one in of) for place, of in rounds.items()}
                line = ", ".join(f"{place} {value:.2f} s" for place, value in found.items())
                ratio = f", ratio {found['here'] / found['there']:.2f}" if args.against else ""
                print(f"{kind}, {part}: {line}{ratio}")
            if args.against:
                print(f"{kind}, added to forward passes alone: {added(rounds, clock)}")
        if args.against:
            same = made(outs["here"]) == made(outs["there"])
            print("the same bytes" if same else "NOT THE SAME BYTES")


if __name__ == "__main__":
    main()
