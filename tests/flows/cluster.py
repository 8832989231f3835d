"""Many machines on one: hosts that share only a Prefect server, an S3 store and a git repository.

Each host has its own folders, clone, DVC cache, environment and processes. The server uses PostgreSQL and
requires a password. The connection from the hosts to S3 can be cut.
"""

import os
import re
import signal
import subprocess
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from flows.repository.git import environment
from flows.serve import ON_POSTGRESQL, PERSISTENT_LEASES
from tests import postgresql
from tests.flows.server import PrefectServer, User
from tests.helpers import TIMEOUT, Repository, cut_power, eventually
from tests.postgresql import Database
from tests.proxy import Proxy
from tests.s3 import S3Server

#: User name and password of the Prefect server.
AUTH = "somebody:the-servers-own-secret"


#: A request in the Prefect server's log.
REQUEST = re.compile(r'"(GET|POST|PUT|PATCH|DELETE|WebSocket) /api(/[^ ?"]*)')

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Program:
    """A program on a host, started in the clone as by `make`, with its output in a log file."""

    def __init__(self, host: "Host", *arguments: str, **variables: str) -> None:
        self.output = host.folder / f"{arguments[0]}-{uuid.uuid4().hex[:6]}.log"
        cores = [] if host.core is None else ["taskset", "--cpu-list", str(host.core)]
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                [*cores, "cxr", *arguments],
                cwd=host.repository.folder,
                env=host.variables | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Tests in the background ignore SIGINT, and their child processes would inherit that.
                preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
            )

    def read_output(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_for_output(self, words: str, timeout: float = TIMEOUT) -> None:
        """Wait until the output contains `words`."""
        eventually(
            f"{words!r} in {self.output}",
            lambda: words in self.read_output() or self.process.poll() is not None,
            timeout,
        )
        assert words in self.read_output(), self.read_output()

    def finish(self, timeout: float = TIMEOUT, fails: bool = False) -> str:
        """Wait until it ends, and return its output."""
        self.process.wait(timeout)
        assert (self.process.returncode != 0) == fails, self.read_output()
        return self.read_output()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> str:
        """End it as a service manager does, or with SIGINT as Ctrl-C does. Returns its output."""
        self.process.send_signal(how)
        self.process.wait(60)
        return self.read_output()


class Host:
    """A simulated machine."""

    def __init__(
        self,
        name: str,
        folder: Path,
        origin: Path,
        api: str,
        variables: dict[str, str],
        core: int | None,
    ) -> None:
        """Create a host. `core` is the number of the CPU core for its programs, or None for all cores."""
        self.name, self.folder, self._api = name, folder, api
        cores = sorted(os.sched_getaffinity(0))
        self.core = None if core is None else cores[core % len(cores)]
        self.variables = {
            "PATH": environment()["PATH"],
            "HOME": str(folder),
            "TMPDIR": str(folder / "tmp"),
            "PREFECT_HOME": str(folder / "prefect"),
            "DVC_SITE_CACHE_DIR": str(folder / "dvc"),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        } | variables
        self.programs: list[Program] = []
        (folder / "tmp").mkdir()
        self.repository = Repository(folder / "repository", self.variables)
        subprocess.run(["git", "clone", "--quiet", origin, "repository"], cwd=folder, check=True)

    def worker(self, pool: str, limit: int | None = None) -> Program:
        limits = [] if limit is None else ["--limit", str(limit)]
        server = self._api.removesuffix("/api")
        where = ["--pool", pool, "--server", server, "--name", self.name]
        return self.start("worker", *where, *limits)

    def retrain(self, *arguments: str) -> Program:
        return self.start("retrain", *arguments, PREFECT_API_URL=self._api)

    def sweep(self, *arguments: str) -> Program:
        return self.start("sweep", *arguments, PREFECT_API_URL=self._api)

    def start(self, *arguments: str, **variables: str) -> Program:
        """Start `cxr` with these arguments."""
        self.programs.append(Program(self, *arguments, **variables))
        return self.programs[-1]

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Return all processes on the host, or those with `word` in their command line."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("HOME") == str(self.folder) and word in ["", *process.cmdline()]:
                    found.append(process)
        return found

    def cut_power(self) -> None:
        """Kill all processes on the host at once, so that none sees another one end."""
        cut_power(self.processes)
        for program in self.programs:
            program.process.wait()
        eventually("all processes are dead", lambda: not self.processes(), timeout=20)


class Cluster:
    """The hosts, and the services that they share."""

    def __init__(
        self, folder: Path, server: PrefectServer, database: Database, s3: S3Server, proxy: Proxy
    ) -> None:
        self.folder, self.origin = folder, folder / "origin.git"
        self.server, self.database, self.s3, self.proxy = server, database, s3, proxy
        self.bucket = s3.make_bucket()
        self.user = User(server.api, AUTH)
        self.hosts: list[Host] = []

    def host(self, name: str, core: int | None = None) -> Host:
        """Create a host."""
        variables = self.s3.environment | {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy.port}",
            "PREFECT_API_AUTH_STRING": AUTH,
        }
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        self.hosts.append(Host(name, folder, self.origin, self.server.api, variables, core))
        return self.hosts[-1]

    def end_hosts(self) -> None:
        """Cut the power of all hosts, and remove them."""
        while self.hosts:
            self.hosts.pop().cut_power()

    def refs(self) -> dict[str, str]:
        """Return the commits of origin by the full name of each ref."""
        refs = Repository(self.origin).run("git", "for-each-ref", "--format=%(refname) %(objectname)")
        return dict(line.split() for line in refs.splitlines())

    def requests(self) -> Counter[str]:
        """Return how often each request has reached the Prefect server, such as `PATCH /artifacts/ID`."""
        text = UUID.sub("ID", self.server.output.read_text(errors="replace"))
        return Counter(f"{method} {path}" for method, path in REQUEST.findall(text))

    def objects(self, under: str = "") -> list[str]:
        """Return the paths on the DVC remote, relative to its root, or only those below one folder."""
        root = f"{self.bucket}/project"
        found = self.s3.files().find(f"{root}/{under}")
        return [path.removeprefix(f"{root}/") for path in found]


