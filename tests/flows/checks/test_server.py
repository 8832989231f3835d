"""Where runs report to, and the ports of `cxr serve`, as settings left over from elsewhere say."""

import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from prefect.context import root_settings_context
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_SERVER_API_PORT, temporary_settings

from flows.checks.check import Finding, Level
from flows.checks.server import check_files, check_home, check_ports, check_reporting
from flows.deployment.supervision import exclusive
from tests.helpers import free_ports

DEAD = "http://127.0.0.1:9/api"


@pytest.fixture
def found_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Finding]]:
    """Run a check with the settings of a command that is started in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)

    def found_in(check: Callable[[Path], Iterable[Finding]], **variables: str) -> list[Finding]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        # The first context tells the second where the profiles are.
        with root_settings_context(), root_settings_context():
            return list(check(tmp_path))

    return found_in


def name_in_dotenv(folder: Path) -> str:
    (folder / ".env").write_text(f"PREFECT_API_URL={DEAD}\nPREFECT_API_AUTH_STRING=user:secret\n")
    return str(folder / ".env")


def name_in_toml(folder: Path) -> str:
    (folder / "prefect.toml").write_text(f'[api]\nurl = "{DEAD}"\n')
    return str(folder / "prefect.toml")


def name_in_pyproject(folder: Path) -> str:
    (folder / "pyproject.toml").write_text(f'[tool.prefect.api]\nurl = "{DEAD}"\n')
    return str(folder / "pyproject.toml")


def name_in_profile(folder: Path) -> str:
    (folder / "home").mkdir()
    (folder / "home" / "profiles.toml").write_text(
        f'active = "work"\n[profiles.work]\nPREFECT_API_URL = "{DEAD}"\n'
    )
    return "the Prefect profile 'work'"


@pytest.mark.parametrize("name", [name_in_dotenv, name_in_toml, name_in_pyproject, name_in_profile])
def test_a_server_of_yesterday_is_a_fault_that_says_where_it_is_named(
    name: Callable[[Path], str], found_in: Callable[..., list[Finding]], tmp_path: Path
) -> None:
    source = name(tmp_path)
    (finding,) = found_in(check_reporting)
    assert finding.level is Level.FAULT
    assert finding.found.startswith(
        f"PREFECT_API_URL, as set by {source}: no Prefect server answers at {DEAD}: "
    )
    assert "`PREFECT_API_URL= cxr retrain`" in finding.remedy
    # The remedy works.
    (fine,) = found_in(check_reporting, PREFECT_API_URL="")
    assert fine == (Level.OK, "`cxr retrain` starts a Prefect server for itself", "")


def test_a_server_elsewhere_is_named(found_in: Callable[..., list[Finding]]) -> None:
    api = "http://prefect.invalid/api"
    elsewhere, dead = found_in(check_reporting, PREFECT_API_URL=api)
    assert (elsewhere.level, dead.level) == (Level.WARNING, Level.FAULT)
    assert elsewhere.found == (
        "runs report to http://prefect.invalid, as set by the environment: "
        "scores and figures leave this machine"
    )


def test_a_server_that_answers_is_fine(
    found_in: Callable[..., list[Finding]], prefect_api: tuple[str, Path]
) -> None:
    api, _ = prefect_api
    (finding,) = found_in(check_reporting, PREFECT_API_URL=api)
    assert finding == (Level.OK, f"the Prefect server at {api} answers; the environment names it", "")


def test_settings_in_files_are_named_without_their_values(
    found_in: Callable[..., list[Finding]], tmp_path: Path
) -> None:
    assert [finding.level for finding in found_in(check_files)] == [Level.OK]
    name_in_dotenv(tmp_path)
    name_in_pyproject(tmp_path)
    dotenv, pyproject = found_in(check_files)
    assert dotenv.found.endswith(f"{tmp_path / '.env'}: PREFECT_API_AUTH_STRING, PREFECT_API_URL")
    assert pyproject.found.endswith(f"{tmp_path / 'pyproject.toml'}: api")
    assert "secret" not in str(dotenv)


def test_a_home_that_cannot_be_written_to_is_a_fault() -> None:
    with temporary_settings({PREFECT_HOME: Path("/proc/home")}):
        (finding,) = check_home(Path())
    assert finding.level is Level.FAULT
    assert finding.found.startswith("/proc/home, the folder of Prefect, cannot be written to: ")
    assert "PREFECT_HOME" in finding.remedy
    with temporary_settings({PREFECT_HOME: Path("/proc/home"), PREFECT_API_URL: DEAD}):
        (finding,) = check_home(Path())  # no server starts here
    assert finding.level is Level.WARNING


def test_a_port_that_another_program_uses_is_a_warning(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with temporary_settings({PREFECT_SERVER_API_PORT: port}):
            finding = next(iter(check_ports(tmp_path)))
    assert finding == (
        Level.WARNING,
        f"`cxr serve` cannot use port {port} for the Prefect server: another program uses it",
        "set PREFECT_SERVER_API_PORT to another port",
    )


def test_the_port_of_reports_is_the_next_one(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with temporary_settings({PREFECT_SERVER_API_PORT: port - 1}):
            _, finding = check_ports(tmp_path)
    assert finding.level is Level.WARNING
    assert f"cannot use port {port} for reports" in finding.found


def test_the_ports_of_a_clone_that_is_served_are_fine(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with exclusive(tmp_path, "serve") as lock:
        assert lock
        lock.write(f"http://127.0.0.1:{port}/api retrain".encode())
        lock.flush()
        (finding,) = check_ports(tmp_path)
    assert finding == (Level.OK, f"`cxr serve` is running in this clone: http://127.0.0.1:{port}", "")
