"""Checks of Python and of the packages in .venv."""

import os
import platform
import re
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path

from flows.checks.check import Check, Finding, fault, ok, warning

#: The oldest and the newest Python on which the tests run.
TESTED = ((3, 11), (3, 13))

#: A version in requirements.lock. torch is in a comment there, because it has no hash.
LOCKED = re.compile(r"^(?:# )?([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)

#: The name of a package at the start of a requirement, such as `dvc[s3]>=3`.
NAME = re.compile(r"[A-Za-z0-9._-]+")

#: Number of packages that a line names.
NAMED = 3

INSTALL = "run `make clean install`"


def check_python(folder: Path) -> Iterator[Finding]:
    """Check the interpreter, and the variables by which it loads other code than that of .venv."""
    oldest, newest = (".".join(map(str, version)) for version in TESTED)
    version = platform.python_version()
    if sys.version_info[:2] > TESTED[1]:
        yield warning(
            f"Python {version} is newer than the tested versions, {oldest} to {newest}",
            f"run `make clean install PYTHON=python{newest}`",
        )
    else:
        yield ok(f"Python {version} in {sys.prefix}")
    if sys.prefix == sys.base_prefix:
        yield warning("Python runs outside a virtual environment", "run `make install`, then .venv/bin/cxr")
    if os.environ.get("PYTHONSAFEPATH"):
        yield fault("PYTHONSAFEPATH is set, so stages do not find the project's code", "unset PYTHONSAFEPATH")
    for name in ("PYTHONPATH", "PYTHONHOME"):
        if os.environ.get(name):
            yield warning(f"{name} is set, so Python may load other code than that of .venv", f"unset {name}")


def check_packages(folder: Path) -> Iterator[Finding]:
    """Compare the installed packages with requirements.lock."""
    installed = installed_versions()
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["pipeline"]
    required = {_normal(match[0]) for line in lines if (match := NAME.match(line))}
    if missing := sorted(required - installed.keys()):
        yield fault(f"packages are missing: {_some(missing)}", INSTALL)
    locked = locked_versions((folder / "requirements.lock").read_text(encoding="utf-8"))
    others = [
        f"{name} {installed[name]} instead of {' or '.join(sorted(versions))}"
        for name, versions in sorted(locked.items())
        if name in installed and installed[name] not in versions
    ]
    if others:
        yield warning(f"versions differ from requirements.lock: {_some(others)}", INSTALL)
    elif not missing:
        yield ok(f"{len(locked.keys() & installed.keys())} packages have the versions of requirements.lock")


def locked_versions(lock: str) -> dict[str, set[str]]:
    """Return the versions of each package in the text of requirements.lock.

    A package has several if different versions of Python need different ones.
    """
    versions: dict[str, set[str]] = {}
    for name, version in LOCKED.findall(lock):
        versions.setdefault(_normal(name), set()).add(version)
    return versions


def installed_versions() -> dict[str, str]:
    """Return the version of each installed package, without the suffix of a build such as +cpu.

    The names of the folders of metadata hold them. Reading all metadata would take ten times as long.
    """
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    names = (path.stem for folder in folders for path in Path(folder).glob("*.dist-info"))
    pairs = (name.rpartition("-") for name in names)
    return {_normal(name): version.partition("+")[0] for name, _, version in pairs}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


CHECKS = (
    Check("Python", check_python, before_runs=True),
    Check("packages", check_packages, before_runs=True),
)
