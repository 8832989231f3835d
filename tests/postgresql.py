"""A real PostgreSQL server on loopback for tests, with one database.

Debian: apt-get install postgresql
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers import eventually, free_ports

PASSWORD = "a-kept-secret"
USER = "retrain"


class Database:
    """A server with its data in a folder, which keeps its port when it starts again."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        (self.port,) = free_ports(1)
        # Root may not run it.
        self._user = (
            ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        )
        password = folder / "password"
        password.write_text(PASSWORD)
        if self._user:
            shutil.chown(folder, "postgres", "postgres")
            shutil.chown(password, "postgres", "postgres")
        options = ["--pgdata", "data", "--username", USER, "--pwfile", "password", "--auth=scram-sha-256"]
        subprocess.run(
            [*self._user, programs / "initdb", *options], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://{USER}:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = ["-D", "data", "-h", "127.0.0.1", "-p", str(self.port), "-k", self._folder]
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self._user, self._programs / "postgres", *options],
                cwd=self._folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        eventually("PostgreSQL is ready", lambda: self.ready() or self.process.poll() is not None)
        assert self.process.poll() is None, (self._folder / "log").read_text()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it and cut its connections; with SIGQUIT as a power cut does, so that it has to recover."""
        self.process.send_signal(how)
        self.process.wait(30)

    def ready(self) -> bool:
        command = [self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def select(self, query: str) -> list[str]:
        """The rows, columns parted by |."""
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "-d", "postgres"]
        done = subprocess.run(
            [self._programs / "psql", *where, "--no-align", "--tuples-only", "--command", query],
            env=os.environ | {"PGPASSWORD": PASSWORD},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()


def _programs() -> Path | None:
    """Where PostgreSQL's server is: Debian keeps it off the PATH."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).resolve())
    return found[-1].parent if found else None


@contextmanager
def serving() -> Iterator[Database]:
    """A server with nothing in it, ended with all of its data; where there is none, the test is skipped."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (tests/postgresql.py says how)")
    # pytest's folders are closed to other users.
    with tempfile.TemporaryDirectory(prefix="covid-qu-ex-postgresql-") as folder:
        database = Database(programs, Path(folder))
        try:
            database.start()
            yield database
        finally:
            database.stop()
