"""Measure the overhead of a Prefect flow over `dvc repro`: the demo preset, cold and with nothing to do.

    python benchmarks/flow_overhead.py [--rounds 3]

Both run alternately in a clone of this repository's last commit, with a Prefect server already running. They
are restricted to one core, because on several cores a flow runs trainings in parallel, which `dvc repro` does
not. The server uses the other cores. Prints every time and the medians. A round takes about five minutes.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent
PORT = 4299
CXR = str(Path(sys.executable).with_name("cxr"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        clone = make_clone(Path(folder) / "clone")
        environment = make_environment(Path(folder) / "prefect")
        server = subprocess.Popen(
            ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(PORT)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for_server()
            # The last core is reserved for the contestants. Child processes inherit this.
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
            times = [measure(clone, environment) for _ in range(rounds)]
            stages = len(run(clone, "dvc", "stage", "list", "--name-only").split())
        finally:
            server.terminate()
            server.wait()
    names = list(times[0])
    for name in names:
        row = [one[name] for one in times]
        print(f"{name:28} {statistics.median(row):6.1f} s    {'  '.join(f'{value:.1f}' for value in row)}")
    cold = statistics.median(one["flow, cold"] - one["dvc repro, cold"] for one in times)
    print(f"overhead cold: {cold:.1f} s for {stages} stages; goal: under 3 s + 1 s/stage = {3 + stages} s")
    print(
        f"nothing changed: {statistics.median(o['flow, nothing changed'] for o in times):.1f} s; goal: 15 s"
    )


def make_clone(folder: Path) -> Path:
    run(ROOT, "git", "clone", "--quiet", str(ROOT), str(folder))
    for key, value in {"name": "Benchmark", "email": "benchmark@example.org"}.items():
        run(folder, "git", "config", f"user.{key}", value)
    run(folder, CXR, "params", "--preset", "demo")
    run(folder, "git", "commit", "--quiet", "--all", "--message", "demo")
    return folder


def make_environment(home: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    api = f"http://127.0.0.1:{PORT}/api"
    return os.environ | {"PATH": path, "PREFECT_HOME": str(home), "PREFECT_API_URL": api}


def wait_for_server() -> None:
    for _ in range(600):
        try:
            if httpx.get(f"http://127.0.0.1:{PORT}/api/health").is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    sys.exit("the Prefect server did not start")


def measure(clone: Path, environment: dict[str, str]) -> dict[str, float]:
    """Return the seconds of each contestant, starting from a clone without results."""
    seconds = {}
    contestants = {"dvc repro": ["dvc", "repro"], "flow": [CXR, "retrain"]}
    for what, command in contestants.items():
        run(clone, "git", "clean", "--quiet", "-ffdx")
        shutil.rmtree(clone / ".dvc" / "cache", ignore_errors=True)
        for when in ("cold", "nothing changed"):
            start = time.monotonic()
            run(clone, *command, environment=environment)
            seconds[f"{what}, {when}"] = time.monotonic() - start
            print(f"{what}, {when}: {seconds[f'{what}, {when}']:.1f} s", file=sys.stderr, flush=True)
    return seconds


def run(folder: Path, *command: str, environment: dict[str, str] | None = None) -> str:
    """Run a command and return its output."""
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
