"""Faults of a real machine, injected into a real server, worker, git and DVC.

The tests of a class build on each other.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flows.deployment.automations import SILENCE
from flows.engine.runner import Outcome, StageRunner
from flows.repository.git import environment
from flows.serve import AUTOMATION
from tasks.support.slots import Slot, Slots
from tests.flows.conftest import Served, serving
from tests.flows.server import PrefectServer
from tests.helpers import Repository, cut_power, eventually

#: One training, and no branch.
SMALL = {"experiments": ["report1_bce"], "publish": "nowhere"}
TRAIN = "train@report1_bce-seed0"


def kill(process: psutil.Process) -> None:
    process.kill()
    psutil.wait_procs([process], timeout=60)


class TestInOrder:
    @pytest.mark.soak
    def test_the_second_of_two_runs_waits_for_the_first(self, served: Served) -> None:
        runs = [served.submit(**SMALL).id for _ in range(2)]
        eventually(
            "one waits",
            lambda: "AwaitingConcurrencySlot" in [served.run(run).state_name for run in runs],
        )
        first, second = sorted(map(served.finished, runs), key=lambda run: run.start_time)
        assert [first.state_name, second.state_name] == ["Completed", "Completed"]
        assert first.end_time <= second.start_time
        assert {task.state_name for task in served.tasks(second.id).values()} == {"Cached"}

    @pytest.mark.soak
    def test_a_run_goes_on_after_the_machine_has_slept(self, served: Served) -> None:
        run = served.submit(epochs=400, **SMALL)
        served.training(run.id)
        asleep = served.processes()
        for process in asleep:
            process.suspend()
        time.sleep(SILENCE.seconds + 60)  # longer than the silence after which a run counts as dead
        for process in asleep:
            process.resume()
        assert served.finished(run.id).state_name == "Completed"
        assert served.tasks(run.id)[TRAIN].run_count == 1

    @pytest.mark.soak
    def test_a_training_that_the_system_kills_is_retried(self, served: Served) -> None:
        run = served.submit(epochs=60, **SMALL)
        checkpoints = served.repository.folder / ".dvc/tmp/checkpoints"
        eventually("it has saved", lambda: list(checkpoints.glob("*.pt")))
        kill(served.training(run.id))
        assert served.finished(run.id).state_name == "Completed"
        training = served.tasks(run.id)[TRAIN]
        assert training.state_name == "Completed" and training.run_count == 2
        assert "Retry 1/2 will start 5 second(s) from now" in served.logs(run.id)
        assert re.search(r"resuming after epoch \d+, step", served.logs(run.id))

    @pytest.mark.soak
    def test_if_the_worker_is_killed_everything_ends_with_an_error(self, served: Served) -> None:
        run = served.submit(epochs=5000, **SMALL)
        served.training(run.id)
        began = time.monotonic()
        kill(served.part("flows.deployment.process_worker"))
        assert served.process.wait(40) == 1
        print(f"ended {time.monotonic() - began:.1f} s after the worker")
        log = served.repository.folder / "runs" / ".logs" / "worker.log"
        assert served.read_output().splitlines()[-1] == f"error: the worker ended unexpectedly; see {log}"
        assert served.processes() == []
        assert served.left_nothing()

        served.start()
        assert served.run(run.id).state_name == "Crashed"
        assert served.slots_taken() == 0

    @pytest.mark.soak
    def test_after_a_power_cut_leftovers_are_removed_and_results_reused(self, served: Served) -> None:
        within(served, seconds=75)  # a user may set this: two and a half heartbeats
        run = served.submit(epochs=40, **SMALL)
        training = served.training(run.id)
        orphans = [training, psutil.Process(training.ppid())]
        for orphan in orphans:
            orphan.suspend()  # or it might end on its own
        next_run = served.submit(**SMALL)
        served.becomes("AwaitingConcurrencySlot", next_run.id)
        cut_power(lambda: set(served.processes()) - set(orphans))
        served.process.wait(60)
        assert all(orphan.is_running() for orphan in orphans)
        assert not served.left_nothing()

        served.start()
        assert not any(orphan.is_running() for orphan in orphans)
        assert served.run(run.id).state_name == "Crashed"
        assert served.finished(next_run.id).state_name == "Completed"
        assert served.left_nothing()

        served.retry(run.id)
        assert served.finished(run.id).state_name == "Completed"
        states = {name: task.state_name for name, task in served.tasks(run.id).items()}
        assert states == dict.fromkeys(states, "Cached") | dict.fromkeys(
            (TRAIN, "evaluate@report1_bce-seed0", "compare", "report"), "Completed"
        )

    @pytest.mark.soak
    def test_a_run_without_heartbeats_is_marked_as_crashed(self, served: Served) -> None:
        run = served.submit(epochs=5000, **SMALL)
        served.training(run.id)
        waiting = served.submit(**SMALL)
        server = served.part("flows.deployment.guard")
        cut_power(lambda: set(served.processes()) - {server})
        served.process.wait(60)
        began = time.monotonic()
        state = served.run(run.id).state
        assert state and state.name == "Running", state
        crashed = served.becomes("Crashed", run.id)
        print(f"Crashed {time.monotonic() - began:.0f} s after the kill")
        assert crashed.state and "No heartbeat for" in (crashed.state.message or "")
        assert served.slots_taken() == 0

        served.start()
        assert not server.is_running()  # replaced by a new server
        assert served.finished(waiting.id).state_name == "Completed"
        assert served.left_nothing()


def within(served: Served, seconds: float) -> None:
    """Edit the automation, as on its page in the UI."""
    client = served.client._client
    every = client.post("/automations/filter", json={}).json()
    (automation,) = (one for one in every if one["name"] == AUTOMATION)
    changed = automation | {"trigger": automation["trigger"] | {"within": seconds}}
    kept = ("name", "description", "enabled", "trigger", "actions")
    client.put(f"/automations/{automation['id']}", json={key: changed[key] for key in kept})


@pytest.mark.soak
def test_a_run_survives_an_outage_of_its_server(
    make_prepared_repository: Callable[[Path], Repository], make_home: Callable[[Path], Path], tmp_path: Path
) -> None:
    home = make_home(tmp_path / "prefect")
    server = PrefectServer(home)
    try:
        server.start()
        with serving(
            make_prepared_repository(tmp_path / "repository"), home, PREFECT_API_URL=server.api
        ) as served:
            run = served.submit(epochs=60, **SMALL)
            served.training(run.id)
            server.kill()
            time.sleep(10)
            server.start()
            assert served.finished(run.id).state_name == "Completed"
            assert served.slots_taken() == 0
    finally:
        server.kill()


@pytest.mark.soak
def test_two_stages_of_one_checkout_run_in_parallel(
    make_repository: Callable[[Path], Repository], tmp_path: Path
) -> None:
    runner = StageRunner(make_repository(tmp_path / "repository").folder)
    slot = Slot(variables={}, locks=())

    def run(*stages: str) -> list[Outcome]:
        outcomes: dict[str, Outcome] = {}

        def one(stage: str) -> None:
            outcomes[stage] = runner.run(stage, slot, print, lambda event: None).outcome

        threads = [threading.Thread(target=one, args=[stage]) for stage in stages]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [outcomes[stage] for stage in stages]

    assert run("plan", "download") == [Outcome.RAN, Outcome.RAN]
    assert run("preprocess@32") == [Outcome.RAN]
    assert run("audit") == [Outcome.RAN]
    trainings = ("train@report1_bce-seed0", "train@report1_bce_iou-seed0")
    assert run(*trainings) == [Outcome.RAN, Outcome.RAN]
    assert run(*trainings) == [Outcome.CACHED, Outcome.CACHED]


#: Repeatedly acquires one of two units and creates a file with its name, which must not exist yet.
HOLDER = """
import os, sys, time
from pathlib import Path
from tasks.support.slots import Slots
import tasks.support.slots
tasks.support.slots.POLL = 0.01
slots = Slots(["one", "two"], 1, lambda units: {"UNIT": units[0]})
for _ in range(int(sys.argv[1])):
    with slots.acquire(lambda line: None) as slot:
        held = Path(slot.variables["UNIT"])
        held.touch(exist_ok=False)
        print(held, flush=True)
        time.sleep(float(sys.argv[2]))
        held.unlink()
