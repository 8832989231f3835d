"""Scheduled runs on growing data, in a real server, with a person who promotes in a real browser."""

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps
from playwright.sync_api import Page, expect
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule

from tasks.sources.phantom import PhantomSource
from tests.browser import CHROMIUM, Form, browsing, heading, open_artifact
from tests.flows.conftest import Served, serving
from tests.helpers import TIMEOUT, Repository, eventually

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
    pytest.mark.soak,
]

MODEL = "report1_bce"
PHANTOMS = PhantomSource("phantom://240?size=32")
RUN = 1000 * TIMEOUT

#: Val has few images, which the limits must allow.
SETTINGS = (
    f"export.experiments=[{MODEL}]",
    f"promotion.experiment={MODEL}",
    "promotion.least_images=2",
    "promotion.leaks=1.0",
    "promotion.margin=0.3",
    "promotion.false_alarms=0.6",
    "promotion.false_alarms_by_class=0.9",
)


class Hospital:
    """A folder of X-rays with masks that grows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def send(self, share: float) -> None:
        """Have this share of the cases of each split and class."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for name in PHANTOMS.names():
            groups.setdefault(Path(name).parts[:-1], []).append(name)
        for names in groups.values():
            for name in names[: round(share * len(names))]:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / name).write_bytes(PHANTOMS.read(name))

    def damage(self) -> None:
        """Mark the opposite of the infection in the training masks of COVID-19 images."""
        for path in self.folder.glob("*/*/Train/COVID-19/infection masks/*.png"):
            with Image.open(path) as mask:
                ImageOps.invert(mask).save(path)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return Hospital(tmp_path_factory.mktemp("hospital"))


