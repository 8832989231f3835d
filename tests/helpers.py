"""What several tests need and is no fixture."""

import io
import re
import subprocess
import sys
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
