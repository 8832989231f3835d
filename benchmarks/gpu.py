"""Run everything that needs a GPU, most valuable parts first, in less than 25 minutes on one card.

    benchmarks/gpu.sh FOLDER [--data covidqu.zip] [--parts smoke,throughput] [--minutes 24] [--set KEY=VALUE]
    benchmarks/gpu.sh FOLDER --rehearse        the same with tiny networks and images, which a CPU can run

The parts, in order:

    smoke        on the device, a training that was killed and resumed gives the same bytes as one that was
                 not, and two evaluations give the same bytes
    throughput   benchmarks/train.py --table: the residual U-Net of width 64 at 256x256, over number format,
                 memory layout, torch.compile and batch size
    inference    benchmarks/inference.py: the evaluation of the same network, and that of a plain loop NAME
    an experiment of params.yaml, trained for as many of its epochs as the time allows, and scored
                 on Test. By default combined, then both of report 1, then report 2. A separate training of
                 two epochs is timed first, to choose the number of epochs such that the schedule ends in
                 time. Networks are not compiled, except with --set training.compile=fused

Each part is stopped when its share of the remaining time is used up. Results are written as they arrive, to
FOLDER/results.json and, as tables, to FOLDER/results.md. The output of the parts goes to FOLDER/log.txt. A
later call with the same FOLDER adds its parts, and resumes a training that was stopped. --minutes applies to
one call: if a command may run for only ten minutes, make three calls with --minutes 9 and different --parts.

Needs neither DVC nor Prefect, but Python 3.11 or newer with the packages that gpu.sh checks for. A machine
that lacks some of them can take them from wheels on PYTHONPATH. --data has the format of data.source. Without
it, the images are synthetic, as many as in the real dataset. FOLDER/work contains the images and networks.
"""

import argparse
import json
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Timer
from typing import Any, NamedTuple, TextIO

import pandas as pd
import torch
from experiment import HALF, ROOT, packed_dataset, prepare
from gpu_tables import Entry, table
from rates import DEVICE, plan_words

from tasks.common.files import replacing
from tasks.common.raw import CLASSES, IMAGE_SETS
from tasks.comparison.consistency import check_pair
from tasks.plan import plan as write_plans
from tasks.settings.changes import parse_assignment, with_changes
from tasks.settings.experiments import Plan
from tasks.settings.params import Params, parse_params
from tasks.support.checkpoints import FOLDER_VARIABLE
from tasks.support.cli import InputError, stage_main, without_secrets

#: The default parts, with their shares of the time.
SHARES = {"smoke": 2, "throughput": 5, "inference": 2, "combined": 6, "report1_bce": 3, "report1_bce_iou": 3}
SHARES |= {"report2": 3}
#: The share of any other experiment.
SHARE = 3

#: Seconds that a command has to end after its time is up, in which a training saves its state.
GRACE = 20.0

#: Epochs of the timed training, share of the time that the chosen epochs may use, and share of a part that is
#: reserved for the evaluation if the part `inference` has not measured its rate.
TIMED_EPOCHS, FILLED, FOR_EVALUATION = 2, 0.9, 0.25

#: Settings of `smoke`: everything that has a state, in a size that trains in seconds.
SMALL = ("training.width=16", "epochs=30")
#: Additional settings of all parts in a rehearsal.
TINY = ("training.image_size=32", "training.width=4", "training.depth=2", "training.threads=1", "epochs=4")


class Sizes(NamedTuple):
    """Sizes of the measurements: options of benchmarks/train.py and inference.py, and images of `smoke`."""

    throughput: tuple[str, ...]
    inference: tuple[str, ...]
    smoke: int


WHOLE = Sizes(
    ("--size=256", "--width=64", "--images=512", "--epochs=5"),
    ("--size=256", "--width=64", "--images=256", "--rounds=3"),
    smoke=128,
)
THUMB = ("--size=32", "--width=4", "--images=8", "--set=training.depth=2", "--set=training.threads=1")
REHEARSED = Sizes(
    (*THUMB, "--batches=8", "--epochs=2", "--compile=none", "--layouts=channels_last"),
    (*THUMB, "--rounds=1", "--epochs=1", "--contestants=evaluation"),
    smoke=9,
)


