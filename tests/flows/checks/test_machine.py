"""Processors, GPUs, memory, disks and locks: really faulty ones, where a test can make them."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from flows.checks import machine
from flows.checks.check import Finding, Level
from flows.checks.machine import (
    check_compiler,
    check_cores,
    check_disks,
    check_gpus,
    check_locks,
    check_memory,
    check_shared_memory,
    check_writing,
    memory_limit,
)
from flows.repository.git import environment
from tests.helpers import ROOT

#: A folder that not even root can write to, on a file system without free space.
UNWRITABLE = Path("/proc")

#: A library whose `flock` behaves as on a file system without locks.
WITHOUT_LOCKS = """
#include <errno.h>
int flock(int file, int operation) { errno = ENOSYS; return -1; }
"""


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


def found_in_a_process(check: str, **variables: str) -> list[Finding]:
    """Run a check in a process with these environment variables."""
    code = (
        "import json, pathlib; from flows.checks import machine; "
        f"print(json.dumps(list(machine.{check}(pathlib.Path.cwd()))))"
    )
    output = subprocess.check_output(
        [sys.executable, "-c", code], cwd=ROOT, env=environment() | variables, text=True
    )
    return [Finding(Level(level), *words) for level, *words in json.loads(output)]


@pytest.mark.parametrize("check", [check_cores, check_shared_memory, check_writing, check_locks, check_gpus])
def test_this_machine_is_fine(
    check: Callable[[Path], Iterable[Finding]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert only(check(tmp_path)).level is Level.OK


def test_cores_that_a_quota_or_affinity_takes_away_are_named() -> None:
    all_cores = os.sched_getaffinity(0)
    if len(all_cores) < 2:
        pytest.skip("needs two cores")
    os.sched_setaffinity(0, {min(all_cores)})
    try:
        found = [finding.found for finding in check_cores(Path())]
    finally:
        os.sched_setaffinity(0, all_cores)
    assert found == [f"1 CPU cores of {os.cpu_count()}, because of a CPU quota or affinity"]


def test_more_threads_than_cores_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "9999,2")
    _, finding = check_cores(Path())
    assert finding.level is Level.WARNING
    assert finding.found.startswith("OMP_NUM_THREADS is 9999")


@pytest.mark.parametrize(
    ("group", "files", "limit"),
    [
        ("0::/a/b", {"a/memory.max": "3000", "a/b/memory.max": "max", "memory.max": "9000"}, 3000),
        ("4:memory:/a", {"memory/a/memory.limit_in_bytes": "2000", "memory/memory.limit_in_bytes": "1"}, 1),
        ("0::/", {"memory.max": "max"}, float("inf")),
    ],
)
def test_the_memory_limit_is_the_lowest_of_all_groups(
    group: str, files: dict[str, str], limit: float, tmp_path: Path
) -> None:
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()} | {"proc/self/cgroup": group}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert memory_limit(tmp_path) == limit


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_limit", lambda: 500e6)
    finding = only(check_memory(Path()))
    assert (finding.level, finding.found) == (
        Level.WARNING,
        "500 MB of memory are free: the system may end a training",
    )


def test_shared_memory_that_cannot_be_written_to_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SHARED", UNWRITABLE)
    finding = only(check_shared_memory(Path()))
    assert finding.level is Level.FAULT
    assert finding.found.startswith("/proc cannot be written to: ")


def test_little_shared_memory_is_a_warning_with_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SHARED_MEMORY", 1e18)
    assert only(check_shared_memory(Path())).level is Level.OK
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    finding = only(check_shared_memory(Path()))
    assert finding.level is Level.WARNING
    assert finding.found.endswith(": trainings in several processes may fail")


def test_a_gpu_that_torch_cannot_use_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-00000000-0000-0000-0000-000000000000")
    finding = only(check_gpus(ROOT))
    assert finding.level is Level.FAULT
    assert finding.found.startswith("1 GPU visible, but torch ")
    assert "CUDA_VISIBLE_DEVICES=" in finding.remedy


def test_a_torch_without_cuda_is_found_without_loading_it(tmp_path: Path) -> None:
    broken = tmp_path / "torch"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise AssertionError('loaded')\n")
    version = broken / "version.py"
    version.write_text("cuda: Optional[str] = None\nhip: Optional[str] = None\n")
    variables = {"PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "0,1"}
    finding = only(found_in_a_process("check_torch_build", **variables))
    assert finding.level is Level.FAULT
    assert finding.found.startswith("2 GPUs visible, but torch was built without CUDA")
    version.write_text("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n")
    assert found_in_a_process("check_torch_build", **variables) == []


def test_a_temporary_folder_without_execution_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    folder = next((mount[1] for mount in mounts if "noexec" in mount[3].split(",")), None)
    if not folder:
        pytest.skip("needs a file system that is mounted with noexec")
    monkeypatch.setattr("tempfile.tempdir", folder)
    assert list(check_compiler(Path())) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    finding = only(check_compiler(Path()))
    assert finding.found == f"{folder} is mounted with noexec, so compiled trainings fail"


def test_a_full_disk_is_a_fault() -> None:
    finding = next(iter(check_disks(UNWRITABLE)))
    assert finding[:2] == (Level.FAULT, "0 MB are free on the disk of /proc")


def test_a_folder_that_cannot_be_written_to_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert only(check_writing(tmp_path)).level is Level.OK
    monkeypatch.setattr("tempfile.tempdir", str(UNWRITABLE))
    finding = only(check_writing(tmp_path))
    assert finding.level is Level.FAULT
    assert finding.found.startswith("/proc cannot be written to: ")


def test_a_folder_that_others_own_is_a_fault() -> None:
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        found = [finding.found for finding in check_writing(folder)]
    finally:
        if root:
            os.seteuid(0)
        folder.rmdir()
    assert f"{folder} cannot be written to: Permission denied" in found


def test_a_file_system_without_locks_is_a_fault(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if not compiler:
        pytest.skip("needs gcc")
    source, library = tmp_path / "flock.c", tmp_path / "flock.so"
    source.write_text(WITHOUT_LOCKS)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    findings = found_in_a_process("check_locks", LD_PRELOAD=str(library))
    assert {finding.level for finding in findings} == {Level.FAULT}
    assert findings[0].found == f"the file system of {ROOT} has no locks, which keep runs apart"
