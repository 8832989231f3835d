import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from flows.repository.revision import Training
from tasks.settings.params import Params, parse_params
from tasks.support.cli import InputError
from tasks.support.slots import VARIABLE, Slot, Slots, own_slot, slots_for
from tests.helpers import trainings_of


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use separate lock files, since other processes may hold those of the machine."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def say_nothing(line: str) -> None:
    pass


@pytest.fixture
def with_threads(tiny_params_text: str) -> Callable[[int], dict[str, Training]]:
    def trainings(threads: int) -> dict[str, Training]:
        return trainings_of(parse_params(tiny_params_text.replace("threads: 1", f"threads: {threads}")))

    return trainings


def test_the_number_of_cpu_slots_follows_from_the_threads_of_a_training(
    with_threads: Callable[[int], dict[str, Training]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    fits = {threads: len(slots_for(with_threads(threads))) for threads in (1, 2, 3, 4, 8, 0)}
    assert fits == {1: 4, 2: 2, 3: 1, 4: 1, 8: 1, 0: 1}


def with_gpus(monkeypatch: pytest.MonkeyPatch, gpus: str, cores: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))


def test_each_gpu_is_a_slot_with_its_share_of_the_threads(
    tiny_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, "2,5", 8)
    slots = slots_for(trainings_of(tiny_params))
    assert len(slots) == 2
    with slots.acquire(say_nothing) as first, slots.acquire(say_nothing) as second:
        assert [slot.variables for slot in (first, second)] == [
            {"CUDA_VISIBLE_DEVICES": "2", "OMP_NUM_THREADS": "4", VARIABLE: "gpu-2"},
            {"CUDA_VISIBLE_DEVICES": "5", "OMP_NUM_THREADS": "4", VARIABLE: "gpu-5"},
        ]


def test_a_training_in_several_processes_takes_one_gpu_per_process(
    tiny_params_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, "0,1,2", 6)
    slots = slots_for(trainings_of(parse_params(tiny_params_text.replace("processes: 1", "processes: 2"))))
    with (
        slots.acquire(say_nothing, "train@report1_bce-seed0") as two,
        slots.acquire(say_nothing, "baselines") as one,
    ):
        assert (two.variables["CUDA_VISIBLE_DEVICES"], two.variables["OMP_NUM_THREADS"]) == ("0,1", "4")
        assert (one.variables["CUDA_VISIBLE_DEVICES"], one.variables["OMP_NUM_THREADS"]) == ("2", "2")


@pytest.mark.parametrize(
    ("visible", "count"), [("0, 1", 2), ("1,-1,2", 1), ("GPU-8932f937,MIG-5c1", 2), ("3,NoDevFiles", 1)]
)
def test_gpus_are_counted_as_cuda_does(
    tiny_params: Params, monkeypatch: pytest.MonkeyPatch, visible: str, count: int
) -> None:
    with_gpus(monkeypatch, visible, 4)
    assert len(slots_for(trainings_of(tiny_params))) == count


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles", "none"])
def test_hidden_gpus_are_not_used(tiny_params: Params, monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with slots_for(trainings_of(tiny_params)).acquire(say_nothing) as slot:
        assert slot.variables == {VARIABLE: "core-0"}


def two_of_four() -> Slots:
    return Slots(
        [f"core-{n}" for n in range(4)], per_stage=2, variables=lambda units: {"UNITS": ",".join(units)}
    )


def test_a_stage_without_a_free_slot_logs_once_and_waits_for_the_next_one() -> None:
    lines: list[str] = []
    got: list[Slot] = []

    def third() -> None:
        with two_of_four().acquire(lines.append) as slot:
            got.append(slot)

    waiting = threading.Thread(target=third)
    with two_of_four().acquire(say_nothing) as first:
        with two_of_four().acquire(say_nothing) as second:
            assert {first.variables["UNITS"], second.variables["UNITS"]} == {"core-0,core-1", "core-2,core-3"}
            waiting.start()
            time.sleep(1.2)
            assert not got
        waiting.join(10)
    assert [slot.variables["UNITS"] for slot in got] == ["core-2,core-3"]
    assert lines == ["waiting for a free slot: other runs on this machine use core-0, core-1, core-2, core-3"]


def test_a_child_that_inherits_the_locks_keeps_the_slot_taken() -> None:
    slots = Slots(["gpu-0"], per_stage=1, variables=lambda _: {})
    with slots.acquire(say_nothing) as slot:
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=slot.locks
        )
    taken = threading.Thread(target=lambda: slots.acquire(say_nothing).__enter__())
    taken.start()
    taken.join(1.2)
    assert taken.is_alive()
    child.communicate(b"\n")
    taken.join(10)
    assert not taken.is_alive()


def lock_folder(tmp_path: Path) -> Path:
    return tmp_path / f"covid-qu-ex-slots-{os.getuid()}"


def link_to_another(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to("elsewhere")


def open_to_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def another_users(folder: Path) -> None:
    if os.getuid():
        pytest.skip("only root can give a folder to another user")
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)


@pytest.mark.parametrize("prepare", [link_to_another, open_to_all, another_users])
def test_a_lock_folder_prepared_by_another_user_is_refused(
    prepare: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = lock_folder(tmp_path)
    prepare(folder)
    with pytest.raises(InputError, match="must be a folder that belongs to you and has mode 0700"):
        two_of_four()
    assert not list(folder.iterdir())


def test_lock_files_are_not_truncated_and_symlinks_are_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("bytes")
    slots = two_of_four()
    (lock_folder(tmp_path) / "choosing").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"), slots.acquire(say_nothing):
        pass
    assert precious.read_text() == "bytes"


def test_a_training_that_nobody_started_in_a_slot_takes_one(
    tiny_params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It waits for the GPU that another one uses, and sees no other."""
    with_gpus(monkeypatch, "2,5", 8)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("tasks.support.slots.POLL", 0.01)
    training = next(iter(trainings_of(tiny_params).values()))
    with own_slot("a", training):
        assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"]) == ("2", "4")
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ.get("OMP_NUM_THREADS")) == ("2,5", None)
    slots = slots_for({"a": training})
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        first.enter_context(slots.acquire(say_nothing))
        stack.enter_context(slots.acquire(say_nothing))
        freed = threading.Timer(0.1, first.close)
        freed.start()
        with own_slot("b", training):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
        freed.join()
    assert "waiting for a free slot: other runs on this machine use gpu-2, gpu-5" in capsys.readouterr().out


def test_a_training_of_a_flow_keeps_the_slot_it_was_started_in(
    tiny_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, "2,5", 8)
    training = next(iter(trainings_of(tiny_params).values()))
    slots = slots_for({"a": training})
    with slots.acquire(say_nothing), slots.acquire(say_nothing) as slot:
        for variable, value in slot.variables.items():
            monkeypatch.setenv(variable, value)
        with own_slot("a", training):  # would wait forever
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"


def test_jobs_of_a_cluster_have_slots_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    for job in ("7", "8"):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        held.append(Slots(["gpu-0"], per_stage=1, variables=lambda _: {}))
    with held[0].acquire(pytest.fail), held[1].acquire(pytest.fail):  # they say so if they wait
        pass
