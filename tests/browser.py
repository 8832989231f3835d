"""A real Chromium, and the pages of Prefect's UI as users operate them."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urljoin

from playwright.sync_api import Locator, Page, expect, sync_playwright

#: Debian's Chromium, Ubuntu's Chromium, and Google Chrome.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

#: No sandbox, which root does not have, and no background network requests.
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

#: Timeout in milliseconds for anything that a page shows, on busy machines too.
SOON = 30_000

#: How often a form is submitted. Prefect's SQLite database is locked at times, and users have to retry.
TRIES = 3


@contextmanager
def browsing(width: int = 1400, height: int = 900, timeline: bool = True) -> Iterator[Page]:
    """Open an empty page in a new browser.

    Without a GPU, drawing the timeline of a run costs more CPU time than everything else on the page.
    """
    options = OPTIONS if timeline else [*OPTIONS, "--disable-3d-apis"]
    expect.set_options(timeout=SOON)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        # Without a GPU, drawing animations is expensive.
        page = browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce")
        page.set_default_timeout(SOON)
        yield page
        browser.close()


class Form:
    """The form of a custom run, initially empty."""

    def __init__(self, page: Page, deployment: str, first: str = "Alpha") -> None:
        """Open the form.

        Args:
            deployment: The URL of the deployment's page.
            first: The title of a field.
        """
        self.page = page
        page.goto(deployment)
        page.get_by_role("button", name="Run", exact=True).click()
        page.get_by_text("Custom run").click()
        expect(self.field(first)).to_be_visible()

    def field(self, title: str) -> Locator:
        # The last match, because the field that contains all others has their texts too.
        labelled = re.compile(rf"^\s*{re.escape(title)}( \(Optional\))?")
        return self.page.locator(".schema-form-property").filter(has_text=labelled).last

    def choices(self, title: str) -> list[str]:
        """Return the choices of a field."""
        self._open(title)
        texts = self.page.get_by_role("option").all_inner_texts()
        self.page.keyboard.press("Escape")
        return texts

    def choose(self, title: str, choice: str) -> None:
        self._open(title)
        self.page.get_by_role("option", name=choice, exact=True).click()

    def _open(self, title: str) -> None:
        # With the keyboard: in Prefect 3.8 and 3.9, a list that a click opens closes immediately.
        self.field(title).locator("button.p-select-button__control").press("Space")
        expect(self.page.get_by_role("option").first).to_be_visible()

    def fill(self, title: str, value: str) -> None:
        self.field(title).locator("input, textarea").fill(value)

    def add(self, title: str, value: str) -> None:
        """Add an item to a field that is a list."""
        field = self.field(title)
        field.get_by_role("button", name="Add item").click()
        field.locator("input, textarea").last.fill(value)

    def name(self, run: str) -> None:
        self.page.locator(".flow-run-name-input input").fill(run)

    def submit(self) -> None:
        self.page.get_by_role("button", name="Submit").click()

    def start(self, name: str) -> str:
        """Submit the form under a run name, open the page of the run, and return its URL."""
        self.name(name)
        for _ in range(TRIES):
            with self.page.expect_response(re.compile("/create_flow_run$"), timeout=4 * SOON) as answer:
                self.submit()
            if answer.value.ok:
                break
        run = answer.value.json()
        assert run.get("name") == name, run
        self.page.goto(urljoin(self.page.url, f"/runs/flow-run/{run['id']}"))
        expect(heading(self.page)).to_contain_text(name)
        return self.page.url


def heading(page: Page) -> Locator:
    """Return the main heading of a page, which shows the state of a run."""
    return page.locator("header.page-heading, .page-heading header, header").first


def open_tab(page: Page, title: str) -> None:
    page.get_by_role("tablist").get_by_text(title, exact=True).click()


def open_artifact(page: Page, run: str, title: str) -> None:
    """Open an artifact of a run, given the URL of the run's page."""
    page.goto(run)
    open_tab(page, "Artifacts")
    page.get_by_role("link").filter(has_text=title).first.click()
    expect(page.get_by_role("button", name="Show raw data")).to_be_visible()
