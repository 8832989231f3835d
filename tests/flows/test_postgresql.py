"""PostgreSQL instead of SQLite as the server's database, by one setting as described in docs/."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import postgresql
from tests.flows.conftest import serving
from tests.helpers import Repository, eventually
from tests.postgresql import PASSWORD, Database


@pytest.fixture
def database() -> Iterator[Database]:
    with postgresql.serving() as database:
        yield database


@pytest.mark.soak
def test_a_run_is_stored_in_postgresql_and_no_log_contains_its_password(
    make_prepared_repository: Callable[[Path], Repository], tmp_path: Path, database: Database
) -> None:
    setting = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database.url}
    home = tmp_path / "prefect"
    with serving(make_prepared_repository(tmp_path / "repository"), home, **setting) as served:
        run = served.submit(experiments=["report1_bce"])
        assert served.finished(run.id).state_name == "Completed"
        # The server writes task runs to PostgreSQL in batches, so the last may follow after the end of the
        # flow.
        eventually("the last task is written", lambda: "publish" in served.tasks(run.id))
        stages = set(served.tasks(run.id))
    assert {"download", "train@report1_bce-seed0", "report"} <= stages

    assert database.select("SELECT name, state_type FROM flow_run") == [f"{run.name}|COMPLETED"]
    assert set(database.select("SELECT name FROM task_run")) == stages
    assert set(database.select("SELECT name FROM deployment")) == {"retrain"}
    assert not (home / "prefect.db").exists()

    logs = [served.output, *(served.repository.folder / "runs" / ".logs").iterdir()]
    assert len(logs) == 3
    for log in logs:
        assert PASSWORD not in log.read_text(errors="replace"), log
