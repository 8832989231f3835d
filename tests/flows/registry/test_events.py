"""The events that decisions on the command line emit on a Prefect server, if there is one."""

import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.commands.models import _tell_server
from flows.deployment import events
from flows.promotion import Challenger
from flows.repository.git import environment
from tests.flows.registry.conftest import cxr
from tests.flows.server import User
from tests.helpers import ROOT, Repository, eventually, free_ports

REASON = ("--reason", "why not")

#: Runs `cxr`, and says whether it has loaded Prefect.
LOOK = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from flows.commands.cli import main
main()
print("with Prefect" if "prefect" in sys.modules else "without Prefect")
"""


@pytest.fixture
def server(prefect_api: tuple[str, Path], prefect_server: None) -> Iterator[User]:
    with closing(User(prefect_api[0])) as user:
        yield user


def let_decide(repository: Repository, run: str, branch: str) -> str:
    """Have the network of a branch wait for a decision. Returns its commit."""
    commit = repository.run("git", "rev-parse", branch).strip()
    folder = repository.folder / "runs" / run
    folder.mkdir(parents=True)
    Challenger(run, "tiny", commit, False, None, True, ("passed",)).write(folder)
    return commit


def promote(repository: Repository, branch: str) -> str:
    return cxr(repository, "models", "promote", branch, "--model", "tiny", "--by", "Ada", *REASON)


def test_decisions_on_the_command_line_emit_events(repository: Repository, server: User) -> None:
    one, two = let_decide(repository, "monday", "one"), let_decide(repository, "tuesday", "two")
    cxr(repository, "models", "refuse", "monday", "--by", "Ada", *REASON)
    output = cxr(repository, "models", "promote", "retrain/tuesday", "--by", "Ada", *REASON)
    assert "tiny@v1.0.0 is the champion" in output
    promote(repository, "three")
    assert "the champion already" in promote(repository, "three")
    cxr(repository, "models", "rollback", "tiny", "--by", "Ada", *REASON)

    def seen() -> list[dict[str, Any]]:
        names = ["model.refused", "model.promoted", "model.rolled-back"]
        body = {"filter": {"event": {"name": names}, "resource": {"id": ["cxr.model.tiny"]}, "order": "ASC"}}
        found: list[dict[str, Any]] = server.client._client.post("/events/filter", json=body).json()["events"]
        return found if len(found) >= 4 else []

    found = eventually("the events arrive", seen)
    three = repository.run("git", "rev-parse", "three").strip()
    said = {"by": "Ada", "reason": "why not"}
    assert [(event["event"], event["payload"]) for event in found] == [
        ("model.refused", {"run": "monday", "commit": one, **said}),
        ("model.promoted", {"version": "v1.0.0", "commit": two, **said}),
        ("model.promoted", {"version": "v1.1.0", "commit": three, **said}),
        ("model.rolled-back", {"version": "v1.0.0", "commit": two, **said}),
    ]
    assert [event["related"] for event in found] == [[]] * 4
    assert found[0]["resource"]["prefect.resource.name"] == "tiny"


def test_without_a_server_prefect_is_not_even_loaded(repository: Repository, tmp_path: Path) -> None:
    variables = environment() | {"PREFECT_HOME": str(tmp_path / "prefect")}
    variables.pop("PREFECT_API_URL", None)
    alone = Repository(repository.folder, variables)
    promoting = ("models", "promote", "one", "--model", "tiny", *REASON)
    output = alone.run(sys.executable, "-c", LOOK, *promoting)
    assert output.splitlines()[-2:] == ["tiny@v1.0.0 is the champion", "without Prefect"]


def test_an_unreachable_server_is_one_line_after_the_promotion(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    lines = promote(repository, "one").splitlines()
    assert "tiny@v1.0.0 is the champion" in lines[-2:]
    assert any(line.startswith("the event was not emitted: ") for line in lines[-2:])


def tell(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", address)
    with temporary_settings({PREFECT_API_URL: address}):
        _tell_server(lambda: events.report_verdict("tiny", run="monday"))


def test_a_server_that_does_not_answer_is_waited_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(events, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tell(f"http://127.0.0.1:{silent.getsockname()[1]}/api", monkeypatch)
    assert "the event was not emitted: timed out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "address", ["http://me:secret@host", "no address"], ids=["with a password", "invalid"]
)
def test_an_invalid_address_is_reported(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(address, monkeypatch)
    said = capsys.readouterr().err
    assert said.startswith("the event was not emitted: PREFECT_API_URL: ") and "secret" not in said
