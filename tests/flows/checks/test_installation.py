"""Python and the installed packages."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from flows.checks.check import Level
from flows.checks.installation import (
    TESTED,
    check_packages,
    check_python,
    installed_versions,
    locked_versions,
)
from tests.helpers import ROOT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The files that say what has to be installed. Tests change them, because all tests share one .venv."""
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def edit(file: Path, pattern: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    changed, count = re.subn(pattern, new, text)
    assert count == 1, pattern
    file.write_text(changed, encoding="utf-8")


def test_the_tested_versions_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tested = [tuple(map(int, line.rpartition(" ")[2].split("."))) for line in project["classifiers"]]
    assert (min(tested), max(tested)) == TESTED


def test_installed_versions_are_those_of_the_metadata() -> None:
    found = installed_versions()
    for name in ("torch", "ruamel-yaml", "prefect", "s3fs"):
        assert found[name] == version(name).partition("+")[0]


def test_a_package_may_have_several_locked_versions() -> None:
    lock = "# torch==2.13.0\na.b==1.0 ; python_full_version < '3.12' \\\n    --hash=x==y\nA_b==2.0 \\\n"
    assert locked_versions(lock) == {"torch": {"2.13.0"}, "a-b": {"1.0", "2.0"}}


def test_locked_versions_are_fine(project: Path) -> None:
    installed = installed_versions()
    lock = "\n".join(f"{name}=={number}" for name, number in installed.items())
    (project / "requirements.lock").write_text(lock, encoding="utf-8")
    (finding,) = check_packages(project)
    assert finding.level is Level.OK
    assert finding.found == f"{len(installed)} packages have the versions of requirements.lock"


def test_another_version_is_a_warning(project: Path) -> None:
    edit(project / "requirements.lock", r"\npandas==\S+", "\npandas==99.1")
    (finding,) = check_packages(project)
    assert finding.level is Level.WARNING
    assert f"pandas {version('pandas')} instead of 99.1" in finding.found
    assert finding.remedy == "run `make clean install`"


def test_a_missing_package_is_a_fault(project: Path) -> None:
    edit(
        project / "pyproject.toml", r'\n  "jinja2>=3\.1",', '\n  "jinja2>=3.1",\n  "no-such-package[all]>=3",'
    )
    finding = next(iter(check_packages(project)))
    assert finding == (Level.FAULT, "packages are missing: no-such-package", "run `make clean install`")


def test_variables_that_load_other_code_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (fine,) = check_python(Path())
    assert fine.level is Level.OK
    assert fine.found.endswith(f" in {sys.prefix}")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    _, other = check_python(Path())
    assert other.level is Level.WARNING
    assert other.found.startswith("PYTHONPATH is set")


def test_a_variable_that_hides_the_project_from_stages_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    findings = [finding for finding in check_python(Path()) if finding.level is Level.FAULT]
    assert [finding.remedy for finding in findings] == ["unset PYTHONSAFEPATH"]
    hidden = subprocess.run([sys.executable, "-m", "tasks.plan"], cwd=ROOT, capture_output=True, text=True)
    assert "No module named" in hidden.stderr
