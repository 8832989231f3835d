"""Helpers that several tests need and that are not fixtures."""

import fcntl
import importlib
import io
import os
import re
import shutil
import socket
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from flows.repository.git import environment
from flows.repository.revision import Training
from tasks.settings.changes import read_changes, with_changes
from tasks.settings.params import Params

ROOT = Path(__file__).parent.parent
REAL_ZIP = ROOT.parent / "shared" / "data" / "covidqu-infection.zip"

#: Timeout in seconds for anything that a test waits for, on busy machines too.
TIMEOUT = 180.0

#: Every change that augmentation can make.
EVERY_CHANGE = {
    "flip": 0.5,
    "rotation": 15.0,
    "scale": 0.15,
    "translation": 0.06,
    "elastic": 0.02,
    "brightness": 0.1,
    "contrast": 0.25,
    "gamma": 0.4,
    "noise": 0.05,
}


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def zipped(folder: Path, archive: Path, prefix: str = "", compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """Zip a folder, in reverse order of its files."""
    with zipfile.ZipFile(archive, "w", compression) as target:
        for path in sorted(folder.rglob("*"), reverse=True):
            target.write(path, prefix + path.relative_to(folder).as_posix())
    return archive


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def eventually(what: str, seen: Callable[[], Any], timeout: float = TIMEOUT) -> Any:
    """Wait until `seen` returns a true value, and return it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if value := seen():
            return value
        time.sleep(0.3)
    raise AssertionError(f"not within {timeout:.0f} s: {what}")


@contextmanager
def made_once(factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """Yield a folder that all test processes of a session share, and whether this caller has to fill it."""
    folder = _of_the_session(factory) / name
    with _locked(folder):
        done = folder.with_suffix(".done")
        yield folder, not done.exists()
        done.touch()


@contextmanager
def shared(
    factory: pytest.TempPathFactory, name: str, start: Callable[[], str], stop: Callable[[str], None]
) -> Iterator[str]:
    """Share a server among the test processes of a session. The first one starts it, the last one stops it.

    Yields the text that `start` returned, such as an address. `stop` receives the same text.
    """
    place = _of_the_session(factory) / name
    users, info = place.with_suffix(".users"), place.with_suffix(".info")
    with _locked(place):
        others = int(users.read_text()) if users.exists() else 0
        if not others:
            info.write_text(start())
        users.write_text(str(others + 1))
    try:
        yield info.read_text()
    finally:
        with _locked(place):
            others = int(users.read_text()) - 1
            users.write_text(str(others))
            if not others:
                stop(info.read_text())


def _of_the_session(factory: pytest.TempPathFactory) -> Path:
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    with place.with_suffix(".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def end(pid: int) -> None:
    """Terminate a process, which another test process may have started, and wait until it has ended."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.terminate()
        with suppress(psutil.NoSuchProcess):
            eventually(f"{pid} ends", lambda: process.status() == psutil.STATUS_ZOMBIE, timeout=30)


def cut_power(running: Callable[[], Iterable[psutil.Process]]) -> None:
    """Kill all of `running` at the same moment, so that no process sees another one end and reports it."""
    held: set[psutil.Process] = set()
    while new := set(running()) - held:
        for process in new:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        held |= new
    for process in held:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(held, timeout=60)


class Repository:
    """A git repository with the project in it, in which tests run commands."""

    def __init__(self, folder: Path, variables: dict[str, str] | None = None) -> None:
        """Create it. `variables` is the whole environment of the commands, by default that of the tests."""
        self.folder, self.variables = folder, variables

    def run(self, *command: str, fails: bool = False) -> str:
        """Run a command as a user would, and return its output, including stderr."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=(self.variables or environment()) | {"COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stdout
        # Only tracebacks of the project count: Prefect's server may log its own on a busy machine.
        assert not re.search(r'File ".*/(flows|tasks|models)/\w+\.py", line', done.stdout), done.stdout
        return done.stdout

    def name_author(self) -> None:
        """Let git commit in this repository."""
        self.run("git", "config", "user.name", "Tester")
        self.run("git", "config", "user.email", "tester@example.org")

    def set(self, *assignments: str) -> None:
        """Change params.yaml, as `cxr params --set`."""
        path = self.folder / "params.yaml"
        text = with_changes(path.read_text(encoding="utf-8"), read_changes(None, list(assignments)))
        path.write_text(text, encoding="utf-8")

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)

    def read(self, path: str) -> str:
        return (self.folder / path).read_text(encoding="utf-8")


def make_repository_of(params_text: str) -> Callable[[Path], Repository]:
    """Return a function that creates a repository of the project's current files with these params."""

    def make(folder: Path) -> Repository:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)  # entrypoints are executable
        (folder / "params.yaml").write_text(params_text, encoding="utf-8")
        repository = Repository(folder)
        repository.run("git", "init", "--quiet", "--initial-branch=main")
        repository.name_author()
        repository.commit("start")
        return repository

    return make


def empty_repository(folder: Path) -> Repository:
    """A repository of git and DVC with nothing in it."""
    folder.mkdir()
    repository = Repository(folder)
    repository.run("git", "init", "--quiet", "--initial-branch=main")
    repository.name_author()
    # As by `dvc init`, which takes a second.
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    (folder / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (folder / ".dvcignore").touch()
    repository.run("git", "add", ".dvc", ".dvcignore")
    return repository


def with_cache_of(finished: Repository, repository: Repository, *without: str) -> Repository:
    """Copy the DVC cache of a finished repository, which has the results of all stages but `without`."""
    cache = shutil.copytree(finished.folder / ".dvc" / "cache", repository.folder / ".dvc" / "cache")
    for entry in [path for path in (cache / "runs").rglob("*") if path.is_file()]:
        if any(f"-m tasks.{stage} " in entry.read_text() for stage in without):
            shutil.rmtree(entry.parent)  # DVC does not expect it to be empty
    return repository


def retrain(repository: Repository, *arguments: str, fails: bool = False) -> str:
    """Run the flow from the command line, and return its output."""
    return repository.run("cxr", "retrain", *arguments, fails=fails)


def finished(output: str) -> dict[str, str]:
    """Return the final state of each task run in a flow's output, by name."""
    lines = [line for line in output.splitlines() if "| Task run " in line and "Finished in state" in line]
    return {line.split("'")[1]: line.split("Finished in state ")[1].partition("(")[0] for line in lines}


def benchmark(name: str) -> ModuleType:
    """Import a module of benchmarks/ as a script would, with its neighbours on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module(name)


def trainings_of(params: Params) -> dict[str, Training]:
    """Return what a flow knows about the trainings of a params.yaml."""
    return {name: Training.model_validate_json(plan.to_json()) for name, plan in params.plans.items()}


def made(out: Path) -> dict[str, bytes]:
    """Return the files in a folder by their relative paths."""
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*.*"))}


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, which may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
