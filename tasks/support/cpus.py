"""The CPU cores that stages may use, as the system reports them."""

import os
from collections.abc import Iterator
from pathlib import Path


def available_cores() -> int:
    """Number of cores that this process may use, if the system reports it; otherwise all cores.

    A container started with `docker run --cpus 2` sees all cores, but may use the time of two.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(int, _quotas(Path("/")))]))


def _quotas(root: Path) -> Iterator[float]:
    """The CPU quotas of Linux' control groups that apply to this process, in cores."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            yield from _quotas_of(root / "sys/fs/cgroup", group, "cpu.max")
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", controllers):  # both exist on most systems
                folder = root / "sys/fs/cgroup" / mount
                yield from _quotas_of(folder, group, "cpu.cfs_quota_us", "cpu.cfs_period_us")


def _quotas_of(mount: Path, group: str, *files: str) -> Iterator[float]:
    """The quotas of a group and of all groups above it. In a container, its own group may be the mount."""
    own = Path(group.strip("/"))
    for folder in {mount / own, *(mount / above for above in own.parents)}:
        words = " ".join(_text(folder / file) for file in files).split()
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):  # not `max` or -1
            yield int(words[0]) / int(words[1])


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:  # another system, or not mounted
        return ""
