"""Files about the project that repeat each other: versions, the lock, checks, workflows."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from flows.repository.git import environment
from tests.helpers import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))

#: Packages that torch brings by itself where pip takes its CUDA build.
CUDA = ("nvidia-", "cuda-", "triton")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def read_yaml(name: str) -> Any:
    return YAML(typ="safe").load(read(name))


def git(*arguments: str) -> list[str]:
    command = ["git", *arguments]
    return subprocess.check_output(command, cwd=ROOT, env=environment(), text=True).splitlines()


PYPROJECT = tomllib.loads(read("pyproject.toml"))
EXTRAS = [line for lines in PYPROJECT["project"]["optional-dependencies"].values() for line in lines]
RANGES = [Requirement(line) for line in PYPROJECT["project"]["dependencies"] + EXTRAS]
TOOL_RANGES = [Requirement(line) for line in PYPROJECT["dependency-groups"]["dev"]]

#: The lines of requirements.lock: each a package with its hashes, and torch's, which has none.
LOCK = re.findall(r"(?m)^([a-z].*?)((?: \\\n    --hash=\S+)*)$", read("requirements.lock"))
LOCKED = {requirement.name: requirement for requirement in (Requirement(line) for line, _ in LOCK)}
(TORCH,) = (Requirement(line) for line in re.findall(r"(?m)^# (torch==.*)$", read("requirements.lock")))


def locked_version(name: str) -> str:
    (pin,) = (LOCKED | {"torch": TORCH})[canonicalize_name(name)].specifier
    assert pin.operator == "=="
    return pin.version


# --- versions -----------------------------------------------------------------------------------------------


def test_the_version_is_the_same_everywhere() -> None:
    version = PYPROJECT["project"]["version"]
    citation = read_yaml("CITATION.cff")
    newest, state = re.findall(r"(?m)^## \[(\d.*?)\] - (.*)$", read("CHANGELOG.md"))[0]
    assert (citation["version"], newest) == (version, version)
    assert str(citation.get("date-released", "Unreleased")) == state


def test_the_python_versions_are_the_same_everywhere() -> None:
    (lowest,) = PYPROJECT["project"]["requires-python"].split(">=")[1:]
    assert f"--python-version {lowest} " in read("Makefile")
    assert f"sys.version_info >= ({lowest.replace('.', ', ')})" in read("Makefile")
    assert f"FROM python:{lowest}." in read("Dockerfile")
    assert f"python:{lowest}-" in json.loads(read(".devcontainer/devcontainer.json"))["image"]
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{lowest.replace('.', '')}"
    used = set()
    for workflow in WORKFLOWS:
        used |= set(re.findall(r'"(3\.\d+)"', workflow.read_text(encoding="utf-8")))
    tried = [line.split(" :: ")[-1] for line in PYPROJECT["project"]["classifiers"]]
    assert tried[0] == lowest
    assert set(tried) == used


# --- the lock -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", RANGES + TOOL_RANGES, ids=lambda wanted: wanted.name)
def test_the_lock_satisfies_the_ranges_of_pyproject(wanted: Requirement) -> None:
    assert wanted.specifier.contains(locked_version(wanted.name))


def test_the_lock_has_hashes_for_all_but_torch() -> None:
    assert len(LOCKED) == len(LOCK) > 200
    assert [line for line, hashes in LOCK if "--hash=sha256:" not in hashes] == []
    assert [name for name in LOCKED if name == "torch" or name.startswith(CUDA)] == []


def test_the_lock_has_what_torch_needs_beside_cuda() -> None:
    (told,) = PYPROJECT["tool"]["uv"]["dependency-metadata"]
    assert (told["name"], told["version"]) == ("torch", locked_version("torch"))
    needed = [Requirement(line) for line in requires("torch") or []]
    needed = [one for one in needed if "extra" not in str(one.marker) and not one.name.startswith(CUDA)]
    assert {one.name: one.specifier for one in needed} == {
        one.name: one.specifier for one in map(Requirement, told["requires-dist"])
    }
    assert all(one.specifier.contains(locked_version(one.name)) for one in needed)


def test_what_is_installed_fits_together() -> None:
    """Needed because `make install` has pip install the lock without looking at dependencies."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- the same checks ----------------------------------------------------------------------------------------


