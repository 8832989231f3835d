"""The Prefect UI as its users see it, with a real browser and a real server."""

import hashlib
import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect
from prefect.client.orchestration import SyncPrefectClient
from ruamel.yaml import YAML

from flows.curves.picture import table_in
from tests.browser import CHROMIUM, Form, browsing, heading, open_artifact, open_tab
from tests.flows.conftest import Served
from tests.helpers import TIMEOUT, eventually

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")

#: Timeout in milliseconds for anything that a run shows.
RUN = 1000 * TIMEOUT
#: Epochs of a run, enough for a page to show it running on a fast machine.
EPOCHS = "200"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browsing(timeline=False) as page:
        yield page


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[SyncPrefectClient]:
    with SyncPrefectClient(f"{served.ui}/api") as client:
        yield client


@pytest.fixture(scope="module")
def deployment(served: Served, client: SyncPrefectClient) -> str:
    """The URL of the deployment's page."""
    return f"{served.ui}/deployments/deployment/{client.read_deployment_by_name('retrain/retrain').id}"


@pytest.fixture(scope="module")
def runs() -> dict[str, str]:
    """The URLs of the runs' pages, by a name for each run."""
    return {}


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_the_deployment_has_an_inactive_schedule_and_runs_one_at_a_time(
    page: Page, deployment: str, name: str
) -> None:
    page.goto(deployment.replace("127.0.0.1", name))
    expect(page.get_by_text("weekly", exact=True)).to_be_visible()
    expect(page.get_by_role("switch")).not_to_be_checked()
    expect(page.get_by_text("Concurrency Limit").locator("..")).to_have_text(
        re.compile(r"Concurrency Limit\s*1\s*")
    )


def test_the_form_offers_choices_with_descriptions(page: Page, deployment: str) -> None:
    form = Form(page, deployment)
    assert form.choices("Preset") == ["demo", "laptop"]
    assert form.choices("Experiments") == ["report1_bce", "report1_bce_iou"]
    assert form.choices("Publish") == ["remotes", "here", "nowhere"]
    expect(form.field("Alpha")).to_contain_text("Weight of BCE in combined losses, from 0 to 1.")
    expect(form.field("Preset")).to_contain_text("override params.yaml")


def test_the_form_refuses_an_invalid_value(page: Page, deployment: str, client: SyncPrefectClient) -> None:
    form = Form(page, deployment)
    form.fill("Alpha", "1.5")
    form.submit()
    expect(page.get_by_text("1.5 is greater than the maximum of 1").first).to_be_visible()
    assert client.read_flow_runs() == []


def assert_curves_visible(page: Page) -> None:
    """The UI shows the SVG picture, which browsers draw only if it is valid."""
    picture = page.get_by_role("img", name="Curves of report1_bce-seed0")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.complete && image.naturalWidth") == 900


