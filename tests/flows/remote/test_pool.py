"""Stages on other machines, with injected faults.

The tests of a class build on each other.
"""

import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun

from flows.engine.pipeline import Pipeline
from flows.remote.checkpoints import CHECKPOINTS
from flows.remote.places import pool_of
from flows.remote.pool import RemoteRun
from flows.remote.stage_request import StageRequest, versions
from flows.repository.revision import Training
from flows.stage import RefusedError, _check_versions
from tests.flows.cluster import AUTH, Cluster, Host, Program
from tests.helpers import Repository, eventually, with_cache_of
from tests.postgresql import PASSWORD
from tests.s3 import SECRET

TRAIN = "train@report1_bce-seed0"
ELSEWHERE = ("--pool", "train@*=gpu")
ONE = ("--experiments", "report1_bce")


def test_the_longest_matching_pattern_selects_the_pool() -> None:
    pools = {"train@*": "gpu", "train@combined-*": "large", "*": "cpu"}
    stages = ("train@combined-seed0", "train@report2-seed0", "evaluate@combined-seed0")
    assert [pool_of(stage, pools) for stage in stages] == ["large", "gpu", "cpu"]
    assert pool_of("report", {"train@*": "gpu"}) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"stage": "train@x; touch /tmp/x"},
        {"stage": "$(touch x)"},
        {"stage": "--all-pipelines"},
        {"commit": "main"},
        {"commit": "--upload-pack=touch x"},
        {"run": "../../heads/main"},
    ],
)
def test_a_request_accepts_names_but_no_commands(wrong: dict[str, str]) -> None:
    right = {"stage": TRAIN, "commit": "0" * 40, "run": "6a4b8b3e-55a4-4a3e-9a37-9a1c2a1f0c57"}
    assert StageRequest.model_validate(right | {"versions": versions()})
    with pytest.raises(ValueError, match="validation error"):
        StageRequest.model_validate(right | wrong | {"versions": versions()})


def test_a_stage_is_refused_if_versions_differ() -> None:
    _check_versions(versions())
    with pytest.raises(RefusedError, match=r"^versions differ from the run's: torch \S+, not 9\.9\.9$"):
        _check_versions(versions() | {"torch": "9.9.9"})


def test_a_request_of_a_run_with_newer_code_is_refused_and_no_error() -> None:
    newer = {"stage": TRAIN, "commit": "0" * 40, "run": "6a4b8b3e-55a4-4a3e-9a37-9a1c2a1f0c57", "limit": 3}
    request = StageRequest.model_validate(newer | {"versions": versions() | {"protocol": "999"}})
    with pytest.raises(RefusedError, match=r"protocol 2, not 999; `git pull` on the older machine"):
        _check_versions(request.versions)


@pytest.mark.parametrize(("all_threads", "most"), [((2, 4), 4), ((2, 0), 0), ((0, 0), 0)])
def test_a_request_says_what_the_stage_reads_and_which_slot_it_needs(
    tmp_path: Path, all_threads: tuple[int, int], most: int
) -> None:
    size: dict[str, Any] = {
        "experiment": "x",
        "epochs": 1,
        "image_size": 32,
        "width": 4,
        "train_classes": ("COVID-19",),
    }
    trainings = {
        f"x-seed{number}": Training(**size, threads=threads, processes=number + 1)
        for number, threads in enumerate(all_threads)
    }
    upstream = {
        "train@x-seed1": {"plan", "audit"},
        "evaluate@x-seed1": {"train@x-seed1"},
        "report": set[str](),
    }
    run = "6a4b8b3e-55a4-4a3e-9a37-9a1c2a1f0c57"
    remote_run = RemoteRun(tmp_path, Pipeline(upstream, [], frozenset()), trainings, tmp_path, run, print)
    asked = {stage: remote_run._request(stage, "0" * 40) for stage in upstream}
    assert [one.upstream for one in asked.values()] == [("audit", "plan"), ("train@x-seed1",), ()]
    assert [one.processes for one in asked.values()] == [2, 2, 1]
    assert {one.threads for one in asked.values()} == {most}


