"""`cxr doctor`, and the checks with which a run starts."""

import json
import os
import pty
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows import doctor
from flows.checks.check import Check, Finding, Level, fault, ok, warning
from flows.checks.output import print_json, print_text
from flows.doctor import GROUPS, check_before_run, check_branches, check_push, examine
from flows.repository.git import environment
from tasks.support.cli import InputError
from tests.helpers import Repository, empty_repository, retrain


def cxr_doctor(repository: Repository, *options: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["cxr", "doctor", *options],
        cwd=repository.folder,
        env=environment() | variables,
        capture_output=True,
        text=True,
        check=False,
    )


# --- how checks run -----------------------------------------------------------------------------------------


def fine(folder: Path) -> Iterator[Finding]:
    yield ok("fine")


def strange(folder: Path) -> Iterator[Finding]:
    yield warning("strange", "do this")


def broken(folder: Path) -> Iterator[Finding]:
    yield fault("broken, see https://user:secret@host/x?token=secret")


def hanging(folder: Path) -> Iterator[Finding]:
    time.sleep(60)
    yield ok("never")


def failing(folder: Path) -> Iterator[Finding]:
    yield ok("before")
    raise RuntimeError("a\nbug")


def refusing(folder: Path) -> Iterator[Finding]:
    raise InputError("an invalid value")
    yield


def closed(folder: Path) -> Iterator[Finding]:
    raise PermissionError(13, "Permission denied", "/a/file")
    yield


@pytest.fixture
def with_checks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def use(*checks: Check) -> None:
        monkeypatch.setattr(doctor, "GROUPS", {"One": checks[:1], "Two": checks[1:]})

    return use


def test_a_check_that_fails_or_hangs_does_not_hide_the_others(with_checks: Callable[..., None]) -> None:
    checks = (hanging, failing, refusing, closed, fine)
    with_checks(*(Check(check.__name__, check, limit=0.5) for check in checks))
    started = time.monotonic()
    found = [finding for _, result in examine(Path()) for finding in result.findings]
    assert time.monotonic() - started < 30
    assert found == [
        fault("hanging: no answer within 0.5 s"),
        ok("before"),
        warning("failing: this could not be checked: RuntimeError: a bug"),
        fault("an invalid value"),
        fault("closed: /a/file: Permission denied"),
        ok("fine"),
    ]