class UnfinishedError(Exception):
    """Why a part did not finish. `status` is its word in the results."""

    status = "failed"


class CutOffError(UnfinishedError):
    status = "cut off"


class SkippedError(UnfinishedError):
    status = "skipped"


# --- commands -----------------------------------------------------------------------------------------------


Heard = Callable[[str], object]


def ignored(_: str) -> None:
    """Ignore a line of output."""


class Line(NamedTuple):
    """A line of a command's output, and the seconds since the command's start."""

    after: float
    text: str


#: The process group, its output, and a function that waits for its end and returns the exit status.
Started = tuple[int, TextIO, Callable[[], int | None]]

#: Modules that are imported before stages are forked on a CPU, so that a rehearsal takes a minute. On CUDA,
#: each stage is a new process.
PRELOADED = ["tasks.train", "tasks.evaluate"]


class Commands:
    """Runs the project's commands in `work`, each in a process and process group of its own."""

    def __init__(self, work: Path, log: Path) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._variables = {FOLDER_VARIABLE: str(work / "checkpoints"), "PYTHONPATH": path}
        self._work, self._log = work, log
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def run(self, command: list[str], limit: float, heard: Heard = ignored) -> list[Line]:
        """Run a stage (its module first) or a script for at most `limit` seconds, and return its output.

        `heard` is called with each line. If it returns True, the command is killed.

        Raises:
            SkippedError: no time is left.
            CutOffError: the time was used up.
            UnfinishedError: the command failed.
        """
        if limit < 1:
            raise SkippedError(f"no time was left for {command[0]}")
        began, lines, killed = time.monotonic(), [], False
        preloaded = DEVICE.type == "cpu" and not command[0].endswith(".py")
        pid, output, ended = self._forked(command) if preloaded else self._started(command)
        timers = [Timer(limit, _end, [pid, signal.SIGTERM])]
        timers += [Timer(limit + GRACE, _end, [pid, signal.SIGKILL])]
        for timer in timers:
            timer.start()
        try:
            with output:
                for text in output:
                    lines.append(Line(time.monotonic() - began, text.rstrip()))
                    self._note(text)
                    if not killed and heard(text) is True:
                        _end(pid, signal.SIGKILL)
                        killed = True
        finally:
            for timer in timers:
                timer.cancel()
            _end(pid, signal.SIGKILL)  # child processes that are still running
            status = ended()
        if status and not killed:
            if time.monotonic() - began >= limit:
                raise CutOffError(f"{command[0]} was stopped after {limit:.0f} s")
            raise UnfinishedError(f"{command[0]}: {lines[-1].text if lines else status}")
        return lines

    def _started(self, command: list[str]) -> Started:
        module = [] if command[0].endswith(".py") else ["-m"]
        process = subprocess.Popen(
            [sys.executable, *module, *command],
            cwd=self._work,
            env=os.environ | self._variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
        )
        assert process.stdout
        return process.pid, process.stdout, process.wait

    def _forked(self, command: list[str]) -> Started:
        reader, writer = self._context.Pipe(duplex=False)
        arguments = (command, self._work, self._variables, writer)
        process = self._context.Process(target=_stage, args=arguments)
        process.start()
        writer.close()
        assert process.pid

        def ended() -> int | None:
            process.join()
            return process.exitcode

        return process.pid, os.fdopen(os.dup(reader.fileno()), errors="replace"), ended

    def _note(self, text: str) -> None:
        print(text, end="", flush=True)
        with self._log.open("a", encoding="utf-8") as log:
            log.write(text)


def _stage(command: list[str], work: Path, variables: dict[str, str], out: Connection) -> None:
    os.setpgid(0, 0)
    os.environ.update(variables)
    for stream in (1, 2):
        os.dup2(out.fileno(), stream)
    out.close()
    os.chdir(work)
    sys.argv = command
    stage_main(import_module(command[0]).main)


def _end(group: int, how: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, how)


# --- the parts ----------------------------------------------------------------------------------------------