@pytest.fixture(scope="module")
def served(
    hospital: Hospital,
    make_repository: Callable[[Path], Repository],
    make_home: Callable[[Path], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("loop")
    repository = make_repository(folder / "repository")
    repository.set(*SETTINGS, f"data.source={hospital.folder}")
    repository.run("git", "init", "--quiet", "--bare", "--initial-branch", "main", str(folder / "origin.git"))
    repository.run("git", "remote", "add", "origin", str(folder / "origin.git"))
    repository.run("dvc", "remote", "add", "--default", "storage", str(folder / "storage"))
    repository.commit("Promote on few images")
    repository.run("git", "push", "--quiet", "origin", "HEAD")
    home = make_home(folder / "prefect")
    with serving(repository, home, PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="2") as served:
        yield served


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browsing(timeline=False) as page:
        yield page


def scheduled(served: Served, **request: Any) -> FlowRun:
    """A run that a schedule starts in a moment, after it has ended."""
    deployment = served.client.read_deployment_by_name("retrain/retrain")
    known = {run.id for run in served.runs("retrain")}
    soon = datetime.now(UTC) + timedelta(seconds=3)
    body = {
        "schedule": IntervalSchedule(interval=timedelta(days=1), anchor_date=soon).model_dump(mode="json"),
        "active": True,
        "parameters": {
            "request": {"look_for_new_data": True, "experiments": [MODEL], **request},
            "pools": {},
        },
    }
    path = f"/deployments/{deployment.id}/schedules"
    (schedule,) = served.client._client.post(path, json=[body]).json()

    def started() -> FlowRun | None:
        new = [run for run in served.runs("retrain") if run.id not in known and run.start_time]
        return new[0] if new else None

    run: FlowRun = eventually("the schedule starts a run", started)
    served.client._client.delete(f"{path}/{schedule['id']}")
    ended = served.finished(run.id)
    assert ended.state and ended.state.is_completed(), served.logs(run.id)
    assert ended.auto_scheduled
    return ended


def champion(repository: Repository) -> str:
    """The version in use."""
    listed = json.loads(repository.run("cxr", "models", "list", "--json"))
    return next((version["version"] for version in listed if "champion" in version["stages"]), "none")


def verdict_of(served: Served, run: FlowRun) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(served.repository.read(f"runs/{run.name}/verdict.json"))
    return found


class TestInOrder:
    """A network is promoted, a worse one refused, a better one promoted by a person; and all of it undone."""

    def test_the_first_network_becomes_the_champion(self, served: Served, hospital: Hospital) -> None:
        hospital.send(0.5)
        run = scheduled(served, promotion="if better", epochs=6)
        assert champion(served.repository) == "v1.0.0"
        message = served.repository.run("git", "log", "-1", "--format=%B", f"retrain/{run.name}")
        assert "Requested-By: a schedule of the deployment" in message
        assert "The challenger may be the first champion." in message

    def test_a_network_of_damaged_masks_is_refused_with_the_numbers(
        self, served: Served, hospital: Hospital
    ) -> None:
        hospital.send(0.75)
        hospital.damage()
        run = scheduled(served, promotion="if better", epochs=12)
        assert champion(served.repository) == "v1.0.0"
        verdict = verdict_of(served, run)
        assert not verdict["passed"]
        (main,) = (line for line in verdict["lines"] if line.startswith("main score") and "Val" in line)
        assert "FAILED" in main and "low end above 0" in main
        decision = json.loads(served.repository.read(f"runs/{run.name}/decision.json"))
        assert (decision["decision"], decision["by"]) == ("refused", "the gate")

    def test_a_person_promotes_a_better_network_in_the_browser(
        self, served: Served, hospital: Hospital, page: Page
    ) -> None:
        hospital.send(1.0)
        run = scheduled(served, promotion="ask", epochs=60)
        assert verdict_of(served, run)["passed"], verdict_of(served, run)["lines"]
        assert champion(served.repository) == "v1.0.0"
        open_artifact(page, f"{served.ui}/runs/flow-run/{run.id}", "retrain-verdict")
        expect(page.get_by_text("The challenger passed.")).to_be_visible()
        expect(page.get_by_role("cell", name="main score").first).to_be_visible()
        page.goto(f"{served.reports}/{run.name}/index.html")
        expect(page.get_by_role("heading", name="judged against the champion v1.0.0")).to_be_visible()

        deployment = served.client.read_deployment_by_name("promote/retrain").id
        form = Form(page, f"{served.ui}/deployments/deployment/{deployment}", first="Challenger")
        assert form.choices("Challenger") == [run.name]
        form.choose("Challenger", run.name)
        form.choose("Decision", "promote")
        form.fill("Your name", "Dr Rossi")
        form.fill("Reason", "finds small lesions")
        form.start("Decide")
        expect(heading(page)).to_contain_text("Promoted", timeout=RUN)
        assert champion(served.repository) == "v1.1.0"
        history = served.repository.run("cxr", "models", "history", MODEL)
        assert "Dr Rossi" in history and "finds small lesions" in history

    def test_a_clone_elsewhere_gets_the_champion_by_one_command_and_predicts(
        self, served: Served, hospital: Hospital, tmp_path: Path
    ) -> None:
        origin = served.repository.run("git", "remote", "get-url", "origin").strip()
        served.repository.run("git", "clone", "--quiet", origin, str(tmp_path / "clone"))
        clone = Repository(tmp_path / "clone")
        xray = next(hospital.folder.glob("*/*/Test/COVID-19/images/*.png"))
        shutil.copy(xray, tmp_path / "xray.png")
        clone.run("cxr", "predict", str(tmp_path / "xray.png"), "--model", "champion", "--out", "out")
        assert (clone.folder / f"bundles/{MODEL}-v1.1.0/bundle.json").exists()
        (row,) = csv.DictReader(io.StringIO(clone.read("out/images.csv")))
        assert int(row["infection_pixels"]) > 0

    def test_a_rollback_in_the_browser_makes_the_first_network_the_champion(
        self, served: Served, page: Page
    ) -> None:
        deployment = served.client.read_deployment_by_name("rollback/retrain").id
        form = Form(page, f"{served.ui}/deployments/deployment/{deployment}", first="Model")
        form.fill("Model", MODEL)
        form.fill("Your name", "Dr Rossi")
        form.fill("Reason", "marks pacemakers")
        form.start("Back")
        expect(heading(page)).to_contain_text("Rolled back", timeout=RUN)
        assert champion(served.repository) == "v1.0.0"
        assert "marks pacemakers" in served.repository.run("cxr", "models", "history", MODEL)

    def test_the_events_name_what_happened(self, served: Served) -> None:
        judged, promoted, refused = "model.judged", "model.promoted", "model.refused"
        expected = [judged, promoted, judged, refused, judged, promoted, "model.rolled-back"]

        def seen() -> list[str]:
            body = {"filter": {"event": {"name": sorted(set(expected))}, "order": "ASC"}}
            events = served.client._client.post("/events/filter", json=body).json()["events"]
            return [event["event"] for event in events]

        eventually(f"the events arrive; now {seen()}", lambda: seen() == expected)
