"""`cxr serve`, as `make serve` starts it.

The tests of a class build on each other.
"""

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from http.client import HTTPConnection
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_SERVER_DATABASE_DRIVER,
    PREFECT_SERVER_DATABASE_HOST,
    PREFECT_SERVER_DATABASE_NAME,
    PREFECT_SERVER_DATABASE_PASSWORD,
    PREFECT_SERVER_DATABASE_USER,
    temporary_settings,
)
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from flows.serve import server_variables
from tests.fileserver import serving_requests
from tests.flows.conftest import Served, serving
from tests.helpers import Repository, eventually, free_ports

WEEKLY = ("weekly", "0 3 * * 1", False)
NO_HEADERS: dict[str, str] = {}
LEAP_DAY = ("leap-day", "0 0 29 2 *", True)


def schedules(served: Served) -> set[tuple[str | None, str, bool]]:
    found = set()
    for one in served.client.read_deployment_by_name("retrain/retrain").schedules:
        assert isinstance(one.schedule, CronSchedule)
        found.add((one.slug, one.schedule.cron, bool(one.active)))
    return found


class TestInOrder:
    def test_the_deployment_has_an_inactive_schedule_and_runs_one_at_a_time(self, served: Served) -> None:
        deployment = served.client.read_deployment_by_name("retrain/retrain")
        assert schedules(served) == {WEEKLY}
        assert deployment.parameters == {"request": {"look_for_new_data": True}, "pools": {}}
        assert deployment.global_concurrency_limit and deployment.global_concurrency_limit.limit == 1
        assert deployment.concurrency_options
        assert deployment.concurrency_options.collision_strategy == ConcurrencyLimitStrategy.ENQUEUE

    def test_the_form_has_bounds_and_choices(self, served: Served) -> None:
        schema = served.client.read_deployment_by_name("retrain/retrain").parameter_openapi_schema
        assert schema
        fields = schema["definitions"]["RetrainRequest"]["properties"]
        assert (fields["alpha"]["minimum"], fields["alpha"]["maximum"]) == (0, 1)
        assert (fields["epochs"]["minimum"], fields["epochs"]["maximum"]) == (1, 100_000)
        assert fields["preset"]["enum"] == ["demo", "laptop"]
        assert fields["experiments"]["items"]["enum"] == ["report1_bce", "report1_bce_iou"]

    def test_sweeps_have_a_form_too(self, served: Served) -> None:
        deployment = served.client.read_deployment_by_name("sweep/retrain")
        schema = deployment.parameter_openapi_schema
        assert schema
        form = schema["definitions"]["SweepRequest"]
        assert form["required"] == ["settings", "experiments"]
        assert form["properties"]["method"]["enum"] == ["grid", "random", "optuna"]
        assert form["properties"]["experiments"]["items"]["enum"] == ["report1_bce", "report1_bce_iou"]
        assert (form["properties"]["seeds"]["minimum"], form["properties"]["seeds"]["maximum"]) == (1, 100)
        request = {"settings": ["alhpa=0,1"], "experiments": ["report1_bce_iou"]}
        run = served.client.create_flow_run_from_deployment(deployment.id, parameters={"request": request})
        failed = served.finished(run.id).state
        assert failed and failed.is_failed()
        assert failed.message == "alhpa: unknown key of an experiment (did you mean alpha?)"

    @pytest.mark.parametrize("request_", [{"alpha": 2}, {"epochs": 0}, {"alhpa": 0.5}, {"publish": "moon"}])
    def test_an_invalid_parameter_is_refused_on_submission(
        self, served: Served, request_: dict[str, object]
    ) -> None:
        with pytest.raises(PrefectHTTPStatusError) as refused:
            served.submit(**request_)
        assert refused.value.response.status_code in (409, 422)

    def test_an_error_found_by_the_schema_fails_the_run_with_its_message(self, served: Served) -> None:
        run = served.finished(served.submit(changes=["training.width=x"]).id)
        assert run.state and run.state.is_failed()
        assert run.state.message == (
            "params.yaml with training.width=x: training.width: 'x' is invalid: "
            "input should be a valid integer"
        )
        assert run.total_run_time.total_seconds() < 20
        assert served.tasks(run.id) == {}
        assert served.checkouts() == []
        assert served.repository.run("git", "branch", "--format=%(refname:short)").split() == ["main"]

    def test_browsers_can_open_reports_but_no_hidden_files(self, served: Served) -> None:
        report = served.repository.folder / "runs" / "some" / "index.html"
        report.parent.mkdir()
        report.write_text("a report")
        assert request(served.reports, "/some/index.html") == (200, "a report")
        for path in (
            "/.checkouts/",
            "/.logs/",
            "/.logs/server.log",
            "//.logs/server.log",
            "/.serve.lock",
            "/%2elogs/server.log",
            "/%2E%6Cogs/server.log",
            "/some/../.logs/server.log",
            "/some/%2e%2e/.logs/server.log",
            "/../README.md",
            "/%2e%2e/README.md",
            "/..%2fREADME.md",
        ):
            assert request(served.reports, path)[0] == 404, path

    def test_pages_of_other_sites_are_refused(self, served: Served) -> None:
        ours = urlsplit(served.ui)
        foreign = {"Host": ours.netloc, "Origin": "https://elsewhere.example"}
        rebound = {
            "Host": f"elsewhere.example:{ours.port}",
            "Origin": f"http://elsewhere.example:{ours.port}",
        }
        for headers in (foreign, {"Host": ours.netloc, "Origin": "null"}, rebound):
            assert request(served.ui, "/api/admin/version", headers=headers)[0] == 403
            # Pages may send this without a CORS preflight, because it has no content type.
            assert request(served.ui, "/api/flows/", "POST", '{"name": "foreign"}', headers)[0] == 403
            with pytest.raises(InvalidStatus):
                open_websocket(served.ui, "/api/events/in", headers)
        preflight = foreign | {"Access-Control-Request-Method": "POST"}
        assert request(served.ui, "/api/deployments/", "OPTIONS", headers=preflight)[0] == 403
        assert served.client.read_flows(flow_filter=FlowFilter(name=FlowFilterName(any_=["foreign"]))) == []
        assert request(served.reports, "/some/index.html", headers=rebound)[0] == 403

    @pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
    def test_its_own_pages_work_under_each_of_its_names(self, served: Served, name: str) -> None:
        host = f"{name}:{urlsplit(served.ui).port}"
        own = {"Host": host, "Origin": f"http://{host}", "Content-Type": "application/json"}
        assert '"api_url":"/api"' in request(served.ui, "/ui-settings", headers=own)[1]
        assert request(served.ui, "/api/flows/filter", "POST", "{}", own)[0] == 200
        open_websocket(served.ui, "/api/events/in", own)

    def test_a_running_server_is_used_only_if_the_user_chose_it(self, served: Served, idle: Served) -> None:
        port = str(urlsplit(served.ui).port)
        assert refused(idle, PREFECT_SERVER_API_PORT=port) == taken(port)

    def test_the_deployment_of_another_clone_is_not_overwritten(self, served: Served, idle: Served) -> None:
        before = served.client.read_deployment_by_name("retrain/retrain")
        assert refused(idle, PREFECT_API_URL=f"{served.ui}/") == (
            f"error: the deployment retrain/retrain at {served.ui} belongs to the clone "
            f"{socket.gethostname()}:{served.repository.folder}; "
            "give this one another name with `make serve NAME=...`\n"
        )
        after = served.client.read_deployment_by_name("retrain/retrain")
        assert (after.updated, after.schedules) == (before.updated, before.schedules)

    @pytest.mark.soak
    def test_clones_with_different_names_share_a_server(
        self, served: Served, make_repository: Callable[[Path], Repository], tmp_path: Path
    ) -> None:
        repository = make_repository(tmp_path / "repository")
        repository.run("git", "commit", "--quiet", "--allow-empty", "--message", "of this clone alone")
        commit = repository.run("git", "rev-parse", "HEAD").strip()
        with serving(
            repository, tmp_path / "prefect", "another", PREFECT_API_URL=f"{served.ui}/api"
        ) as another:
            ids = [one.submit(revision=commit, changes=["training.width=x"]).id for one in (served, another)]
            states = [served.finished(run).state for run in ids]
        messages = [str(state.message) for state in states if state]
        assert (
            messages[0]
            == f"revision: {commit!r}: no such branch, tag or commit in {served.repository.folder}"
        )
        assert messages[1].startswith("params.yaml with training.width=x: ")

    def test_a_second_serve_reports_the_first_and_changes_nothing(self, served: Served) -> None:
        deployment = served.client.read_deployment_by_name("retrain/retrain")
        served.client._client.patch(
            f"/deployments/{deployment.id}/schedules/{deployment.schedules[0].id}", json={"active": True}
        ).raise_for_status()
        added = {"schedule": {"cron": LEAP_DAY[1]}, "active": True, "slug": LEAP_DAY[0]}
        served.client._client.post(f"/deployments/{deployment.id}/schedules", json=[added]).raise_for_status()
        chosen = {(*WEEKLY[:2], True), LEAP_DAY}
        assert schedules(served) == chosen
        parameters = {"request": {"look_for_new_data": False}, "pools": {"train@*": "gpu"}}
        changed = {"parameters": parameters, "concurrency_limit": 2}
        served.client._client.patch(f"/deployments/{deployment.id}", json=changed).raise_for_status()
        before = psutil.Process(served.process.pid).children()

        second = subprocess.run(
            served.command,
            cwd=served.repository.folder,
            env=served.variables,
            capture_output=True,
            text=True,
            check=True,
        )
        assert (
            second.stdout
            == f"already served here as retrain; the deployment is up to date.\nPrefect UI: {served.ui}\n"
        )
        assert psutil.Process(served.process.pid).children() == before
        assert schedules(served) == chosen
        after = served.client.read_deployment_by_name("retrain/retrain")
        assert after.parameters == parameters
        assert after.global_concurrency_limit and after.global_concurrency_limit.limit == 2
        assert len(workers_online(served)) == 1
        served.client._client.patch(
            f"/deployments/{deployment.id}", json={"parameters": deployment.parameters}
        ).raise_for_status()

    def test_cancel_ends_a_training_within_seconds(self, served: Served) -> None:
        run = served.submit(epochs=5000)
        served.training(run.id)
        began = time.monotonic()
        served.cancel(run.id)
        eventually("nothing trains", lambda: not served.working_for(run.id, "tasks.train"), timeout=10)
        print(f"the training ended {time.monotonic() - began:.1f} s after the cancel")
        ended = served.finished(run.id)
        print(f"the run was Cancelled {time.monotonic() - began:.1f} s after it")
        assert ended.state_name == "Cancelled"
        eventually("no process is left", lambda: not served.working_for(run.id), timeout=10)
        assert served.left_nothing()
        assert served.slots_taken() == 0

    def test_ctrl_c_ends_it_and_its_run(self, served: Served) -> None:
        run = served.submit(epochs=5000, publish="nowhere")
        served.training(run.id)
        served.stop(signal.SIGINT)
        assert served.process.returncode == 0
        assert served.processes() == []
        assert served.checkouts() == []

        served.start()
        ended = served.run(run.id)
        assert ended.state and ended.state.is_crashed()
        assert ended.state.message == "Ended with its worker. A retry continues where the run stopped."
        assert served.slots_taken() == 0
        assert schedules(served) == {(*WEEKLY[:2], True), LEAP_DAY}

    @pytest.mark.soak
    def test_a_service_manager_that_signals_all_processes_at_once_ends_it_too(self, served: Served) -> None:
        run = served.submit(epochs=5000, publish="nowhere")
        served.training(run.id)
        family = psutil.Process(served.process.pid).children(recursive=True)
        served.stop(signal.SIGTERM, family)
        assert served.process.returncode == 0
        assert served.processes() == []
        assert served.checkouts() == []

        served.start()
        ended = served.run(run.id)
        assert ended.state and ended.state.is_crashed(), ended.state
        assert served.slots_taken() == 0


