"""The temporary server of a command that has no other."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from flows.repository.git import environment
from tests.helpers import ROOT

#: Runs a flow on the temporary server, and sends a request as a page of another site would.
COMMAND = """
import httpx
from prefect import flow
from prefect.settings import get_current_settings
from flows.deployment.temporary import start_server
from tasks.support.cli import stage_main

@flow(log_prints=True)
def addition():
    print(1 + 2)

def main():
    wait = start_server()
    wait()
    api = get_current_settings().api.url
    addition()
    runs = httpx.post(f"{api}/flow_runs/filter", json={}).json()
    foreign = httpx.post(f"{api}/flow_runs/filter", headers={"Origin": "https://evil.example"})
    print(api, runs[0]["state_name"], foreign.status_code)

stage_main(main)
"""


def run(home: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    own = environment() | {"PREFECT_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)} | variables
    own.pop("PREFECT_API_URL", None)
    return subprocess.run(
        [sys.executable, "-c", COMMAND], cwd=ROOT, env=own, capture_output=True, text=True, timeout=120
    )


def test_a_command_has_a_server_until_it_exits(make_home: Callable[[Path], Path], tmp_path: Path) -> None:
    # If the server ended first, Prefect would retry for minutes to send it the last logs.
    done = run(make_home(tmp_path / "prefect"))
    assert done.returncode == 0, done.stderr
    api, state, foreign = done.stdout.splitlines()[-1].split()
    assert (state, foreign) == ("Completed", "403")
    with pytest.raises(httpx.ConnectError):
        httpx.get(api)


def test_a_server_in_the_settings_that_does_not_answer_is_reported_in_one_line(tmp_path: Path) -> None:
    own = environment() | {"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": "http://127.0.0.1:9/"}
    own["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", COMMAND], cwd=ROOT, env=own, capture_output=True, text=True, timeout=120
    )
    line = (
        "error: no Prefect server answers at http://127.0.0.1:9/api: [Errno 111] Connection refused; "
        "PREFECT_API_URL is set by the environment; to run without that server, set PREFECT_API_URL=\n"
    )
    assert (done.returncode, done.stderr) == (1, line)


def test_a_server_that_does_not_start_is_reported_in_one_line(tmp_path: Path) -> None:
    nowhere = f"sqlite+aiosqlite:///{tmp_path}/no/such/folder/prefect.db"
    done = run(tmp_path, PREFECT_SERVER_DATABASE_CONNECTION_URL=nowhere)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the temporary Prefect server did not start: ")
    assert line.endswith("unable to open database file")


def test_a_database_of_a_newer_prefect_is_named_as_such(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "prefect.db")) as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('ffffffffffff')")
        database.commit()
    done = run(tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the temporary Prefect server did not start: ")
    assert line.endswith(f"a newer Prefect has used {tmp_path}: set PREFECT_HOME to another folder")