@contextmanager
def running(
    folder: Path, make_repository: Callable[[Path], Repository], s3: Callable[[], S3Server]
) -> Iterator[Cluster]:
    """Run a cluster without hosts in a folder. On exit, end everything that runs there.

    `s3` starts the S3 server and returns it. It is called while PostgreSQL and the Prefect server start.
    """
    with ExitStack() as stack:
        with ThreadPoolExecutor() as starting:
            server_starts = starting.submit(stack.enter_context, _server(folder))
            repository = make_repository(folder / "repository")
            store = s3()
            server, database = server_starts.result()
        proxy = Proxy(urlsplit(store.endpoint).port or 80)
        stack.callback(proxy.off)
        cluster = Cluster(folder, server, database, store, proxy)
        stack.enter_context(closing(cluster.user))
        _share(repository, cluster)
        try:
            yield cluster
        finally:
            cluster.end_hosts()


@contextmanager
def _server(folder: Path) -> Iterator[tuple[PrefectServer, Database]]:
    with postgresql.serving() as database:
        server = PrefectServer(
            folder / "server",
            PREFECT_SERVER_DATABASE_CONNECTION_URL=database.url,
            PREFECT_SERVER_API_AUTH_STRING=AUTH,
            PREFECT_SERVER_LOGGING_LEVEL="INFO",  # with a line for each request
            **PERSISTENT_LEASES,
            **ON_POSTGRESQL,
        )
        try:
            server.start()
            yield server, database
        finally:
            server.kill()


def _share(repository: Repository, cluster: Cluster) -> None:
    """Push the repository's commits to the cluster's origin, and configure the cluster's DVC remote."""
    repository.run("dvc", "remote", "add", "--default", "storage", f"s3://{cluster.bucket}/project")
    repository.commit("configure the DVC remote")
    repository.run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(cluster.origin))
    repository.run("git", "push", "--quiet", str(cluster.origin), "main")