def request(
    server: str, path: str, method: str = "GET", body: str | None = None, headers: dict[str, str] = NO_HEADERS
) -> tuple[int, str]:
    """Send a request with exactly this path, and return the status and body of the response."""
    with closing(HTTPConnection(urlsplit(server).netloc)) as connection:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def open_websocket(server: str, path: str, headers: dict[str, str]) -> None:
    """Open a websocket as a browser does, and close it."""
    address = urlsplit(server)
    with socket.create_connection((address.hostname, address.port)) as connection:
        origin = Origin(headers["Origin"])
        connect(f"ws://{headers['Host']}{path}", sock=connection, origin=origin, proxy=None).close()


def workers_online(served: Served) -> list[str]:
    workers = served.client._client.post("/work_pools/retrain/workers/filter", json={}).json()
    return [worker["name"] for worker in workers if worker["status"] == "ONLINE"]


@pytest.fixture(scope="module")
def idle(make_repository: Callable[[Path], Repository], tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A repository that is not served yet."""
    folder = tmp_path_factory.mktemp("idle")
    return Served(make_repository(folder / "repository"), folder / "prefect")


def refused(idle: Served, **variables: str) -> str:
    """Start it, and return the line with which it refuses."""
    done = subprocess.run(
        idle.command,
        cwd=idle.repository.folder,
        env=idle.variables | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1, done
    assert idle.processes() == []
    return done.stderr


def test_postgresql_is_recognised_without_a_connection_url_too() -> None:
    batch = "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE"
    assert batch not in server_variables("http://127.0.0.1:4200/api")
    parts = {
        PREFECT_SERVER_DATABASE_DRIVER: "postgresql+asyncpg",
        PREFECT_SERVER_DATABASE_HOST: "database",
        PREFECT_SERVER_DATABASE_NAME: "prefect",
        PREFECT_SERVER_DATABASE_USER: "prefect",
        PREFECT_SERVER_DATABASE_PASSWORD: "secret",
    }
    with temporary_settings(parts):
        assert server_variables("http://127.0.0.1:4200/api")[batch] == "100"


def test_the_ui_is_copied_elsewhere_if_it_may_not_be_beside_the_installation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copies = "PREFECT_SERVER_UI_STATIC_DIRECTORY"
    assert copies not in server_variables("http://127.0.0.1:4200/api")
    monkeypatch.setattr("flows.serve.os.access", lambda *_: False)  # root may write everywhere
    assert Path(server_variables("http://127.0.0.1:4200/api")[copies]).name == "ui"


class Stranger(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def web_server() -> Iterator[int]:
    with serving_requests(HTTPServer(("127.0.0.1", 0), Stranger)) as server:
        yield server.server_port


@contextmanager
def silent_server() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def taken(port: str) -> str:
    return (
        f"error: a server is already running at http://127.0.0.1:{port}: to use it, set "
        f"PREFECT_API_URL=http://127.0.0.1:{port}/api; to start one of your own, set PREFECT_SERVER_API_PORT "
        "to another port\n"
    )


@pytest.mark.parametrize("stranger", [web_server, silent_server])
def test_a_taken_port_is_reported_in_one_line(
    idle: Served, stranger: Callable[[], AbstractContextManager[int]]
) -> None:
    with stranger() as port:
        line = refused(idle, PREFECT_SERVER_API_PORT=str(port))
    assert line == taken(str(port))


def test_a_taken_port_for_reports_is_reported_in_one_line(idle: Served) -> None:
    with socket.create_server(("127.0.0.1", idle.reports_port)):
        line = refused(idle)
    assert line == (
        f"error: --reports-port {idle.reports_port}: Address already in use; "
        "choose another port, or 0 for any free port\n"
    )


def test_a_remote_server_that_does_not_answer_is_reported_in_one_line(idle: Served) -> None:
    (port,) = free_ports(1)
    api = f"http://127.0.0.2:{port}/api"
    line = f"error: no Prefect server answers at {api}: [Errno 111] Connection refused\n"
    assert refused(idle, PREFECT_API_URL=api) == line
