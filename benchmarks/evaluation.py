"""What the stage `evaluate` costs beside the network's forward passes, here and in another checkout.

    python benchmarks/evaluation.py FOLDER NAME [--against CHECKOUT] [--rounds 3]

In FOLDER the pipeline ran as far as `train` (benchmarks/report1.sh does that without DVC): it holds
artifacts/plans, artifacts/train/NAME and data. Each round evaluates NAME in each checkout, in a process
of its own, into a temporary folder. Prints the median seconds of importing, of forward passes and of all
else, by the clock and of CPU time; with `--against`, the ratio of both, and whether they wrote the same
bytes.

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

#: Evaluates as the stage's command does, in the checkout that PYTHONPATH names; prints seconds last.
MEASURED = """
import json, sys, time

def now():
    return time.perf_counter(), time.process_time()

start = now()
import tasks.evaluate as stage
imported = now()
import torch

forward = [0.0, 0.0]
load_network = stage.load_network

def loaded(*arguments):
    network = load_network(*arguments)
    call = network.forward

    def timed(x):
        begin = now()
        y = call(x)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        for clock, end in enumerate(now()):
            forward[clock] += end - begin[clock]
        return y

    network.forward = timed
    return network

stage.load_network = loaded
stage.main()
rest = [end - begin - within for end, begin, within in zip(now(), imported, forward)]
print(json.dumps([[imported[clock] - start[clock], forward[clock], rest[clock]] for clock in (0, 1)]))
"""
PARTS = ("importing", "forward passes", "all else", "total")


def measure(checkout: Path, folder: Path, name: str, images: str, out: Path) -> list[list[float]]:
    """Seconds of each of `PARTS`, by the clock and of CPU time."""
    plans, dropped = "artifacts/plans", "artifacts/audit/dropped.csv"
    command = [f"{plans}/{name}.json", f"{plans}/{name}.prediction.json", f"artifacts/train/{name}"]
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


def made(out: Path) -> dict[Path, bytes]:
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*.*")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", help="an experiment that is trained there")
    parser.add_argument("--against", type=Path, help="another checkout, for example a git worktree")
    parser.add_argument("--images", default="data/packed", help="what the training read, in FOLDER")
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
            same = made(outs["here"]) == made(outs["there"])
            print("the same bytes" if same else "NOT THE SAME BYTES")


if __name__ == "__main__":
    main()
