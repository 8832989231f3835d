"""Measure the cost of the dataset stages at 1%, 10% and 100% of 33,920 images, and how it grows.

    python benchmarks/dataset.py [--sizes 339,3392,33920] [--s3 | --remote URL] [--json FILE]

Uses phantoms of 256x256 with both masks, as a zip next to a clone of this repository's last commit. Measures
in turn: the stages of dvc.yaml up to `preprocess` and `audit`, run by their own commands; what DVC does after
them; `dvc repro` with nothing to do; push to a local folder, to the S3 server of the tests (--s3) or to
another remote; a fresh pull without cache and state; checkout from a full cache. Prints seconds, images/s,
the peak memory of all processes together (PSS), and the time per image relative to the previous size.

"decode and resize" is the maximum that this machine's cores can reach: one process per core reads the same
PNG files from the same shards, decodes and resizes them, and does nothing else. preprocess is compared with
it.

Needs about 10 GB of disk for 33,920 images, and as much again for the remote.
"""

import argparse
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, chdir, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil
from dvc.repo import Repo
from dvc.repo.reproduce import plan_repro
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from flows.repository.git import environment
from tasks.common.raw import HALF_KINDS, RawDataset, write_member
from tasks.sources.phantom import PhantomSource
from tasks.support.cpus import available_cores
from tests.s3 import serving

ROOT = Path(__file__).parent.parent
Job, Result = TypeVar("Job"), TypeVar("Result")

#: The last stages that are measured, if dvc.yaml has them.
LAST = ("preprocess", "audit")
CHUNK = 32
MIB = 2**20


class Cost(NamedTuple):
    images: int
    what: str
    seconds: float
    peak: float
    """Peak memory in MiB, of all processes together."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", default="339,3392,33920")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--s3", action="store_true", help="push to the S3 server of the tests")
    parser.add_argument("--remote", help="push to this URL, with credentials from the environment")
    parser.add_argument("--folder", type=Path, help="work in this folder, with the phantoms that it contains")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    costs: list[Cost] = []
    with ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        remote = args.remote
        if args.s3:
            server = stack.enter_context(serving())
            os.environ.update(server.environment)
            remote = f"s3://{server.make_bucket()}"
        for images in map(int, args.sizes.split(",")):
            for cost in measure(folder, images, args.image_size, remote):
                before = next((c for c in reversed(costs) if c.what == cost.what), None)
                costs.append(cost)
                print(row(cost, before), flush=True)
            share = last(costs, "decode and resize") / last(costs, f"preprocess@{args.image_size}")
            print(f"{images:6}  preprocess reaches {share:.2f} of decode and resize; goal: 0.70", flush=True)
    if args.json:
        args.json.write_text(json.dumps([cost._asdict() for cost in costs], indent=2) + "\n")


def row(cost: Cost, before: Cost | None) -> str:
    each = cost.seconds / cost.images
    growth = f"x {each / (before.seconds / before.images):.2f} per image" if before else ""
    speed = cost.images / cost.seconds
    text = f"{cost.images:6}  {cost.what:26} {cost.seconds:8.1f} s {speed:9.1f} images/s {cost.peak:7.0f} MiB"
    return f"{text}  {growth}".rstrip()


def last(costs: list[Cost], what: str) -> float:
    """Return the seconds of the latest measurement of a step."""
    return next(cost.seconds for cost in reversed(costs) if cost.what == what)


def measure(folder: Path, images: int, image_size: int, remote: str | None) -> Iterator[Cost]:
    """Yield the cost of each step at one size."""
    timed = partial(take, images)
    source = folder / f"phantoms-{images}.zip"
    if not source.exists():
        yield timed("make phantoms", lambda: make_phantoms(images, source))
    clone, store = folder / "clone", folder / "store"
    for old in (clone, store):
        shutil.rmtree(old, ignore_errors=True)
    run(folder, "git", "clone", "--quiet", str(ROOT), str(clone))
    settings = (f"data.source={source}", f"training.image_size={image_size}")
    run(clone, "cxr", "params", *[word for s in settings for word in ("--set", s)])
    run(clone, "dvc", "remote", "add", "--default", "store", f"{remote}/{images}" if remote else str(store))

    run(clone, "dvc", "config", "--local", "core.site_cache_dir", str(clone / ".dvc" / "tmp" / "site"))
    commands = stage_commands(clone)
    for stage, command in commands.items():
        yield timed(stage, lambda command=command: run(clone, "sh", "-c", command))
    yield timed("decode and resize", lambda: decode_and_resize(clone / "data" / "raw", image_size))
    stages = list(commands)
    yield timed("dvc commit", lambda: run(clone, "dvc", "commit", "--force", *stages))
    yield timed("dvc repro, nothing to do", lambda: run(clone, "dvc", "repro", *stages))
    size = sum(file.stat().st_size for file in (clone / ".dvc" / "cache").rglob("*") if file.is_file())
    yield timed("dvc push", lambda: run(clone, "dvc", "push", *stages))
    forget(clone, "data", ".dvc/cache", ".dvc/tmp")
    yield timed("dvc pull, fresh", lambda: run(clone, "dvc", "pull", *stages))
    forget(clone, "data")
    yield timed("dvc checkout", lambda: run(clone, "dvc", "checkout", *stages))
    print(f"{images:6}  the DVC cache is {size / MIB:.0f} MiB", flush=True)


def take(images: int, what: str, work: Callable[[], object]) -> Cost:
    with watched() as peak:
        start = time.monotonic()
        work()
        seconds = time.monotonic() - start
    return Cost(images, what, seconds, max(peak) / MIB)


@contextmanager
def watched() -> Iterator[list[int]]:
    """Measure the total memory of this process's descendants twice a second."""
    ended, peak = threading.Event(), [0]

    def look() -> None:
        while not ended.wait(0.5):
            total = 0
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    total += process.memory_full_info().pss
            peak.append(total)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def make_phantoms(images: int, target: Path) -> None:
    url = f"phantom://{images}"
    # In sorted order, the three files of an image are not adjacent. Each image is drawn once.
    names = sorted(PhantomSource(url).names(), key=lambda name: (Path(name).stem, name))
    beside = target.with_suffix(".partial")
    with zipfile.ZipFile(beside, "w") as archive:
        for drawn in spread(draw, [(url, names[i : i + 3 * CHUNK]) for i in range(0, len(names), 3 * CHUNK)]):
            for name, content in drawn:
                write_member(archive, name, content)
    beside.replace(target)


