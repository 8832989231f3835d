import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.common.cores import in_order, in_threads
from tasks.support.cpus import _quotas, available_cores


def test_results_keep_their_order_and_few_jobs_are_submitted_ahead() -> None:
    asked: list[int] = []

    def jobs() -> Iterator[int]:
        for job in range(20):
            asked.append(job)
            yield job

    with ThreadPoolExecutor(4) as pool:
        for done, result in enumerate(in_order(pool, lambda job: job * job, jobs(), ahead=3), start=1):
            assert result == (done - 1) ** 2
            assert len(asked) <= done + 3
    assert done == 20


def test_jobs_are_generated_in_this_thread_and_run_in_others() -> None:
    makers = set()

    def jobs() -> Iterator[int]:
        for job in range(20):
            makers.add(threading.get_ident())
            yield job

    results = list(in_threads(lambda job: (job, threading.get_ident()), jobs(), at_a_time=3))
    assert [job for job, _ in results] == list(range(20))
    assert makers == {threading.get_ident()}
    assert threading.get_ident() not in {thread for _, thread in results}


def test_exceptions_of_jobs_and_threads_are_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda job: 1 // job, iter([1, 0, 2]), at_a_time=2))
    with pytest.raises(ZeroDivisionError):
        list(in_threads(abs, (1 // job for job in (1, 0, 2)), at_a_time=2))


def groups(root: Path, of_process: str, files: dict[str, str]) -> Path:
    """A file system in which the process is in these control groups."""
    for name, text in {"proc/self/cgroup": of_process, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu,cpuacct"
QUOTAS = {
    "docker --cpus 2": ("0::/\n", {f"{V2}/cpu.max": "200000 100000\n"}, {2.0}),
    "no limit": ("0::/\n", {f"{V2}/cpu.max": "max 100000\n"}, set()),
    "no file, as in the root group": ("0::/\n", {}, set()),
    "systemd CPUQuota=150% in a slice with 300%": (
        "0::/user.slice/run.scope\n",
        {
            f"{V2}/user.slice/cpu.max": "300000 100000\n",
            f"{V2}/user.slice/run.scope/cpu.max": "150000 100000\n",
        },
        {1.5, 3.0},
    ),
    "version 1": (
        "5:cpuset:/\n4:cpu,cpuacct:/docker/1a\n0::/\n",
        {f"{V1}/docker/1a/cpu.cfs_quota_us": "50000\n", f"{V1}/docker/1a/cpu.cfs_period_us": "100000\n"},
        {0.5},
    ),
    "version 1 in a container": (
        "4:cpu,cpuacct:/docker/1a\n",
        {f"{V1}/cpu.cfs_quota_us": "200000\n", f"{V1}/cpu.cfs_period_us": "100000\n"},
        {2.0},
    ),
    "version 1 without limit": (
        "4:cpu,cpuacct:/\n",
        {f"{V1}/cpu.cfs_quota_us": "-1\n", f"{V1}/cpu.cfs_period_us": "100000\n"},
        set(),
    ),
    "nonsense": ("0::/\n", {f"{V2}/cpu.max": "1 0\n"}, set()),
}


@pytest.mark.parametrize(("of_process", "files", "quotas"), QUOTAS.values(), ids=QUOTAS)
def test_quotas_of_control_groups_are_found(
    tmp_path: Path, of_process: str, files: dict[str, str], quotas: set[float]
) -> None:
    assert set(_quotas(groups(tmp_path, of_process, files))) == quotas


def test_other_systems_have_no_quotas(tmp_path: Path) -> None:
    assert list(_quotas(tmp_path)) == []


@pytest.mark.parametrize(
    ("quotas", "cores"), [([], 8), ([2.0], 2), ([2.7, 16.0], 2), ([0.5], 1), ([64.0], 8)]
)
def test_quota_limits_the_cores(monkeypatch: pytest.MonkeyPatch, quotas: list[float], cores: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("tasks.support.cpus._quotas", lambda _: iter(quotas))
    assert available_cores() == cores