@pytest.fixture(scope="module")
def parent(cluster: Cluster) -> Host:
    return cluster.host("parent")


@pytest.fixture(scope="module")
def other(cluster: Cluster) -> Host:
    """The machine of a second user."""
    return cluster.host("other")


@pytest.fixture(scope="module")
def workers(cluster: Cluster) -> list[Host]:
    """Two machines with one core each, running workers."""
    hosts = [cluster.host(name, core) for core, name in enumerate(("gpu-1", "gpu-2"))]
    for program in [host.worker("gpu", limit=1) for host in hosts]:
        program.wait_for_output("stages of pool gpu at a time")
    return hosts


def of(cluster: Cluster, name: str) -> FlowRun:
    """Return the latest run with that name."""
    return next(run for run in reversed(cluster.user.runs("retrain")) if run.name == name)


def stages(cluster: Cluster, name: str) -> list[FlowRun]:
    """Return the stage runs that a run has created."""
    return [run for run in cluster.user.runs("stage") if name in run.tags]


def where(cluster: Cluster, name: str, stage: str = TRAIN) -> str:
    """Return the message of a stage's task, which names the machine."""
    task = cluster.user.tasks(of(cluster, name).id)[stage]
    assert task.state
    return task.state.message or ""


def training(cluster: Cluster, host: Host, name: str) -> UUID:
    """Wait until a host trains, and return the id of its stage run."""
    eventually(f"{host.name} trains", lambda: host.processes("tasks.train"))
    return stages(cluster, name)[-1].id


def saved(cluster: Cluster) -> set[str]:
    """Return the keys of the stages with checkpoints on the remote."""
    return {path.split("/")[1] for path in cluster.objects(CHECKPOINTS)}


def lock(repository: Repository, name: str) -> str:
    return repository.run("git", "show", f"retrain/{name}:dvc.lock")


