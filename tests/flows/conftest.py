"""A real Prefect server with a worker and a deployment, started by `cxr serve` on a tiny repository."""

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.schemas.objects import FlowRun

from flows.repository.git import environment
from tests.flows.cluster import Cluster, running
from tests.flows.server import PrefectServer, User
from tests.helpers import Repository, end, eventually, free_ports, made_once, shared
from tests.s3 import S3Server


class Served(User):
    """A repository served by `cxr serve`, and the actions of its user."""

    def __init__(self, repository: Repository, home: Path, name: str = "retrain", **settings: str) -> None:
        self.repository, self.name = repository, name
        server, self.reports_port = free_ports(2)
        self.ui = f"http://127.0.0.1:{server}"
        self.reports = f"http://127.0.0.1:{self.reports_port}"
        self.variables = environment() | {
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(server),
            "PREFECT_DEPLOYMENT_CONCURRENCY_SLOT_WAIT_SECONDS": "2",
            "TMPDIR": str(repository.folder.parent),  # other runs on this machine may use all cores
            "http_proxy": "http://127.0.0.1:9",  # local requests must bypass the proxy
        }
        for variable in ("PREFECT_API_URL", "no_proxy", "NO_PROXY"):
            self.variables.pop(variable, None)
        self.variables |= settings
        super().__init__(settings.get("PREFECT_API_URL", f"{self.ui}/api"))

    @property
    def command(self) -> list[str]:
        options = ["--name", self.name, "--reports-port", str(self.reports_port)]
        return ["cxr", "serve", *options]

    def start(self) -> None:
        self.output = self.repository.folder.parent / "serve.log"
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.repository.folder,
                env=self.variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        eventually(
            f"it serves: {self.read_output()}", lambda: "Ctrl-C" in self.read_output() or self.process.poll()
        )
        assert self.process.poll() is None, self.read_output()

    def read_output(self) -> str:
        return self.output.read_text()

    def stop(self, how: signal.Signals = signal.SIGINT, signalled: Sequence[psutil.Process] = ()) -> None:
        """End it. The processes in `signalled` get the signal too."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(how)
        for process in signalled:
            process.send_signal(how)
        self.process.wait(60)
        _, alive = psutil.wait_procs(family, timeout=10)
        for process in alive:
            process.kill()
        assert not alive, alive

    def processes(self) -> list[psutil.Process]:
        """Return all processes that work in the repository."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if Path(process.cwd()).is_relative_to(self.repository.folder):
                    found.append(process)
        return found

    def log(self, name: str) -> str:
        return (self.repository.folder / "runs" / ".logs" / f"{name}.log").read_text(errors="replace")

    def part(self, word: str) -> psutil.Process:
        """Return the process of its server or worker."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if word in child.cmdline())

    def submit(self, **request: Any) -> FlowRun:
        """Submit a custom run, as from the form."""
        deployment = self.client.read_deployment_by_name(f"retrain/{self.name}")
        return self.client.create_flow_run_from_deployment(deployment.id, parameters={"request": request})

    def training(self, run_id: UUID) -> psutil.Process:
        """Wait for the training process of a run, and return it."""
        found: list[psutil.Process] = eventually(
            "a run trains", lambda: self.working_for(run_id, "tasks.train")
        )
        return found[0]

    def working_for(self, run_id: UUID, word: str = "") -> list[psutil.Process]:
        """Return the processes of a run, or those with `word` in their command line."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                ours = process.environ().get("PREFECT__FLOW_RUN_ID") == str(run_id)
                if ours and word in ["", *process.cmdline()]:
                    found.append(process)
        return found

    def slots_taken(self) -> int:
        """Return the number of the deployment's slots in use."""
        limit = self.client.read_deployment_by_name(f"retrain/{self.name}").global_concurrency_limit
        assert limit is not None
        return limit.active_slots

    def checkouts(self) -> list[str]:
        folder = self.repository.folder / "runs" / ".checkouts"
        return [path.name for path in folder.iterdir()] if folder.exists() else []

    def left_nothing(self) -> bool:
        """Return whether the repository has no branch, worktree or checkout of a run."""
        branches = self.repository.run("git", "branch", "--format=%(refname:short)").split()
        worktrees = self.repository.run("git", "worktree", "list").splitlines()
        return branches == ["main"] and len(worktrees) == 1 and self.checkouts() == []


@contextmanager
def serving(repository: Repository, home: Path, name: str = "retrain", **settings: str) -> Iterator[Served]:
    served = Served(repository, home, name, **settings)
    with closing(served):
        served.start()
        try:
            yield served
        finally:
            if served.process.poll() is None:
                served.stop()


@pytest.fixture(scope="session")
def make_home(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Create a PREFECT_HOME with an initialised database, which would take each new server ten seconds."""
    with made_once(tmp_path_factory, "prefect") as (template, missing):
        if missing:
            subprocess.run(
                ["prefect", "server", "database", "upgrade", "--yes"],
                env=environment() | {"PREFECT_HOME": str(template)},
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def make(folder: Path) -> Path:
        return Path(shutil.copytree(template, folder))

    return make


@pytest.fixture(scope="module")
def served(
    make_prepared_repository: Callable[[Path], Repository],
    make_home: Callable[[Path], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with serving(make_prepared_repository(folder / "repository"), make_home(folder / "prefect")) as it:
        yield it


@pytest.fixture(scope="session")
def prefect_api(
    make_home: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """The address and the home of a Prefect server for tests."""

    def start() -> str:
        home = make_home(tmp_path_factory.mktemp("server") / "prefect")
        server = PrefectServer(home)
        try:
            server.start()
        except BaseException:
            server.kill()
            raise
        server.process.returncode = 0  # silences Python's warning if it outlives this process
        return f"{server.process.pid} {server.api} {home}"

    with shared(tmp_path_factory, "server", start, lambda text: end(int(text.split()[0]))) as text:
        _, api, home = text.split(maxsplit=2)
        yield api, Path(home)


@pytest.fixture(scope="module")
def cluster(
    make_repository: Callable[[Path], Repository],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    """Many machines on one, for tests that create them."""

    def s3() -> S3Server:
        server: S3Server = request.getfixturevalue("s3")
        return server

    with running(tmp_path_factory.mktemp("cluster"), make_repository, s3) as cluster:
        yield cluster


@pytest.fixture
def prefect_server(prefect_api: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the flows of this test on the tests' server, whatever the user's profile says."""
    url, home = prefect_api
    monkeypatch.setenv("PREFECT_API_URL", url)
    monkeypatch.setenv("PREFECT_HOME", str(home))