class TestInOrder:
    """The tests use the run that the first one starts."""

    def test_a_run_from_the_form_shows_its_stages_and_their_progress(
        self, page: Page, deployment: str, client: SyncPrefectClient, runs: dict[str, str]
    ) -> None:
        form = Form(page, deployment)
        form.fill("Alpha", "0.3")
        form.fill("Epochs", EPOCHS)
        runs["first"] = form.start("Alpha a third")
        expect(heading(page)).to_contain_text("Running", timeout=RUN)
        # The page reads its list of tasks every 30 seconds only, and the run may end within them.
        eventually(
            "both trainings have started",
            lambda: sum(task.name.startswith("train@") for task in client.read_task_runs()) == 2,
        )
        open_tab(page, "Task Runs")
        for stage in (
            "plan",
            "download",
            "preprocess@32",
            "train@report1_bce-seed0",
            "train@report1_bce_iou-seed0",
        ):
            expect(page.get_by_role("link", name=stage, exact=True)).to_be_visible(timeout=RUN)
        expect(heading(page)).to_contain_text("Running")
        open_tab(page, "Artifacts")
        # The page loads what is below the artifacts of the flow run, its curves, when it is scrolled there.
        page.get_by_text("Task runs", exact=True).evaluate("heading => heading.scrollIntoView()")
        progress = page.get_by_role("link").filter(
            has_text=re.compile(rf"train@[\w-]+: ([\w-]+ epoch \d+ of {EPOCHS}|epochs of [\w-]+): ")
        )
        expect(progress.first).to_be_visible(timeout=RUN)
        progress.first.click()
        expect(page.get_by_text(re.compile(r"Progress: [\d.]+%"))).to_be_visible()
        open_artifact(page, runs["first"], "curves-report1-bce-seed0")
        assert_curves_visible(page)
        state = re.compile(rf"report1_bce-seed0: (training|finished), epoch \d+ of {EPOCHS}\.")
        expect(page.get_by_text(state)).to_be_visible()

    def test_the_curves_of_each_training_have_moved_to_its_end(
        self, page: Page, client: SyncPrefectClient, served: Served, runs: dict[str, str]
    ) -> None:
        page.goto(runs["first"])
        expect(heading(page)).to_contain_text("Completed", timeout=RUN)
        found = [a for a in client.read_artifacts() if (a.key or "").startswith("curves-")]
        assert sorted(str(a.key) for a in found) == [
            "curves-report1-bce-iou-seed0",
            "curves-report1-bce-seed0",
        ]
        lock = served.repository.run("git", "show", "retrain/Alpha-a-third:dvc.lock")
        outs = {
            out["path"]: out["md5"]
            for stage in YAML(typ="safe").load(lock)["stages"].values()
            for out in stage.get("outs", ())
        }
        for artifact in found:
            assert artifact.updated and artifact.created and artifact.updated > artifact.created
            training = str(artifact.data).splitlines()[0].removeprefix("# ")
            table = table_in(str(artifact.data)) or ""
            assert len(table.splitlines()) == 1 + int(EPOCHS)
            of_file = hashlib.md5(table.encode()).hexdigest()
            assert of_file == outs[f"artifacts/train/{training}/history.csv"]
        open_artifact(page, runs["first"], "curves-report1-bce-seed0")
        assert_curves_visible(page)
        expect(page.get_by_text(f"report1_bce-seed0: finished, epoch {EPOCHS} of {EPOCHS}.")).to_be_visible()

    def test_the_metrics_are_compared_with_those_of_the_base(
        self, page: Page, served: Served, runs: dict[str, str]
    ) -> None:
        page.goto(runs["first"])
        expect(heading(page)).to_contain_text("Completed", timeout=RUN)
        open_artifact(page, runs["first"], "retrain-metrics")
        expect(page.get_by_role("heading", name="Scores of Alpha-a-third")).to_be_visible()
        base = served.repository.run("git", "rev-parse", "HEAD")[:10]
        columns = ["experiment", "target", "Val score", "this run", f"HEAD ({base})"]
        columns += ["difference (95% interval)", "verdict", "Test IoU", "Test Dice"]
        expect(page.get_by_role("columnheader")).to_have_text(columns)
        metrics = json.loads(served.repository.run("git", "show", "retrain/Alpha-a-third:metrics.json"))
        test = metrics["report1_bce_iou"]["test"]["infection"]["covid"]
        scores = [rf"{test[metric]:.4f} \(–\)" for metric in ("iou", "dice")]
        row = ["report1_bce_iou", "infection", "balanced", r"0\.\d{4}", "–", "–", "new", *scores]
        expect(page.get_by_role("row").filter(has_text=re.compile(r"\s*".join(row)))).to_be_visible()

    def test_the_summary_shows_figures_and_a_dvc_command(self, page: Page, runs: dict[str, str]) -> None:
        open_artifact(page, runs["first"], "retrain-summary")
        title = "Infection segmentation in synthetic chest X-rays"
        expect(page.get_by_role("heading", name=title)).to_be_visible()
        expect(page.get_by_role("columnheader", name="Dice", exact=True)).to_be_visible()
        expect(page.get_by_role("img", name="Figures of the report")).to_be_visible()
        expect(page.get_by_text(re.compile(r"dvc metrics diff \w+ retrain/Alpha-a-third"))).to_be_visible()

    def test_the_link_opens_the_report(self, page: Page, runs: dict[str, str]) -> None:
        open_artifact(page, runs["first"], "retrain-report")
        with page.expect_popup() as opened:
            page.get_by_role("link", name="Report of Alpha-a-third").click()
        report = opened.value
        expect(report.get_by_text("report1_bce_iou").first).to_be_visible()
        report.close()

    def test_a_repeated_run_is_unchanged_and_cached(
        self, page: Page, deployment: str, served: Served, runs: dict[str, str]
    ) -> None:
        form = Form(page, deployment)
        form.fill("Alpha", "0.3")
        form.fill("Epochs", EPOCHS)
        form.start("Again")
        expect(heading(page)).to_contain_text("Unchanged", timeout=RUN)
        open_tab(page, "Task Runs")
        stages = served.repository.run("dvc", "stage", "list", "--name-only").split()
        for stage in stages:
            expect(page.get_by_role("link", name=stage, exact=True)).to_be_visible()
        expect(page.get_by_text("Cached", exact=True)).to_have_count(len(stages))
        assert not served.repository.run("git", "branch", "--list", "retrain/Again")