class Bench:
    """The state that the parts share: the data, and the results so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.rehearsed, self.sets = args.rehearse, args.sets
        self.sizes = REHEARSED if args.rehearse else WHOLE
        self.folder, self.work = args.folder.resolve(), args.folder.resolve() / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        images = "45?size=64" if args.rehearse else "5826"
        self.data = args.data or f"phantom://{images}"
        if Path(self.data).exists():
            self.data = str(Path(self.data).resolve())
        self.results = Results(self.folder)
        self.commands = Commands(self.work, self.folder / "log.txt")

    def params(self, name: str, *sets: str) -> Params:
        """Return params.yaml for one experiment, with the data, the command line's changes and `sets`."""
        # Compiling would take minutes, which the timed training would not show.
        source = {"data": {"source": self.data}, "training": {"seeds": 1, "compile": "none"}}
        words = [*(TINY if self.rehearsed else ()), *self.sets, *sets]
        changes = {"the data": source} | {word: parse_assignment(word) for word in words}
        return parse_params(with_changes((ROOT / "params.yaml").read_text("utf-8"), changes, [name]))

    def write(self, params: Params, label: str) -> Path:
        """Write the plans below `work`, and return their folder."""
        write_plans(params, self.work / "plans" / label)
        return self.work / "plans" / label

    def save(self) -> None:
        self.results.save()


class Results:
    """results.json and results.md: one entry per part, of this call and earlier ones."""

    def __init__(self, folder: Path) -> None:
        self._json, self._table = folder / "results.json", folder / "results.md"
        there = self._json.exists()
        self.parts: dict[str, Entry] = json.loads(self._json.read_text("utf-8"))["parts"] if there else {}

    def save(self) -> None:
        for path, text in (
            (self._json, json.dumps({"parts": self.parts}, indent=2)),
            (self._table, table(self.parts)),
        ):
            with replacing(path) as beside:
                beside.write_text(text + "\n", encoding="utf-8")


def smoke(bench: Bench, entry: Entry, limit: float) -> None:
    """Train without interruption, and killed and resumed. Evaluate twice. Fails if the bytes differ."""
    ends = time.monotonic() + limit
    params = bench.params("combined", *(() if bench.rehearsed else SMALL))
    count = bench.sizes.smoke
    take = {"Train": count, "Val": count, "Test": count}
    name = plan_of(params).name
    images = prepare(bench.data, bench.work, plan_of(params).image_size, take, CLASSES)
    plans, out = bench.write(params, "smoke"), bench.work / "smoke"
    plan, entry["network"] = str(plans / f"{name}.json"), plan_words(plan_of(params))

    def run(*command: str, heard: Heard = ignored) -> list[Line]:
        return bench.commands.run([*command], ends - time.monotonic(), heard)

    def train(name: str, heard: Heard = ignored) -> list[Line]:
        return run("tasks.train", plan, str(images.packed), str(out / name), heard=heard)

    def checkpoints() -> set[Path]:
        return set((bench.work / "checkpoints").glob(f"{name}-*.pt"))

    def saved(line: str) -> bool:
        return bool(re.search(r" epoch \d+/", line)) and checkpoints() > before

    before = checkpoints()
    entry["training_seconds"] = round(train("whole")[-1].after, 1)
    train("killed", heard=saved)
    went_on = [line.text for line in train("killed") if "resuming after" in line.text]
    entry["killed"] = went_on[0].partition(": ")[2] if went_on else None
    same = {"resumed_same_bytes": bool(went_on) and contents(out / "killed") == contents(out / "whole")}
    for name in ("once", "twice"):
        prediction = str(plans / "combined.prediction.json")
        paths = [str(out / "whole" / "network"), str(images.packed), str(images.raw), str(out / name)]
        run("tasks.evaluate", plan, prediction, *paths)
    same["evaluated_same_bytes"] = contents(out / "once") == contents(out / "twice")
    entry |= same
    if wrong := [name for name, is_same in same.items() if not is_same]:
        raise UnfinishedError(f"not the same bytes: {', '.join(wrong)}")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.*"))}


def measured(script: str, bench: Bench, entry: Entry, limit: float, options: tuple[str, ...]) -> None:
    """Run another benchmark. Its rows are added to the entry as they arrive."""
    rows = bench.work / f"{script}.jsonl"
    rows.unlink(missing_ok=True)

    def look(_: str) -> None:
        if rows.exists():
            entry["rows"] = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
            bench.save()

    places = ["--data", bench.data, "--work", str(bench.work), "--json", str(rows)]
    try:
        bench.commands.run([str(ROOT / "benchmarks" / script), *options, *places], limit, look)
    finally:
        look("")
    if not entry.get("rows"):
        raise UnfinishedError("it measured nothing")