class TestInOrder:
    def test_trainings_spread_over_machines_and_give_the_same_bytes(
        self, cluster: Cluster, parent: Host, workers: list[Host], finished_repository: Repository
    ) -> None:
        with_cache_of(finished_repository, parent.repository, "train", "evaluate", "compare", "report")
        everything = ("--pool", "train@*=gpu", "--pool", "evaluate@*=gpu", "--pool", "report=gpu")
        before = cluster.requests()
        output = parent.retrain("--name", "spread", *everything).finish(400)
        assert "report runs on this machine: DVC cannot transfer its outputs" in output
        trainings = ("train@report1_bce-seed0", "train@report1_bce_iou-seed0")
        messages = [where(cluster, "spread", name) for name in trainings]
        assert sorted(message.partition(":")[0] for message in messages) == ["on gpu-1", "on gpu-2"]
        tasks = cluster.user.tasks(of(cluster, "spread").id)
        for run in stages(cluster, "spread"):  # nested in the UI
            assert run.parent_task_run_id == tasks[run.name.partition(" of ")[0]].id
        assert cluster.refs().keys() == {"refs/heads/main"}
        assert cluster.objects(CHECKPOINTS) == []
        assert len(cluster.objects("runs")) == 4  # entries of its own stages only
        assert_stages_cost_few_requests(cluster.requests() - before, 4)

        alone = finished_repository  # by `dvc repro`
        assert lock(parent.repository, "spread") == alone.read("dvc.lock")
        shown = parent.repository.run("git", "show", "retrain/spread:metrics.json")
        assert shown == alone.read("metrics.json")

    @pytest.mark.soak
    def test_another_machine_reuses_results_without_requesting_a_stage(
        self, cluster: Cluster, parent: Host, other: Host, workers: list[Host]
    ) -> None:
        before = len(cluster.user.runs("stage"))
        other.retrain("--name", "again", *ELSEWHERE).finish()
        assert len(cluster.user.runs("stage")) == before
        assert cluster.user.tasks(of(cluster, "again").id)[TRAIN].state_name == "Cached"
        assert lock(other.repository, "again") == lock(parent.repository, "spread")

    @pytest.mark.soak
    def test_two_more_seeds_train_side_by_side_and_the_first_is_cached(
        self, cluster: Cluster, parent: Host, workers: list[Host]
    ) -> None:
        parent.retrain("--name", "seeds", "--set", "training.seeds=3", *ONE, *ELSEWHERE).finish(400)
        assert cluster.user.tasks(of(cluster, "seeds").id)[TRAIN].state_name == "Cached"
        ran = {run.name.partition(" of ")[0]: run for run in stages(cluster, "seeds")}
        others = ["train@report1_bce-seed1", "train@report1_bce-seed2"]
        assert sorted(ran) == others
        first, second = (ran[name] for name in others)
        assert first.start_time and first.end_time and second.start_time and second.end_time
        assert first.start_time < second.end_time and second.start_time < first.end_time
        machines = [where(cluster, "seeds", name).partition(":")[0] for name in others]
        assert sorted(machines) == ["on gpu-1", "on gpu-2"]

    @pytest.mark.soak
    def test_two_runs_that_need_the_same_stage_train_once(
        self, cluster: Cluster, parent: Host, other: Host, workers: list[Host]
    ) -> None:
        hosts = [parent, other]
        runs = [host.retrain("--name", host.name, "--set", "epochs=3", *ONE, *ELSEWHERE) for host in hosts]
        for run in runs:
            run.finish(400)
        locks = {lock(host.repository, host.name) for host in hosts}
        assert len(locks) == 1
        ran = [run for host in hosts for run in stages(cluster, host.name) if run.state_name == "Completed"]
        assert [run.name.partition(" of ")[0] for run in ran] == [TRAIN]

    @pytest.mark.soak
    def test_cancelling_a_run_ends_its_stages_on_other_machines(
        self, cluster: Cluster, parent: Host, workers: list[Host]
    ) -> None:
        run = parent.retrain("--name", "cancelled", "--set", "epochs=5000", *ELSEWHERE)
        for host in workers:
            training(cluster, host, "cancelled")
        run.stop(signal.SIGINT)
        began = time.monotonic()
        eventually(
            "training has stopped",
            lambda: not any(host.processes("tasks.train") for host in workers),
            timeout=30,
        )
        print(f"ended {time.monotonic() - began:.1f} s after the parent")
        for stage in stages(cluster, "cancelled"):
            assert cluster.user.finished(stage.id).state_name == "Cancelled"
        assert cluster.refs().keys() == {"refs/heads/main"}

    def test_a_flow_run_cannot_execute_arbitrary_commands(
        self, cluster: Cluster, workers: list[Host], tmp_path: Path
    ) -> None:
        deployment = cluster.user.client.read_deployment_by_name("stage/gpu")
        right = {"stage": TRAIN, "run": "6a4b8b3e-55a4-4a3e-9a37-9a1c2a1f0c57", "versions": versions()}

        def ask(job_variables: dict[str, Any] | None = None, **wrong: str) -> str:
            body = {
                "parameters": {"request": right | {"commit": "0" * 40} | wrong},
                "job_variables": job_variables or {},
            }
            made = cluster.user.client._client.post(
                f"/deployments/{deployment.id}/create_flow_run", json=body
            )
            return str(made.json()["id"])

        with pytest.raises(httpx.HTTPStatusError, match=r"409|422"):
            ask(stage="train@x; touch /tmp/x")
        deep = {"command": f"touch {tmp_path}/made", "env": {"GIT_SSH_COMMAND": f"touch {tmp_path}/made"}}
        run = ask(job_variables=deep)
        ended = cluster.user.finished(UUID(run))
        assert ended.state and ended.state_name == "Interrupted"
        assert "origin no longer has commit 0000000000" in (ended.state.message or "")
        assert not (tmp_path / "made").exists()


#: Requests whose number depends on the time that a run takes. A stage's run is created once the server has
#: recorded the task that it belongs to, for which the parent looks several times.
REPEATED = (
    "/filter",
    "/logs/",
    "/artifacts/ID",
    "/heartbeat",
    "/get_scheduled_flow_runs",
    "/task_runs/ID",
)


