"""The GPUs that stages may use, as the system reports them, without torch."""

import os
import re
import shutil
import subprocess
from functools import cache
from itertools import takewhile
from pathlib import Path

#: Where NVIDIA's driver lists its GPUs, a folder for each. WSL2 does not have it.
DRIVER = Path("/proc/driver/nvidia/gpus")

#: The device through which programs reach the driver. A container without GPUs lacks it, but sees that list.
CONTROL = Path("/dev/nvidiactl")

#: Files that only containers have, of Docker and of Podman, and a variable of Kubernetes.
IN_CONTAINER = (Path("/.dockerenv"), Path("/run/.containerenv"))
IN_KUBERNETES = "KUBERNETES_SERVICE_HOST"

#: Where WSL2 has nvidia-smi, which need not be on the PATH.
WSL = "/usr/lib/wsl/lib"

#: Seconds that nvidia-smi may take. Its first call loads the driver.
PATIENCE = 20.0


def visible_gpus() -> list[str]:
    """Return the GPUs that stages may use: those that CUDA_VISIBLE_DEVICES names, or else all."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(_count())] if visible is None else _named(visible)


def _named(variable: str) -> list[str]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names. As in CUDA, an invalid entry hides those after it."""
    entries = (entry.strip() for entry in variable.split(","))
    return list(takewhile(re.compile(r"\d+|(GPU|MIG)-\S+").fullmatch, entries))


@cache
def _count() -> int:
    """Return the number of NVIDIA GPUs, as the driver lists them, or else nvidia-smi."""
    if DRIVER.is_dir():
        hidden = _is_container() and not CONTROL.exists()
        return 0 if hidden else len(list(DRIVER.iterdir()))
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=WSL)
    if not program:
        return 0
    try:
        done = subprocess.run([program, "--list-gpus"], capture_output=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return 0 if done.returncode else len(re.findall(rb"^GPU \d+:", done.stdout, re.MULTILINE))


def _is_container() -> bool:
    return IN_KUBERNETES in os.environ or any(path.exists() for path in IN_CONTAINER)
