"""Many machines on one: hosts that share nothing but a server, an S3 store and a git repository.

A host has folders, a clone, a DVC cache, an environment and processes of its own. The server stands on
PostgreSQL and wants a password; the way from the hosts to S3 can be cut.
"""

import os
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from flows.repository.git import environment
from flows.serve import ON_POSTGRESQL, REMEMBERING
from tests import postgresql
from tests.flows.server import PrefectServer, User
from tests.helpers import PATIENCE, Repository, cut_power, eventually
from tests.postgresql import Database
from tests.proxy import Proxy
from tests.s3 import S3Server

#: Name and password of the Prefect server.
AUTH = "somebody:the-servers-own-secret"


class Program:
    """A program that runs on a host, as by `make`: in the clone, with its output in a log."""

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
                # Where the tests run in the background, INT is ignored, and would be by all that they start.
                preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
            )

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def says(self, words: str, patience: float = PATIENCE) -> None:
        """Wait until it has said so."""
        eventually(
            f"{words!r} in {self.output}",
            lambda: words in self.said() or self.process.poll() is not None,
            patience,
        )
        assert words in self.said(), self.said()

    def finish(self, timeout: float = PATIENCE, fails: bool = False) -> str:
        """Wait for its end; all that it said."""
        self.process.wait(timeout)
        assert (self.process.returncode != 0) == fails, self.said()
        return self.said()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> str:
        """End it as a service manager does, or with SIGINT as Ctrl-C; all that it said."""
        self.process.send_signal(how)
        self.process.wait(60)
        return self.said()


class Host:
    """A machine of its own, as far as one machine goes."""

    def __init__(
        self,
        name: str,
        folder: Path,
        origin: Path,
        api: str,
        variables: dict[str, str],
        core: int | None,
    ) -> None:
        """`core` counts from 0, and is the one that its programs run on; None: all of them."""
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

    def start(self, *arguments: str, **variables: str) -> Program:
        """Start `cxr` with these arguments."""
        self.programs.append(Program(self, *arguments, **variables))
        return self.programs[-1]

    def processes(self, word: str = "") -> list[psutil.Process]:
        """All that runs on it, whoever's child it is; of that, what has a word in its command line."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("HOME") == str(self.folder) and word in ["", *process.cmdline()]:
                    found.append(process)
        return found

    def cut_power(self) -> None:
        """Kill all that runs on it, at one moment: nothing there sees another end."""
        cut_power(self.processes)
        for program in self.programs:
            program.process.wait()
        eventually("all is dead", lambda: not self.processes(), patience=20)


class Cluster:
    """The hosts and what they share."""

    def __init__(
        self, folder: Path, server: PrefectServer, database: Database, s3: S3Server, proxy: Proxy
    ) -> None:
        self.folder, self.origin = folder, folder / "origin.git"
        self.server, self.database, self.s3, self.proxy = server, database, s3, proxy
        self.bucket = s3.make_bucket()
        self.user = User(server.api, AUTH)
        self.hosts: list[Host] = []

    def host(self, name: str, core: int | None = None) -> Host:
        """A new host."""
        variables = self.s3.environment | {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy.port}",
            "PREFECT_API_AUTH_STRING": AUTH,
        }
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        self.hosts.append(Host(name, folder, self.origin, self.server.api, variables, core))
        return self.hosts[-1]

    def end_hosts(self) -> None:
        """Cut the power of all hosts, and forget them."""
        while self.hosts:
            self.hosts.pop().cut_power()

    def refs(self) -> dict[str, str]:
        """What origin has: commits by the full names of branches and other refs."""
        told = Repository(self.origin).run("git", "for-each-ref", "--format=%(refname) %(objectname)")
        return dict(line.split() for line in told.splitlines())

    def objects(self, under: str = "") -> list[str]:
        """What the DVC remote has: paths below its root, of one folder alone where that is named."""
        root = f"{self.bucket}/project"
        found = self.s3.files().find(f"{root}/{under}")
        return [path.removeprefix(f"{root}/") for path in found]


@contextmanager
def running(
    folder: Path, make_repository: Callable[[Path], Repository], s3: Callable[[], S3Server]
) -> Iterator[Cluster]:
    """A cluster without hosts, with all that is in it in a folder; ended with all that runs there.

    `s3` gives the S3 server, which starts while PostgreSQL and the Prefect server do.
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
            **REMEMBERING,
            **ON_POSTGRESQL,
        )
        try:
            server.start()
            yield server, database
        finally:
            server.kill()


def _share(repository: Repository, cluster: Cluster) -> None:
    """Make the repository's commits and its DVC remote those of the cluster."""
    repository.run("dvc", "remote", "add", "--default", "storage", f"s3://{cluster.bucket}/project")
    repository.commit("where the data are")
    repository.run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(cluster.origin))
    repository.run("git", "push", "--quiet", str(cluster.origin), "main")