def draw(job: tuple[str, list[str]]) -> list[tuple[str, bytes]]:
    url, names = job
    source = PhantomSource(url)
    return [(name, source.read(name)) for name in names]


def decode_and_resize(raw: Path, size: int) -> None:
    ids = list(RawDataset(raw).manifest["id"])
    for _ in spread(decode, [(raw, ids[i : i + CHUNK], size) for i in range(0, len(ids), CHUNK)]):
        pass


def decode(job: tuple[Path, list[str], int]) -> None:
    raw, ids, size = job
    dataset = opened(raw)
    for image_id in ids:
        for kind in HALF_KINDS[image_id.partition("/")[0]]:
            with Image.open(io.BytesIO(dataset.read_bytes(image_id, kind))) as image:
                how = Image.Resampling.BILINEAR if kind == "image" else Image.Resampling.BOX
                image.resize((size, size), how)


@cache
def opened(raw: Path) -> RawDataset:
    """Open the shards, once per process."""
    return RawDataset(raw)


def spread(work: Callable[[Job], Result], jobs: list[Job]) -> Iterator[Result]:
    """Yield results in order, from one process per core. The processes are forked, so they start at once."""
    with ProcessPoolExecutor(available_cores(), mp_context=multiprocessing.get_context("fork")) as pool:
        yield from pool.map(work, jobs)


def stage_commands(clone: Path) -> dict[str, str]:
    """Return the commands of the stages up to those in LAST, in an order in which they can run."""
    with chdir(clone), Repo(str(clone)) as repo:
        last = [stage for stage in repo.index.stages if stage.name.partition("@")[0] in LAST]
        planned = plan_repro(repo.index.graph, last)
        return {stage.name: str(stage.cmd) for stage in planned}


def forget(clone: Path, *names: str) -> None:
    for name in names:
        shutil.rmtree(clone / name)


def run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