def throughput(bench: Bench, entry: Entry, limit: float) -> None:
    measured("train.py", bench, entry, limit, ("--table", *bench.sizes.throughput))


def inference(bench: Bench, entry: Entry, limit: float) -> None:
    measured("inference.py", bench, entry, limit, bench.sizes.inference)


class Experiment:
    """Trains and evaluates an experiment of params.yaml within a time limit."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, bench: Bench, entry: Entry, limit: float) -> None:
        ends = time.monotonic() + limit
        params = bench.params(self._name)
        plan = plan_of(params)
        if params.experiments[self._name].lungs_from:
            raise SkippedError("it needs predicted lungs, which this benchmark does not create")
        raw, packed = packed_dataset(bench.data, bench.work, plan_of(params).image_size)
        entry |= {"network": plan_words(plan), "of_epochs": plan.epochs}
        if "epochs" not in entry:
            entry |= self._choose_epochs(bench, params, packed, limit)
        chosen = bench.params(self._name, f"epochs={entry['epochs']}")
        plans, out = bench.write(chosen, self._name), bench.work / "train" / self._name
        if "training_seconds" not in entry:
            bench.save()
            lines = self._train(bench, plans / f"{plan.name}.json", packed, out, ends - time.monotonic())
            entry |= {"training_seconds": round(lines[-1].after, 1), **facts_of(out)}
        places = [plans / f"{plan.name}.json", plans / f"{self._name}.prediction.json"]
        places += [out / "network", packed, raw]
        entry |= self._evaluate(bench, places, ends - time.monotonic())
        check_scores(entry["scores"])

    def _train(self, bench: Bench, plan: Path, packed: Path, out: Path, limit: float) -> list[Line]:
        return bench.commands.run(["tasks.train", str(plan), str(packed), str(out)], limit)

    def _choose_epochs(self, bench: Bench, params: Params, packed: Path, limit: float) -> Entry:
        """Choose the number of epochs that the time allows, from the seconds of the last of a few epochs."""
        began, plan = time.monotonic(), plan_of(params)
        few = bench.params(self._name, f"epochs={TIMED_EPOCHS}")
        timed = bench.write(few, "timed") / f"{plan.name}.json"
        lines = self._train(bench, timed, packed, bench.work / "timed", limit)
        ends = [line.after for line in lines if re.search(r" epoch \d+/\d+: ", line.text)]
        seconds = ends[-1] - ends[-2]
        around = max(0.0, lines[-1].after - TIMED_EPOCHS * seconds)
        left = limit - (time.monotonic() - began) - around
        left -= evaluation_seconds(bench.results.parts, plan, packed, limit)
        epochs = min(plan.epochs, int(FILLED * left / seconds))
        if epochs < 1:
            raise SkippedError(f"there was no time for an epoch of {seconds:.1f} s and the evaluation")
        return {"epochs": epochs, "epoch_seconds": round(seconds, 3)}

    def _evaluate(self, bench: Bench, places: list[Path], limit: float) -> Entry:
        out = bench.work / "evaluation" / self._name
        lines = bench.commands.run(["tasks.evaluate", *map(str, places), str(out)], limit)
        scores = scores_on_test(pd.read_csv(out / "images.csv"))
        return {"evaluation_seconds": round(lines[-1].after, 1), "scores": scores}


def scores_on_test(rows: pd.DataFrame) -> dict[str, Any]:
    """Mean IoU and Dice on Test images: target -> image set -> metric."""
    rows = rows[rows["split"] == "Test"]
    return {
        str(target): {
            name: of_set[["iou", "dice"]].mean().round(6).to_dict()
            for name, classes in IMAGE_SETS.items()
            if len(of_set := of_target[of_target["class"].isin(classes)])
        }
        for target, of_target in rows.groupby("target", sort=False)
    }


def plan_of(params: Params) -> Plan:
    """Return the only training of params with one experiment and one seed."""
    (plan,) = params.plans.values()
    return plan


def facts_of(trained: Path) -> Entry:
    """Return the results of a training."""
    description = json.loads((trained / "network" / "network.json").read_text("utf-8"))
    wanted = ("precision", "parameters", "train_images", "val_images", "best_epoch", "val_score")
    return {name: description[name] for name in wanted}


def evaluation_seconds(parts: dict[str, Entry], plan: Plan, packed: Path, limit: float) -> float:
    """Estimate the seconds of the evaluation, from the rate for one target that `inference` measured."""
    rows = {row["name"]: row for row in parts.get("inference", {}).get("rows", [])}
    if "evaluation" not in rows:
        return FOR_EVALUATION * limit
    table = pd.read_csv(packed / "images.csv")
    images = ((table["half"] == HALF) & (table["split"] != "Train")).sum()  # Val is needed for thresholds
    rate = statistics.median(rows["evaluation"]["images_per_second"])
    return min(limit / 2, 10 + float(images) * len(plan.targets) / rate)


def check_scores(scores: dict[str, Any]) -> None:
    """Check that scores are consistent.

    Raises:
        UnfinishedError: a mean IoU and a mean Dice contradict each other.
    """
    for target, sets in scores.items():
        for name, of in sets.items():
            if check_pair(of["iou"], of["dice"], 6):
                pair = f"IoU {of['iou']:.6f} and Dice {of['dice']:.6f}"
                raise UnfinishedError(f"measurement error: {target}, {name}: {pair} contradict each other")


PARTS: dict[str, Callable[[Bench, Entry, float], None]] = {
    "smoke": smoke,
    "throughput": throughput,
    "inference": inference,
}


# --- running the parts --------------------------------------------------------------------------------------


def run_parts(bench: Bench, wanted: list[str], ends: float) -> None:
    parts = bench.results.parts
    for name in SHARES:
        reason = "not started" if name in wanted else "not in --parts"
        parts.setdefault(name, {"status": "skipped", "reason": reason})
    bench.save()
    for number, name in enumerate(wanted):
        shares = [SHARES.get(later, SHARE) for later in wanted[number:]]
        run_part(bench, name, (ends - time.monotonic()) * shares[0] / sum(shares))


def run_part(bench: Bench, name: str, limit: float) -> None:
    """Run a part and store its result. An error in one part does not prevent the next."""
    parts, before, began = bench.results.parts, bench.results.parts.get(name), time.monotonic()
    entry: Entry = {"status": "running", "device": device_name(bench.rehearsed)}
    entry["data"] = without_secrets(bench.data)
    if before and before["status"] in ("cut off", "running") and "epochs" in before:
        entry = before | entry  # the training continues
        entry.pop("reason", None)
    parts[name] = entry
    print(f"--- {name}: {limit:.0f} s at most", flush=True)
    try:
        if limit < 1:
            raise SkippedError("no time was left")
        PARTS.get(name, Experiment(name))(bench, entry, limit)
        entry["status"] = "done"
    except UnfinishedError as error:
        entry |= {"status": error.status, "reason": str(error)}
    except Exception as error:
        entry |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    entry["seconds"] = round(time.monotonic() - began, 1)
    if entry["status"] == "skipped" and before and before["status"] != "skipped":
        parts[name] = before
    bench.save()
    print(f"--- {name}: {': '.join(filter(None, [entry['status'], entry.get('reason')]))}", flush=True)


def device_name(rehearsed: bool) -> str:
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    return f"{name}, torch {torch.__version__}{', rehearsal' if rehearsed else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for the results")
    parser.add_argument("--data", help="a zip, a folder or a URL, as data.source; default: synthetic")
    parser.add_argument("--parts", default=",".join(SHARES))
    parser.add_argument("--minutes", type=float, default=24.0, help="time limit of this call")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, also on a CPU")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="a value of params.yaml"
    )
    args = parser.parse_args()
    ends, wanted = time.monotonic() + 60 * args.minutes, args.parts.split(",")
    if DEVICE.type != "cuda" and not args.rehearse:
        raise InputError("torch finds no GPU; --rehearse runs on the CPU")
    bench = Bench(args)
    for name in set(wanted) - set(PARTS):
        bench.params(name)  # raises an error for an unknown name
    print(f"--- the data: {without_secrets(bench.data)}", flush=True)
    packed_dataset(bench.data, bench.work, plan_of(bench.params("combined")).image_size)
    run_parts(bench, wanted, ends)


if __name__ == "__main__":
    stage_main(main)
