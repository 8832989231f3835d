"""How many CPU cores there are to use."""

import os


def available_cores() -> int:
    """The cores that this process may run on, where the system tells; else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
