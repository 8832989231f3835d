"""compose.yaml as a whole: real containers, a run submitted as from the form, and faults during a training.

The tests of a class build on each other.
"""

import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from tests.containers.engine import OWN, Compose, docker, engine, images
from tests.flows.server import User
from tests.helpers import Repository, eventually

SERVICES = ("database", "server", "storage", "parent", "cpu-worker")
UI, REPORTS, STORAGE = "http://127.0.0.1:4200", "http://127.0.0.1:4201", "http://127.0.0.1:7070"


class Project:
    """The services, and the actions of their user."""

    def __init__(self, compose: Compose, user: User, secrets: list[str]) -> None:
        self.compose, self.user, self.secrets = compose, user, secrets

    def submit(self, **request: object) -> UUID:
        """Submit a custom run whose trainings and evaluations go to the worker, as from the form."""
        deployment = self.user.client.read_deployment_by_name("retrain/retrain")
        pools = {"train@*": "cpu", "evaluate@*": "cpu"}
        run = self.user.client.create_flow_run_from_deployment(
            deployment.id, parameters={"request": request, "pools": pools}
        )
        return run.id

    def completed(self, run: UUID, timeout: float = 600) -> str:
        """Wait until a run has completed. Returns its name."""
        ended = self.user.finished(run, timeout)
        assert ended.state_name == "Completed", f"{ended.state}\n{self.user.logs(run)}"
        return ended.name

    def where(self, run: UUID) -> str:
        """Return the message of the first training's task, which names the machine."""
        state = next(task.state for name, task in self.user.tasks(run).items() if name.startswith("train@"))
        return (state and state.message) or ""

    def trains(self) -> bool:
        return "tasks.train" in self.compose.run("top", "cpu-worker")

    def branches(self) -> Repository:
        """Fetch the branches of runs, as docs/how-to/docker.md says, into the checkout, and return it."""
        copied = self.compose.checkout.parent / "copied.git"
        shutil.rmtree(copied, ignore_errors=True)
        self.compose.run("cp", "parent:/srv/origin/retrain.git", str(copied))
        here = Repository(self.compose.checkout)
        here.run("git", "fetch", "--quiet", str(copied), "+refs/heads/retrain/*:refs/heads/retrain/*")
        return here


def answers(url: str) -> bool:
    try:
        httpx.get(url, timeout=5)
    except httpx.HTTPError:
        return False
    return True


@pytest.fixture(scope="module")
def project(make_repository: Callable[[Path], Repository]) -> Iterator[Project]:
    taken = [url for url in (UI, REPORTS, STORAGE) if answers(url)]
    if taken:
        pytest.skip(f"something answers at {', '.join(taken)}")
    with engine(), images() as substitutes, tempfile.TemporaryDirectory(prefix="containers-") as made:
        folder = Path(made)
        folder.chmod(0o755)  # the user of the containers is another one
        hidden = [secrets.token_hex(16) for _ in range(3)]
        login = f"somebody:{hidden[0]}"
        env = {"SERVER_LOGIN": login, "DATABASE_PASSWORD": hidden[1]}
        env |= {"STORAGE_ACCESS_KEY": "tester", "STORAGE_SECRET_KEY": hidden[2]}
        repository = make_repository(folder / "checkout")
        compose = Compose(repository.folder, f"{OWN}-{secrets.token_hex(4)}", substitutes, env)
        try:
            compose.run("build")
            compose.run("up", "--detach")
            with closing(User(f"{UI}/api", login)) as user:
                eventually("it serves", lambda: "Ctrl-C" in compose.run("logs", "parent"))
                yield Project(compose, user, hidden)
        except BaseException:
            print(compose.run("logs", "--no-color", "--tail", "60"))
            raise
        finally:
            compose.run("down", "--volumes", "--timeout", "20")


