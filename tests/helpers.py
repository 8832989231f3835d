"""What several tests need and is no fixture."""

import io
import re
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from flows.checkout import environment

ROOT = Path(__file__).parent.parent
REAL_ZIP = ROOT.parent / "shared" / "data" / "covidqu-infection.zip"


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


class Repository:
    """A git repository with the project in it, to run commands in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *command: str, fails: bool = False) -> str:
        """Run a command as a user would; its output, stderr included."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment() | {"COLUMNS": "200"},
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
        self.run(sys.executable, "-m", "tasks.params", *[w for a in assignments for w in ("--set", a)])

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)

    def read(self, path: str) -> str:
        return (self.folder / path).read_text(encoding="utf-8")


def retrain(repository: Repository, *arguments: str, fails: bool = False) -> str:
    """Run the flow from the command line; what it prints."""
    return repository.run(sys.executable, "-m", "flows.retrain", *arguments, fails=fails)


def finished(output: str) -> dict[str, str]:
    """Each task run that a flow's output tells of, with the name of the state it finished in."""
    lines = [line for line in output.splitlines() if "| Task run " in line and "Finished in state" in line]
    return {line.split("'")[1]: line.split("Finished in state ")[1].partition("(")[0] for line in lines}
