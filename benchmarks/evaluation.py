"""Measure the cost of the stage `evaluate` apart from the network's forward passes, also in another checkout.

    python benchmarks/evaluation.py FOLDER NAME [--against CHECKOUT] [--rounds 3]

In FOLDER the pipeline has run up to `train` (benchmarks/report1.sh does that without DVC), so it contains
artifacts/plans, artifacts/train/NAME and data. Each round evaluates NAME with each checkout, in a separate
process, into a temporary folder. Prints the median seconds of importing, of forward passes and of everything
else, as wall time and CPU time. With `--against`, also prints the ratio of both checkouts, and whether they
wrote the same bytes.

Work in other threads during a forward pass does not count as "all else", but on a CPU it slows the pass down.
"added to forward passes" includes it: it is the total without importing and without the forward passes of the
other checkout.

CPU time is the sum over all cores. It is more reliable on a machine that is busy with other work. Masks of a
barely trained network have more components and longer outlines, so they take longer to score.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

#: Runs the stage's command with the checkout on PYTHONPATH, and prints the seconds in its last line.
MEASURED = """
import runpy, time

def now():
    return time.perf_counter(), time.process_time()

start = now()
try:
    from tasks.support import cli
except ModuleNotFoundError:  # an older checkout, without subpackages
    from tasks import cli

forward = [0.0, 0.0]

def timed(load):
    def loaded(*arguments):
        found = load(*arguments)
        for network in found if isinstance(found, tuple) else (found,):
            watch(network)
        return found

    def watch(network):
        import torch

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

    return loaded

def stage_main(main):
    imported = now()
    for name in {"load_network", "load_networks"} & main.__globals__.keys():
        main.__globals__[name] = timed(main.__globals__[name])
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
    """Return the seconds of each of PARTS, as wall time and CPU time."""
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
    """Format each checkout's total without importing and without the other checkout's forward passes."""
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
    parser.add_argument("name", help="a finished training in FOLDER, such as report2-seed0")
    parser.add_argument("--against", type=Path, help="another checkout, for example a git worktree")
    parser.add_argument("--images", default="data/packed/256", help="the images of the training, in FOLDER")
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
        for clock, kind in enumerate(("wall time", "CPU time")):
            for index, part in enumerate(PARTS):
                found = {place: median(one[clock][index] for one in of) for place, of in rounds.items()}
                line = ", ".join(f"{place} {value:.2f} s" for place, value in found.items())
                ratio = f", ratio {found['here'] / found['there']:.2f}" if args.against else ""
                print(f"{kind}, {part}: {line}{ratio}")
            if args.against:
                print(f"{kind}, added to forward passes: {added(rounds, clock)}")
        if args.against:
            same = made(outs["here"]) == made(outs["there"])
            print("the same bytes" if same else "NOT THE SAME BYTES")


if __name__ == "__main__":
    main()