def test_text_has_a_line_for_each_finding(
    with_checks: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with_checks(*(Check(check.__name__, check) for check in (fine, strange, broken)))
    assert print_text(examine(Path())) == 1
    assert capsys.readouterr().out == (
        "One\n"
        "  ✓ fine\n"
        "\n"
        "Two\n"
        "  ! strange\n"
        "    → do this\n"
        "  ✗ broken, see https://host/x?...\n"
        "\n"
        "1 fault and 1 warning\n"
    )


def test_json_has_the_same(with_checks: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    with_checks(*(Check(check.__name__, check) for check in (fine, strange, broken)))
    assert print_json(examine(Path())) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["faults"], document["warnings"]) == (1, 1)
    assert [check["group"] for check in document["checks"]] == ["One", "Two", "Two"]
    assert document["checks"][1]["findings"] == [
        {"level": "warning", "found": "strange", "remedy": "do this"}
    ]
    assert "secret" not in str(document)


def test_only_a_run_with_a_fault_is_stopped(with_checks: Callable[..., None]) -> None:
    said: list[str] = []
    quick = [Check(check.__name__, check, before_runs=True) for check in (fine, strange)]
    slow = Check("broken", broken)
    with_checks(*quick, slow)
    check_before_run(Path(), said.append)
    assert said == ["strange; do this"]
    with_checks(*quick, slow._replace(before_runs=True))
    with pytest.raises(InputError, match=r"^broken, see https://host/x\?\.\.\.\n`cxr doctor` shows all"):
        check_before_run(Path(), said.append)


def test_each_check_has_a_name_of_its_own_and_a_description() -> None:
    checks = [check for group in GROUPS for check in doctor._checks(group)]
    names = [check.name for check in checks]
    assert len(set(names)) == len(names) > 20
    assert {check.name for check in checks if check.before_runs} >= {"packages", "disks", "locks", "home"}


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(
    make_repository: Callable[[Path], Repository], tmp_path_factory: pytest.TempPathFactory
) -> Repository:
    return make_repository(tmp_path_factory.mktemp("doctor") / "Röntgen Müller")


def test_it_finds_many_faults_at_once(repository: Repository) -> None:
    (repository.folder / ".env").write_text("PREFECT_API_URL=http://127.0.0.1:9/api\n")
    variables = {
        "HTTPS_PROXY": "http://user:secret@127.0.0.1:9",
        "CUDA_VISIBLE_DEVICES": "GPU-00000000",
        "REQUESTS_CA_BUNDLE": "/nowhere",
    }
    try:
        done = cxr_doctor(repository, "--json", **variables)
    finally:
        (repository.folder / ".env").unlink()
    assert (done.returncode, done.stderr) == (1, "")
    document = json.loads(done.stdout)
    faulty = {
        check["check"]
        for check in document["checks"]
        if any(finding["level"] == "fault" for finding in check["findings"])
    }
    assert {"server", "proxies", "GPUs", "certificates"} <= faulty
    assert not faulty & {"git", "repository", "packages", "disks", "data source", "DVC remote", "branches"}
    assert "secret" not in done.stdout


def test_on_a_terminal_it_is_coloured(repository: Repository) -> None:
    own, terminal = pty.openpty()
    variables = environment() | {"TERM": "xterm", "COLUMNS": "60"}
    variables.pop("NO_COLOR", None)
    with subprocess.Popen(
        ["cxr", "doctor", "--quick"], cwd=repository.folder, env=variables, stdout=terminal, stderr=terminal
    ):
        os.close(terminal)
        output = b""
        try:
            while chunk := os.read(own, 4096):
                output += chunk
        except OSError:  # the other side is closed
            pass
    os.close(own)
    text = output.decode()
    assert "\033[1mInstallation\033[0m" in text
    assert "\033[32m✓\033[0m Python" in text
    assert max(len(re.sub("\033\\[\\d+m", "", line)) for line in text.splitlines()) <= 60 + len(
        str(repository.folder)
    )


def test_a_terminal_without_unicode_gets_ascii(repository: Repository) -> None:
    done = cxr_doctor(repository, "--quick", PYTHONIOENCODING="ascii:backslashreplace")
    assert "  + Python" in done.stdout
    assert done.stdout.isascii()


def test_a_project_in_a_subfolder_of_another_repository_is_a_fault(
    make_repository: Callable[[Path], Repository], tmp_path: Path
) -> None:
    project = make_repository(tmp_path / "outer" / "project")
    shutil.rmtree(project.folder / ".git")
    Repository(tmp_path / "outer").run("git", "init", "--quiet")
    done = cxr_doctor(project, "--quick")
    assert done.returncode == 1
    assert (
        f"  ✗ {tmp_path / 'outer'}: this git repository has no dvc.yaml at its top; "
        "the project needs a repository of its own\n"
    ) in done.stdout


# --- publishing ---------------------------------------------------------------------------------------------


@pytest.fixture
def empty(tmp_path: Path) -> Repository:
    repository = empty_repository(tmp_path / "empty")
    repository.commit("start")
    return repository


def test_a_branch_that_blocks_those_of_runs_is_a_fault(empty: Repository) -> None:
    assert next(iter(check_branches(empty.folder))).level is Level.OK
    empty.run("git", "branch", "retrain")
    with pytest.raises(InputError, match="git branch --move retrain OTHER"):
        list(check_branches(empty.folder))


def test_an_origin_must_accept_pushes(empty: Repository, tmp_path: Path) -> None:
    (alone,) = check_push(empty.folder)
    assert alone.found.startswith("git has no remote origin")
    origin = tmp_path / "origin.git"
    empty.run("git", "init", "--quiet", "--bare", str(origin))
    empty.run("git", "remote", "add", "origin", str(origin))
    (accepted,) = check_push(empty.folder)
    assert accepted == ok("origin answers and accepts pushes")
    assert empty.run("git", "ls-remote", "origin") == ""
    origin.rename(tmp_path / "elsewhere.git")
    (refused,) = check_push(empty.folder)
    assert refused.level is Level.WARNING
    assert "does not appear to be a git repository" in refused.found


# --- the start of a run -------------------------------------------------------------------------------------


def test_a_run_with_a_fault_ends_before_a_server_starts(repository: Repository, tmp_path: Path) -> None:
    faulty = Repository(repository.folder, environment() | {"PREFECT_HOME": "/proc/home"})
    output = retrain(faulty, "--name", "faulty", fails=True)
    lines = [line for line in output.splitlines() if "Warning" not in line and "warn" not in line]
    assert lines[-2].startswith("error: /proc/home, the folder of Prefect, cannot be written to: ")
    assert lines[-1] == "`cxr doctor` shows all checks"
    assert not (repository.folder / "runs" / ".checkouts").exists()
