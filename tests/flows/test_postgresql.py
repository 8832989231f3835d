"""The same with PostgreSQL for the server's database instead of SQLite: one setting, as docs/ says."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.flows.conftest import eventually, serving
from tests.helpers import Repository, free_ports

PASSWORD = "a-kept-secret"
USER = "retrain"


class Database(NamedTuple):
    programs: Path
    port: int

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://{USER}:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def ready(self) -> bool:
        command = [self.programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def select(self, query: str) -> list[str]:
        """The rows, columns parted by |."""
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "-d", "postgres"]
        done = subprocess.run(
            [self.programs / "psql", *where, "--no-align", "--tuples-only", "--command", query],
            env=os.environ | {"PGPASSWORD": PASSWORD},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()


def programs() -> Path | None:
    """Where PostgreSQL's server is: Debian keeps it off the PATH."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).resolve())
    return found[-1].parent if found else None


@pytest.fixture
def database() -> Iterator[Database]:
    there = programs()
    if there is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    # Root may not run it, and pytest's folders are closed to others.
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="covid-qu-ex-postgresql-") as name:
        folder = Path(name)
        data = folder / "data"
        password = folder / "password"
        password.write_text(PASSWORD)
        if user:
            shutil.chown(folder, "postgres", "postgres")
            shutil.chown(password, "postgres", "postgres")
        init = ["initdb", "--pgdata", data, "--username", USER, "--pwfile", password, "--auth=scram-sha-256"]
        subprocess.run([*user, there / init[0], *init[1:]], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        options = ["-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [*user, there / "postgres", *options], cwd=folder, stdout=log, stderr=subprocess.STDOUT
            )
        found = Database(there, port)
        try:
            eventually("PostgreSQL is ready", lambda: found.ready() or server.poll() is not None)
            assert server.poll() is None, (folder / "log").read_text()
            yield found
        finally:
            server.terminate()
            server.wait(30)


def test_a_run_is_in_postgresql_and_its_password_in_no_log(
    make_repository: Callable[[Path], Repository], tmp_path: Path, database: Database
) -> None:
    setting = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database.url}
    home = tmp_path / "prefect"
    with serving(make_repository(tmp_path / "repository"), home, **setting) as served:
        run = served.submit(experiments=["report1_bce"])
        assert served.finished(run.id).state_name == "Completed"
        stages = set(served.tasks(run.id))
    assert {"download", "train@report1_bce", "report"} <= stages

    assert database.select("SELECT name, state_type FROM flow_run") == [f"{run.name}|COMPLETED"]
    assert set(database.select("SELECT name FROM task_run")) == stages
    assert database.select("SELECT name FROM deployment") == ["retrain"]
    assert not (home / "prefect.db").exists()

    logs = [served.output, *(served.repository.folder / "runs" / ".logs").iterdir()]
    assert len(logs) == 3
    for log in logs:
        assert PASSWORD not in log.read_text(errors="replace"), log
