"""A real local PostgreSQL server for tests, with one database.

On Debian: apt-get install postgresql
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
    """A server with its data in a folder. It keeps its port when it is restarted."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        (self.port,) = free_ports(1)
        # PostgreSQL refuses to run as root.
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
        """End it and close its connections. With SIGQUIT, it has to recover as after a power cut."""
        self.process.send_signal(how)
        self.process.wait(30)

    def ready(self) -> bool:
        command = [self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def select(self, query: str) -> list[str]:
        """Return the rows of a query, with columns separated by |."""
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
    """Return the folder with PostgreSQL's server, which Debian does not put on the PATH."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).resolve())
    return found[-1].parent if found else None


@contextmanager
def serving() -> Iterator[Database]:
    """Run an empty server, and delete it with its data on exit. Skips the test if PostgreSQL is missing."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed; see tests/postgresql.py")
    # Other users, such as postgres, cannot access pytest's folders.
    with tempfile.TemporaryDirectory(prefix="covid-qu-ex-postgresql-") as folder:
        database = Database(programs, Path(folder))
        try:
            database.start()
            yield database
        finally:
            database.stop()