"""


class TestSlots:
    @pytest.fixture
    def holder(self, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
        started: list[subprocess.Popen[str]] = []

        def start(times: int, seconds: float) -> "subprocess.Popen[str]":
            process = subprocess.Popen(
                [sys.executable, "-c", HOLDER, str(times), str(seconds)],
                cwd=tmp_path,
                env=environment() | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=subprocess.PIPE,
                text=True,
            )
            started.append(process)
            return process

        yield start
        for process in started:
            process.kill()
            process.communicate()

    def test_no_unit_is_used_twice_at_a_time(self, holder: Callable[..., "subprocess.Popen[str]"]) -> None:
        processes = [holder(40, 0.02) for _ in range(4)]
        outputs = [process.communicate(timeout=60)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * 4
        assert {line for lines in outputs for line in lines.split()} == {"one", "two"}

    def test_a_killed_process_releases_its_unit(
        self,
        holder: Callable[..., "subprocess.Popen[str]"],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        process = holder(1, 600)
        assert process.stdout and process.stdout.readline() == "one\n"
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        slots = Slots(["one"], 1, lambda units: {"UNIT": units[0]})
        waited: list[str] = []

        def let_go(line: str) -> None:
            waited.append(line)
            process.send_signal(signal.SIGKILL)

        with slots.acquire(let_go) as slot:
            assert slot.variables["UNIT"] == "one"
        assert waited == ["waiting for a free slot: other runs on this machine use one"]
