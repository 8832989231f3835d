"""What several tests need and is no fixture."""

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

ROOT = Path(__file__).parent.parent
REAL_ZIP = ROOT.parent / "shared" / "data" / "covidqu-infection.zip"

#: Seconds within which anything that a test waits for happens, on busy machines too.
TIMEOUT = 180.0

#: All that augmentation can do.
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
    """Pack a folder, its last file first."""
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
    """Wait until `seen` gives something, and give it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if value := seen():
            return value
        time.sleep(0.3)
    raise AssertionError(f"not within {timeout:.0f} s: {what}")


@contextmanager
def made_once(factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """A folder that the test processes of one session share, and whether it has yet to be filled."""
    folder = _of_the_session(factory) / name
    with _locked(folder):
        done = folder.with_suffix(".done")
        yield folder, not done.exists()
        done.touch()


@contextmanager
def shared(
    factory: pytest.TempPathFactory, name: str, start: Callable[[], str], stop: Callable[[str], None]
) -> Iterator[str]:
    """A server that the test processes of one session share: the first starts it, the last ends it.

    Yields the text that `start` returned, such as an address; `stop` gets the same text.
    """
    place = _of_the_session(factory) / name
    users, said = place.with_suffix(".users"), place.with_suffix(".said")
    with _locked(place):
        others = int(users.read_text()) if users.exists() else 0
        if not others:
            said.write_text(start())
        users.write_text(str(others + 1))
    try:
        yield said.read_text()
    finally:
        with _locked(place):
            others = int(users.read_text()) - 1
            users.write_text(str(others))
            if not others:
                stop(said.read_text())


def _of_the_session(factory: pytest.TempPathFactory) -> Path:
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    with place.with_suffix(".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def end(pid: int) -> None:
    """End a process of whichever test process, and wait until it is gone."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.terminate()
        with suppress(psutil.NoSuchProcess):
            eventually(f"{pid} ends", lambda: process.status() == psutil.STATUS_ZOMBIE, timeout=30)


def cut_power(running: Callable[[], Iterable[psutil.Process]]) -> None:
    """Kill all of `running` at one moment: none of it sees another end, and tells of that."""
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
    """A git repository with the project in it, to run commands in."""

    def __init__(self, folder: Path, variables: dict[str, str] | None = None) -> None:
        """`variables` are the whole environment of the commands, where it is not the tests' own."""
        self.folder, self.variables = folder, variables

    def run(self, *command: str, fails: bool = False) -> str:
        """Run a command as a user would; its output, stderr included."""
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
        # Of ours: Prefect's server may log one of its own when the machine is busy.
        assert not re.search(r'File ".*/(flows|tasks|models)/\w+\.py", line', done.stdout), done.stdout
        return done.stdout

    def set(self, *assignments: str) -> None:
        self.run("cxr", "params", *[w for a in assignments for w in ("--set", a)])

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)

    def read(self, path: str) -> str:
        return (self.folder / path).read_text(encoding="utf-8")


def make_repository_of(params_text: str) -> Callable[[Path], Repository]:
    """What makes a repository of the project's files as they are now, with these params."""

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
                shutil.copyfile(ROOT / name, folder / name)
        (folder / "params.yaml").write_text(params_text, encoding="utf-8")
        repository = Repository(folder)
        repository.run("git", "init", "--quiet", "--initial-branch=main")
        repository.run("git", "config", "user.name", "Tester")
        repository.run("git", "config", "user.email", "tester@example.org")
        repository.commit("start")
        return repository

    return make


def with_cache_of(finished: Repository, repository: Repository) -> Repository:
    """Give a repository the DVC cache of another, which knows the results of its stages."""
    shutil.copytree(finished.folder / ".dvc" / "cache", repository.folder / ".dvc" / "cache")
    return repository


def retrain(repository: Repository, *arguments: str, fails: bool = False) -> str:
    """Run the flow from the command line; what it prints."""
    return repository.run("cxr", "retrain", *arguments, fails=fails)


def finished(output: str) -> dict[str, str]:
    """Each task run that a flow's output tells of, with the name of the state it finished in."""
    lines = [line for line in output.splitlines() if "| Task run " in line and "Finished in state" in line]
    return {line.split("'")[1]: line.split("Finished in state ")[1].partition("(")[0] for line in lines}


def benchmark(name: str) -> ModuleType:
    """A module of benchmarks/, which finds its neighbours as a script does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module(name)


def made(out: Path) -> dict[str, bytes]:
    """The files under a folder, by their paths."""
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*.*"))}