def assert_stages_cost_few_requests(requests: Counter[str], stages: int) -> None:
    """Check the requests of a run that do not become more with the time that it takes."""
    each = {
        request: number / stages for request, number in requests.items() if not request.endswith(REPEATED)
    }
    # The server refuses a flow run until it has recorded the task run above it.
    assert each["POST /deployments/ID/create_flow_run"] == 1, each
    assert each["POST /flow_runs/ID/set_state"] <= 6, each
    assert sum(each.values()) <= 45, each


def silence(cluster: Cluster, seconds: float) -> None:
    """Change after how many seconds without an event a stage is crashed, as on the automation's page."""
    client = cluster.user.client._client
    for automation in client.post("/automations/filter", json={}).json():
        if automation["name"] == "Mark unresponsive stages in gpu as crashed":
            changed = automation | {"trigger": automation["trigger"] | {"within": seconds}}
            kept = ("name", "description", "enabled", "trigger", "actions")
            client.put(f"/automations/{automation['id']}", json={key: changed[key] for key in kept})


class TestFaults:
    """Each test has its own run. The stages before training are in the DVC cache of the parent."""

    TRAINING = "train@report1_bce-seed7"

    def run(self, parent: Host, name: str, *changes: str) -> Program:
        return parent.retrain("--name", name, "--set", "training.seed=7", *changes, *ONE, *ELSEWHERE)

    @pytest.mark.soak
    def test_a_training_continues_on_another_machine_after_a_power_cut(
        self, cluster: Cluster, parent: Host, workers: list[Host]
    ) -> None:
        silence(cluster, 40)
        before = saved(cluster)  # by cancelled runs, which might be resumed
        run = self.run(parent, "power", "--set", "epochs=1500")
        eventually("a checkpoint is on the remote", lambda: saved(cluster) - before)
        trained = parent.repository.folder / "runs" / ".checkouts" / "power" / "artifacts" / "train"
        history = trained / "report1_bce-seed7" / "history.csv"
        grown = [eventually("the history is here", lambda: history.exists() and history.read_text())]
        grown.append(
            eventually(
                "it grows",
                lambda: history.exists() and history.read_text() != grown[0] and history.read_text(),
            )
        )
        assert grown[1].startswith(grown[0]) and grown[0].startswith("seed,epoch,train_loss,")
        assert "report1_bce-seed7: training, epoch" in parent.repository.run("cxr", "watch", "--once")
        (victim,) = (host for host in workers if host.processes("tasks.train"))
        workers.remove(victim)
        victim.cut_power()
        began = time.monotonic()
        output = run.finish(600)
        print(f"completed {time.monotonic() - began:.0f} s after the power cut")
        assert "Crashed" in output
        logs = [(stage.state_name, cluster.user.logs(stage.id)) for stage in stages(cluster, "power")]
        ((state, log),) = [(state, log) for state, log in logs if "continuing from the checkpoint" in log]
        assert state == "Completed" and "resuming after epoch" in log
        assert saved(cluster) == before

    @pytest.mark.soak
    @pytest.mark.parametrize("away", ["S3", "the Prefect server", "PostgreSQL"])
    def test_a_run_survives_an_outage(
        self, cluster: Cluster, parent: Host, workers: list[Host], away: str
    ) -> None:
        name = away.split()[-1].lower()
        run = self.run(parent, name, "--set", f"epochs={60 + len(name)}")
        trains = eventually(
            "a host trains", lambda: next((host for host in workers if host.processes("tasks.train")), None)
        )
        gone: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
            "S3": (cluster.proxy.off, cluster.proxy.on),
            "the Prefect server": (cluster.server.kill, cluster.server.start),
            "PostgreSQL": (lambda: cluster.database.stop(signal.SIGQUIT), cluster.database.start),
        }
        leave, come_back = gone[away]
        leave()
        time.sleep(60 if away == "S3" else 20)
        come_back()
        run.finish(400)
        assert f"on {trains.name}" in where(cluster, name, self.TRAINING)

    @pytest.mark.soak
    def test_workers_that_cannot_run_a_stage_refuse_it_or_end(
        self, cluster: Cluster, parent: Host, workers: list[Host], tmp_path: Path
    ) -> None:
        for worker in workers:
            worker.programs[0].stop()
        other = tmp_path / "torch-9.9.9.dist-info"
        other.mkdir()
        (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
        newer = cluster.host("newer").start(
            "worker", *self.options(cluster, "newer"), PYTHONPATH=str(tmp_path)
        )
        run = self.run(parent, "refused", "--set", "epochs=4")
        eventually(
            "it is refused", lambda: "versions differ from the run's: torch 9.9.9, not " in run.read_output()
        )
        newer.stop()

        broken = cluster.host("broken")
        checkouts = broken.repository.folder / "runs" / ".checkouts"
        checkouts.mkdir(parents=True)
        program = broken.worker("gpu", limit=1)
        program.wait_for_output("stages of pool gpu at a time")
        shutil.rmtree(checkouts)
        checkouts.write_text("no folder")
        program.wait_for_output("error: cannot create a checkout on this machine: ")

        good = cluster.host("good")
        good.worker("gpu", limit=2)
        run.finish(400)
        assert "on good" in where(cluster, "refused", self.TRAINING)
        assert_no_secret_is_in_any_log(cluster)

    def options(self, cluster: Cluster, name: str) -> list[str]:
        return ["--pool", "gpu", "--server", cluster.server.url, "--name", name, "--limit", "1"]

    def test_no_secret_is_in_any_log(self, cluster: Cluster) -> None:
        assert_no_secret_is_in_any_log(cluster)


def assert_no_secret_is_in_any_log(cluster: Cluster) -> None:
    runs = [*cluster.user.runs("retrain"), *cluster.user.runs("stage")]
    texts = [cluster.user.logs(run.id) + run.model_dump_json() for run in runs]
    texts += [str(cluster.user.artifacts(run.id)) for run in runs]
    for host in cluster.hosts:
        logs = [*host.folder.glob("*.log"), *host.repository.folder.glob("runs/.logs/*")]
        texts += [path.read_text(errors="replace") for path in logs]
    texts.append(cluster.server.output.read_text(errors="replace"))
    for secret in (SECRET, AUTH.split(":")[1], PASSWORD):
        assert not [text for text in texts if secret in text]


class TestWrong:
    def test_the_server_requires_its_password(self, cluster: Cluster) -> None:
        url = f"{cluster.server.api}/flow_runs/filter"
        name, password = AUTH.split(":")
        assert httpx.post(url, json={}).status_code == httpx.codes.UNAUTHORIZED
        assert httpx.post(url, json={}, auth=(name, "wrong")).status_code == httpx.codes.UNAUTHORIZED
        assert httpx.post(url, json={}, auth=(name, password)).status_code == httpx.codes.OK
        host = cluster.host("visitor")
        output = host.start(
            "worker", "--pool", "gpu", "--server", cluster.server.url, PREFECT_API_AUTH_STRING="a:b"
        ).finish(fails=True)
        wanted = "the server requires a password: set PREFECT_API_AUTH_STRING=USER:PASSWORD"
        assert output.splitlines()[-1] == f"error: {cluster.server.api}: {wanted}"

    def test_invalid_pools_are_refused_before_anything_runs(self, cluster: Cluster) -> None:
        host = cluster.host("wrong")
        output = {
            pools: host.retrain("--name", "wrong", "--pool", pools).finish(fails=True).splitlines()[-1]
            for pools in ("trian@*=gpu", "train@*=nobody")
        }
        assert output["trian@*=gpu"].startswith(
            "error: pools: 'trian@*' matches no stage; stages are audit, "
        )
        assert "pools: nobody: no worker has been started for a pool" in output["train@*=nobody"]
        host.repository.run("dvc", "remote", "default", "--unset")
        line = host.retrain("--name", "wrong", *ELSEWHERE).finish(fails=True).splitlines()[-1]
        assert line.startswith(f"error: {host.repository.folder}: no default DVC remote is set")
