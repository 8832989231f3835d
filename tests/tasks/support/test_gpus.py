"""How GPUs are counted without torch. Systems without GPUs stand in for those with some."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.support import gpus
from tasks.support.gpus import visible_gpus

LISTED = """\
GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-5a0d6d5e)
GPU 1: NVIDIA H200 (UUID: GPU-8932f937)
  MIG 1g.18gb     Device  0: (UUID: MIG-5c1)
"""


@pytest.fixture(autouse=True)
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A system without GPUs, whose files are in a folder."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(gpus, "DRIVER", tmp_path / "driver")
    monkeypatch.setattr(gpus, "CONTROL", tmp_path / "nvidiactl")
    monkeypatch.setattr(gpus, "IN_CONTAINER", (tmp_path / ".dockerenv", tmp_path / ".containerenv"))
    monkeypatch.delenv(gpus.IN_KUBERNETES, raising=False)
    monkeypatch.setattr(gpus, "WSL", str(tmp_path / "wsl"))
    gpus._count.cache_clear()
    yield tmp_path
    gpus._count.cache_clear()


def add_nvidia_smi(system: Path, script: str) -> None:
    program = system / "wsl" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_the_driver_lists_them(system: Path) -> None:
    assert visible_gpus() == []
    gpus._count.cache_clear()
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        (system / "driver" / bus).mkdir(parents=True)
    assert visible_gpus() == ["0", "1"]


@pytest.mark.parametrize("mark", [".dockerenv", ".containerenv", "variable"])
def test_a_container_without_devices_has_none(
    mark: str, system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (system / "driver" / "0000:01:00.0").mkdir(parents=True)
    if mark == "variable":
        monkeypatch.setenv(gpus.IN_KUBERNETES, "10.0.0.1")
    else:
        (system / mark).touch()
    assert visible_gpus() == []
    gpus._count.cache_clear()
    (system / "nvidiactl").touch()
    assert visible_gpus() == ["0"]


def test_on_wsl_nvidia_smi_lists_them(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_nvidia_smi(system, f"[ $1 = --list-gpus ] && /bin/cat <<END\n{LISTED}END")
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert visible_gpus() == ["1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


@pytest.mark.parametrize(
    "script", ["echo 'Failed to initialize NVML' && exit 9", "exec /bin/sleep 60", "echo 'No'"]
)
def test_an_nvidia_smi_that_fails_counts_none(
    script: str, system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "PATIENCE", 0.5)
    add_nvidia_smi(system, script)
    assert visible_gpus() == []
