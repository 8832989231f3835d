import copy
import ctypes
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tasks.networks import device
from tasks.networks.device import Compute, compiled, set_up
from tasks.support.cli import InputError
from tests.helpers import ROOT


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x).mean(dim=1)
        return y


@pytest.mark.parametrize(
    ("value", "threads"),
    [("3", 3), (" 2 ,1", 2), *((word, 5) for word in ("", "auto", "0", "-1", "1.5", ",2", "\u00b2"))],
)
def test_threads_are_those_of_the_environment_if_it_has_a_positive_number(
    monkeypatch: pytest.MonkeyPatch, value: str, threads: int
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    monkeypatch.setattr("tasks.networks.device.available_cores", lambda: 5)
    try:
        set_up(0, "fp32", 0)
        assert torch.get_num_threads() == threads
        set_up(0, "fp32", 4)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.soak
@pytest.mark.skipif(not shutil.which("g++"), reason="requires a C++ compiler")
def test_compiled_network_gives_the_same_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compute = set_up(0, "fp32", 1)
    plain = Small()
    fused = compiled(copy.deepcopy(plain), "fused", compute, 1)
    x = torch.rand(2, 1, 16, 16)
    outputs = [network(x) for network in (plain, fused)]
    torch.testing.assert_close(outputs[1], outputs[0])
    for output in outputs:
        output.square().sum().backward()
    for own, other in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-3)
    assert list(tmp_path.rglob("*.so"))  # it was compiled


def test_auto_compiles_nothing_on_a_cpu() -> None:
    network, compute = nn.Conv2d(1, 1, 1), set_up(0, "fp32", 1)
    assert compute.device.type != "cpu" or compiled(network, "auto", compute, 10**9) is network
    assert compiled(network, "none", compute, 10**9) is network


def test_missing_compiler_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(
        InputError, match=r"compile: fused needs a C\+\+ compiler \(g\+\+\), and none was found"
    ):
        compiled(nn.Conv2d(1, 1, 1), "fused", set_up(0, "fp32", 1), 1)


@pytest.fixture
def noexec(monkeypatch: pytest.MonkeyPatch) -> str:
    """A temporary folder that is mounted with noexec."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    folder = next((mount[1] for mount in mounts if "noexec" in mount[3].split(",")), "")
    if not folder:
        pytest.skip("needs a file system that is mounted with noexec")
    monkeypatch.setattr("tempfile.tempdir", folder)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(device, "_triton_works", lambda _: True)
    return folder


def test_auto_does_not_compile_where_compiled_programs_cannot_run(noexec: str) -> None:
    network = nn.Conv2d(1, 1, 1)
    assert compiled(network, "auto", Compute(torch.device("cuda"), "fp32"), 10**9) is network


def test_compiling_where_compiled_programs_cannot_run_is_an_error(
    noexec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, compute = nn.Conv2d(1, 1, 1), set_up(0, "fp32", 1)
    with pytest.raises(InputError) as refused:
        compiled(network, "fused", compute, 1)
    assert str(refused.value) == (
        f"compile: fused needs a folder for compiled programs, but {noexec} is mounted with noexec; "
        "set TMPDIR to a folder on another disk, or set compile: none"
    )
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "new"))
    assert compiled(network, "fused", compute, 1) is not network


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU of this machine")
def test_a_gpu_that_torch_cannot_use_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device._warn_of_unused_gpu.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    set_up(0, "fp32", 1)
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for _ in range(2):
        assert set_up(0, "fp32", 1).device.type == "cpu"
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning: a GPU is visible, but torch {torch.__version__} uses the CPU")
    assert line.endswith("; `cxr doctor` says what to do")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="requires glibc")
def test_step_reuses_the_memory_of_the_previous_step() -> None:
    set_up(0, "fp32", 1)
    network, x = Small(), torch.rand(16, 1, 256, 256)  # maps of 16 MiB

    def page_faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        network(x).sum().backward()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    for _ in range(3):
        page_faults()
    pages_of_a_map = (16 << 20) // resource.getpagesize()
    # One of the half dozen feature maps of a step may not fit into any freed block.
    assert sum(page_faults() for _ in range(5)) < 5 * 2 * pages_of_a_map


def test_set_up_is_deterministic_and_does_not_load_the_compiler() -> None:
    """Loading the compiler would add two seconds to each evaluation."""
    command = """if True:
        import sys, torch
        from tasks.networks.device import set_up
        set_up(0, "fp32", 1)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert not {"sympy", "torch._dynamo", "torch._inductor"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=True)
