"""Checks of Prefect's settings, which say where runs report to, and of the ports of `cxr serve`."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

from dotenv import dotenv_values
from prefect.settings import get_current_settings

from flows.checks.check import Check, Finding, fault, ok, warning
from flows.checks.machine import why_unwritable
from flows.deployment.addresses import api_of, host_and_port
from flows.deployment.prefect_api import LOCAL_HOSTS, check_server, is_taken, ui_of
from flows.deployment.settings import api_url_source
from flows.deployment.supervision import exclusive, lock_path

#: Files in the current folder from which Prefect reads settings.
DOTENV, PREFECT_TOML, PYPROJECT = Path(".env"), Path("prefect.toml"), Path("pyproject.toml")

WITHOUT_SERVER = "to run without a server: `PREFECT_API_URL= cxr retrain`"


def check_reporting(folder: Path) -> Iterator[Finding]:
    """Say where runs report to, and whether that server answers."""
    chosen = get_current_settings().api.url
    if not chosen:
        yield ok("`cxr retrain` starts a Prefect server for itself")
        return
    source = api_url_source()
    api = api_of(chosen, f"PREFECT_API_URL, as set by {source}")
    local = host_and_port(api)[0] in LOCAL_HOSTS
    if not local:
        yield warning(
            f"runs report to {ui_of(api)}, as set by {source}: scores and figures leave this machine",
            f"if that is not intended, remove PREFECT_API_URL there; {WITHOUT_SERVER}",
        )
    try:
        check_server(api)
    except ValueError as error:
        yield fault(
            f"PREFECT_API_URL, as set by {source}: {error}",
            f"start that server, or remove PREFECT_API_URL there; {WITHOUT_SERVER}",
        )
    else:
        yield ok(f"the Prefect server at {api} answers; {source} names it")


def check_files(folder: Path) -> Iterator[Finding]:
    """Find settings in files that Prefect reads from the current folder, whoever put them there."""
    found = {path: names for path, names in _settings_in_files().items() if names}
    for path, names in found.items():
        yield warning(
            f"Prefect also reads its settings from {path.resolve()}: {', '.join(sorted(names))}",
            "remove those that are not meant for the project",
        )
    if not found:
        yield ok("no file in this folder holds settings of Prefect")


def _settings_in_files() -> dict[Path, list[str]]:
    found: dict[Path, list[str]] = {}
    if DOTENV.is_file():
        found[DOTENV] = [name for name in dotenv_values(DOTENV) if name.upper().startswith("PREFECT_")]
    if PREFECT_TOML.is_file():
        found[PREFECT_TOML] = list(tomllib.loads(PREFECT_TOML.read_text(encoding="utf-8")))
    if PYPROJECT.is_file():
        tools = tomllib.loads(PYPROJECT.read_text(encoding="utf-8")).get("tool", {})
        found[PYPROJECT] = list(tools.get("prefect", {}))
    return found


def check_home(folder: Path) -> Iterator[Finding]:
    """Check that Prefect can store its settings, and the database of a server that starts here."""
    settings = get_current_settings()
    home = settings.home
    if why := why_unwritable(home):
        report = warning if settings.api.url else fault
        yield report(
            f"{home}, the folder of Prefect, cannot be written to: {why}",
            "set PREFECT_HOME to a folder that you can write to",
        )
    else:
        yield ok(f"{home}, the folder of Prefect, can be written to")


def check_ports(folder: Path) -> Iterator[Finding]:
    """Check that the ports of `cxr serve` are free, unless it is running here."""
    served = _served(folder)
    if served is not None:
        yield ok(f"`cxr serve` is running in this clone: {ui_of(served) if served else 'it is starting'}")
        return
    settings = get_current_settings().server.api
    for port, what, remedy in (
        (settings.port, "the Prefect server", "set PREFECT_SERVER_API_PORT to another port"),
        (settings.port + 1, "reports", "pass `--reports-port` with another port"),
    ):
        if is_taken(f"http://{settings.host}:{port}"):
            yield warning(f"`cxr serve` cannot use port {port} for {what}: another program uses it", remedy)
        else:
            yield ok(f"port {port} is free for {what} of `cxr serve`")


def _served(folder: Path) -> str | None:
    """Return the address of the server that `cxr serve` in this clone uses, or None if it is not running."""
    path = lock_path(folder, "serve")
    if not path.exists():
        return None
    with exclusive(folder, "serve") as lock:
        return None if lock else path.read_text(encoding="utf-8").partition(" ")[0]


CHECKS = (
    Check("server", check_reporting, limit=20),
    Check("files", check_files),
    Check("home", check_home, before_runs=True),
    Check("ports", check_ports),
)