class TestInOrder:
    def test_a_worker_trains_for_a_run_and_the_results_are_those_without_containers(
        self, project: Project, finished_repository: Repository
    ) -> None:
        run = project.submit()
        name = project.completed(run)
        assert project.where(run).startswith("on cpu-worker")
        branch = project.branches()
        assert branch.run("git", "show", f"retrain/{name}:metrics.json") == finished_repository.read(
            "metrics.json"
        )
        page = httpx.get(f"{REPORTS}/{name}/", follow_redirects=True)
        assert page.is_success and "report1_bce" in page.text

    def test_the_ui_is_served(self, project: Project) -> None:
        page = httpx.get(UI, follow_redirects=True)
        assert page.is_success and "<title>Prefect" in page.text

    def test_server_and_storage_refuse_strangers(self, project: Project) -> None:
        assert httpx.post(f"{UI}/api/flow_runs/filter", json={}).status_code == 401
        assert httpx.get(f"{STORAGE}/retrain").status_code == 403

    def test_no_secret_is_in_an_image_or_a_log(self, project: Project, tmp_path: Path) -> None:
        logs = project.compose.run("logs", "--no-color")
        history = docker("history", "--no-trunc", f"{OWN}/project") + docker("inspect", f"{OWN}/project")
        runs = f"{project.compose.container('parent')}:/srv/retrain/checkout/runs"
        docker("cp", runs, str(tmp_path / "runs"))
        of_runs = [path.read_text(errors="replace") for path in (tmp_path / "runs").rglob("*.log")]
        assert "Ctrl-C" in logs and "entrypoint.sh" in history and of_runs
        for secret in project.secrets:
            assert not any(secret in text for text in (logs, history, *of_runs))

    def test_containers_are_ordinary_users_without_privileges(self, project: Project) -> None:
        for service in ("server", "parent", "cpu-worker"):
            status = project.compose.run("exec", service, "cat", "/proc/1/status")
            values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert values["Uid"].split() == ["1000"] * 4
            assert int(values["CapEff"], 16) == 0 and values["NoNewPrivs"] == "1"

    @pytest.mark.soak
    def test_an_amended_commit_is_shared_and_used(self, project: Project) -> None:
        here = Repository(project.compose.checkout)
        before = here.run("git", "rev-parse", "HEAD").strip()
        here.set("epochs=1")
        here.run("git", "commit", "--quiet", "--all", "--amend", "--message", "one epoch")
        project.compose.run("up", "repository")
        project.compose.run("restart", "parent", "cpu-worker")
        eventually("it serves again", lambda: project.compose.run("logs", "parent").count("Ctrl-C") == 2)
        run = project.submit()
        name = project.completed(run)
        assert "epochs: 1" in project.branches().run("git", "show", f"retrain/{name}:params.yaml")
        kept = project.compose.run("exec", "parent", "git", "-C", "/srv/origin/retrain.git", "show-ref")
        assert f"refs/replaced/{before}" in kept


FAULTS = (
    ("cpu-worker", "loses its network for 40 s"),
    ("cpu-worker", "is killed"),
    ("parent", "is killed"),
    ("server", "is restarted"),
    ("database", "is killed"),
    ("storage", "is killed"),
)


@pytest.mark.soak
class TestFaults:
    """Each run trains with another seed, so that nothing is in the cache."""

    @pytest.mark.parametrize(("service", "fault"), FAULTS)
    def test_a_training_survives(self, project: Project, service: str, fault: str) -> None:
        compose, seed = project.compose, 100 + FAULTS.index((service, fault))
        run = project.submit(
            experiments=["report1_bce"], changes=["epochs=150", f"training.seed={seed}"], publish="nowhere"
        )
        eventually("the worker trains", project.trains, timeout=300)
        time.sleep(5)
        if "network" in fault:
            container, network = compose.container(service), f"{compose.name}_default"
            docker("network", "disconnect", network, container)
            time.sleep(40)
            docker("network", "connect", f"--alias={service}", network, container)
        elif fault == "is restarted":
            compose.run("restart", service)
        else:
            compose.kill(service)
        began = time.monotonic()
        if service == "parent":
            assert project.user.finished(run).state_name == "Crashed"
            project.user.retry(run)  # as its message says
        project.completed(run, 900)
        print(f"{service} {fault}: completed {time.monotonic() - began:.0f} s later, {project.where(run)}")
        running = compose.run("ps", "--services", "--status", "running").split()
        assert sorted(running) == sorted(SERVICES)
