"""Checks of params.yaml, the data source and the DVC remote."""

import sys
from collections.abc import Iterator
from pathlib import Path

from dvc.config import Config, ConfigError

from flows.checks.check import Check, Finding, fault, ok, warning
from flows.repository.git import run
from tasks.settings.params import load_params
from tasks.sources.open import open_source
from tasks.support.cli import InputError, without_secrets

#: The project's code, in which modules can be imported.
PROJECT = Path(__file__).parents[2]

#: Seconds that the DVC remote has to take a file and give it back.
REMOTE_TIME = 60.0

CREDENTIALS = (
    "check its address and your credentials: for S3, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "AWS_PROFILE, or `dvc remote modify --local`"
)


def check_params(folder: Path) -> Iterator[Finding]:
    try:
        params = load_params(folder / "params.yaml")
    except InputError as error:
        for line in str(error).splitlines():
            yield fault(line, "correct params.yaml; docs/reference/params.md has every key")
    else:
        yield ok(f"params.yaml is valid, with {len(params.plans)} trainings")


def check_source(folder: Path) -> Iterator[Finding]:
    """List the data source of params.yaml, without downloading it."""
    try:
        data = load_params(folder / "params.yaml").data
    except InputError:  # another check reports it
        return
    where = without_secrets(data.source)
    try:
        names = open_source(data.source, folder).names()
    except OSError as error:
        yield fault(f"the data source cannot be reached: {error}", "check the network and the proxy")
        return
    except InputError as error:
        yield fault(f"the data source cannot be used: {error}")
        return
    yield ok(f"the data source {where} has {len(names):,} files")


def check_remote(folder: Path) -> Iterator[Finding]:
    """Check that the DVC remote takes a file, which is then deleted."""
    try:
        remote = Config(str(folder / ".dvc"))["core"].get("remote")
    except ConfigError as error:
        yield fault(f"DVC's settings cannot be read: {error}", "correct .dvc/config or .dvc/config.local")
        return
    if not remote:
        yield warning(
            "no default DVC remote is set: data and networks stay on this machine",
            "docs/how-to/s3.md shows how to keep them on S3",
        )
        return
    probe = (sys.executable, "-m", "flows.checks.remote_probe", str(folder))
    try:
        run(PROJECT, *probe, timeout=REMOTE_TIME)
    except InputError as error:
        reason = str(error).partition(": ")[2]
        yield fault(f"the DVC remote {remote!r} cannot be used: {reason}", CREDENTIALS)
    else:
        yield ok(f"the DVC remote {remote!r} can be read and written")


CHECKS = (
    Check("params.yaml", check_params, limit=20),
    Check("data source", check_source, limit=90),
    Check("DVC remote", check_remote, limit=REMOTE_TIME + 5),
)
