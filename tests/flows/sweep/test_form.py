"""The form of the deployment `sweep`, in a real browser, up to the branch at origin."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser import CHROMIUM, Form, browsing, heading, open_artifact
from tests.flows.conftest import Served, serving
from tests.helpers import TIMEOUT, Repository

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
    pytest.mark.soak,
]

#: Timeout in milliseconds for the run.
RUN = 5000 * TIMEOUT


@pytest.fixture(scope="module")
def served(
    make_repository: Callable[[Path], Repository],
    make_home: Callable[[Path], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("swept")
    repository = make_repository(folder / "repository")
    repository.run("git", "init", "--quiet", "--bare", "--initial-branch", "main", str(folder / "origin.git"))
    repository.run("git", "remote", "add", "origin", str(folder / "origin.git"))
    repository.run("git", "push", "--quiet", "origin", "HEAD")
    with serving(repository, make_home(folder / "prefect")) as it:
        yield it


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browsing(timeline=False) as page:
        yield page


def test_a_sweep_from_the_form_is_shown_and_pushed(page: Page, served: Served) -> None:
    deployment = served.client.read_deployment_by_name("sweep/retrain").id
    form = Form(page, f"{served.ui}/deployments/deployment/{deployment}", first="Settings")
    form.add("Settings", "alpha=0.25,0.75")
    form.choose("Experiments", "report1_bce_iou")
    page.keyboard.press("Escape")  # the list stays open for more choices
    run = form.start("alpha-form")
    expect(heading(page)).to_contain_text("Completed", timeout=RUN)

    open_artifact(page, run, "sweep-summary")
    title = "Sweep of alpha in report1_bce_iou"
    expect(page.get_by_role("heading", name=title)).to_be_visible()
    picture = page.get_by_role("img", name="Val score against the swept value")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.complete && image.naturalWidth") > 100
    open_artifact(page, run, "sweep-report")
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Report of alpha-form").click()
    report = opened.value
    expect(report.get_by_role("heading", name=title)).to_be_visible()
    for alpha in ("0.25", "0.75"):
        expect(report.get_by_role("rowheader", name=alpha, exact=True)).to_be_visible()
    report.close()

    repository, branch = served.repository, "retrain/alpha-form"
    pushed = repository.run("git", "ls-remote", "origin", f"refs/heads/{branch}").split()
    assert pushed == [repository.run("git", "rev-parse", branch).strip(), f"refs/heads/{branch}"]
    metrics = json.loads(repository.run("git", "show", f"{branch}:metrics.json"))
    assert metrics.keys() == {f"report1_bce_iou-alpha-{alpha}" for alpha in ("0_25", "0_75")}