def recipe(target: str) -> list[str]:
    """The commands of a target in the Makefile."""
    match = re.search(rf"(?m)^{re.escape(target)}:.*\n((?:\t.*\n)+)", read("Makefile"))
    assert match
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in match[1].splitlines()]


def targets() -> set[str]:
    (line,) = re.findall(r"(?m)^\.PHONY: (.*)$", read("Makefile"))
    return set(line.split())


def test_pre_commit_runs_what_make_check_runs() -> None:
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"] for hook in repository["hooks"]] == recipe("check")
    assert not any(hook["pass_filenames"] for hook in repository["hooks"])


def test_commands_of_make_may_write_compiled_modules(tmp_path: Path) -> None:
    """Images of Python set the variable; each of the many processes would compile all its imports again."""
    program = "import sys; print(sys.dont_write_bytecode)"
    (tmp_path / "more.mk").write_text(f"compiled:\n\t@python3 -c '{program}'\n")
    done = subprocess.run(
        ["make", "--no-print-directory", "-f", "Makefile", "-f", tmp_path / "more.mk", "compiled"],
        cwd=ROOT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"


def test_ci_runs_make_check() -> None:
    lines = read(".ci/run").splitlines()
    assert [line for line in lines if line.startswith("make ")] == ["make check", "make test", "make demo"]
    assert ".ci/run" in commands(ROOT / ".github/workflows/ci.yml")


def commands(workflow: Path) -> list[str]:
    jobs = YAML(typ="safe").load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    return [line for job in jobs for step in job["steps"] for line in step.get("run", "").splitlines()]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_what_exists(workflow: Path) -> None:
    for command in commands(workflow):
        if target := re.match(r"make (\S+)", command):
            assert target[1] in targets(), command
        if script := re.match(r"(?:sudo )?(\.ci/\S+)", command):
            assert (ROOT / script[1]).is_file(), command


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read(workflow: Path) -> None:
    assert read_yaml(f".github/workflows/{workflow.name}")["permissions"] == {"contents": "read"}


def test_weekly_runs_what_a_change_does_not() -> None:
    weekly = commands(ROOT / ".github/workflows/weekly.yml")
    assert "make soak" in weekly
    (lock,) = (command for command in weekly if command.startswith("make lock"))
    upgraded = re.findall(r"[\w-]+", lock.partition("UPGRADE=")[2])
    assert {"dvc", "prefect"} <= set(upgraded) <= set(LOCKED)


def test_documented_targets_exist() -> None:
    documented = set()
    for name in ("Makefile", "README.md", "CONTRIBUTING.md", "SECURITY.md"):
        documented |= set(re.findall(r"(?m)(?:^(?:# )?|`)make ([a-z]+)\b", read(name)))
    assert documented <= targets()


# --- files --------------------------------------------------------------------------------------------------


def test_structured_files_parse() -> None:
    parsers = {
        ".yaml": read_yaml,
        ".yml": read_yaml,
        ".cff": read_yaml,
        ".json": lambda name: json.loads(read(name)),
        ".toml": lambda name: tomllib.loads(read(name)),
    }
    names = [name for name in git("ls-files") if Path(name).suffix in parsers]
    assert {"dvc.yaml", "CITATION.cff", ".devcontainer/devcontainer.json"} <= set(names)
    for name in names:
        assert parsers[Path(name).suffix](name), name


def test_scripts_are_executable_and_every_text_has_unix_line_ends() -> None:
    for line in git("ls-files", "--stage"):
        mode, name = line.split()[0], line.partition("\t")[2]
        if (ROOT / name).is_file():
            is_script = (ROOT / name).read_bytes().startswith(b"#!")
            assert is_script == (mode == "100755"), name
    for line in git("ls-files", "--eol"):
        kinds, name = line.split("\t")
        index, _, *attributes = kinds.split()
        assert index in ("i/lf", "i/-text", "i/none"), name
        if name.endswith(".sh") or name.startswith(".ci/"):
            assert attributes == ["attr/text", "eol=lf"], name


def test_editors_know_the_line_length() -> None:
    assert f"max_line_length = {PYPROJECT['tool']['ruff']['line-length']}\n" in read(".editorconfig")
