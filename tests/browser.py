"""A real Chromium, and the pages of Prefect's UI as their users work with them."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urljoin

from playwright.sync_api import Locator, Page, expect, sync_playwright

#: Debian's Chromium, Ubuntu's, and Google's own.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

#: Without a sandbox, which root has none of, and without calls to anywhere.
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

#: Milliseconds within which a page shows what is there, on busy machines too.
SOON = 30_000

#: How often a form is submitted: Prefect's SQLite is locked at times, and then its user has to try again.
TRIES = 3


@contextmanager
def browsing(width: int = 1400, height: int = 900, timeline: bool = True) -> Iterator[Page]:
    """An empty page of a new browser.

    The timeline of a run, drawn without a GPU, takes more of the processor than all else that is shown.
    """
    options = OPTIONS if timeline else [*OPTIONS, "--disable-3d-apis"]
    expect.set_options(timeout=SOON)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        # What moves would be drawn again and again, without a GPU at great cost.
        page = browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce")
        page.set_default_timeout(SOON)
        yield page
        browser.close()


class Form:
    """The form of a custom run, which opens empty."""

    def __init__(self, page: Page, deployment: str) -> None:
        """`deployment` is the address of the deployment's page."""
        self.page = page
        page.goto(deployment)
        page.get_by_role("button", name="Run", exact=True).click()
        page.get_by_text("Custom run").click()
        expect(self.field("Alpha")).to_be_visible()

    def field(self, title: str) -> Locator:
        # The last, for the field that holds all the others has their texts too.
        return self.page.locator(".schema-form-property").filter(has_text=f"{title} (Optional)").last

    def choices(self, title: str) -> list[str]:
        """What a field offers."""
        self._open(title)
        texts = self.page.get_by_role("option").all_inner_texts()
        self.page.keyboard.press("Escape")
        return texts

    def choose(self, title: str, choice: str) -> None:
        self._open(title)
        self.page.get_by_role("option", name=choice, exact=True).click()

    def _open(self, title: str) -> None:
        # By the keyboard: what a click opens, this UI closes at once, in Prefect 3.8 and 3.9.
        self.field(title).locator("button.p-select-button__control").press("Space")
        expect(self.page.get_by_role("option").first).to_be_visible()

    def fill(self, title: str, value: str) -> None:
        self.field(title).locator("input, textarea").fill(value)

    def name(self, run: str) -> None:
        self.page.locator(".flow-run-name-input input").fill(run)

    def submit(self) -> None:
        self.page.get_by_role("button", name="Submit").click()

    def start(self, name: str) -> str:
        """Submit the form under a run name, and open the page of the run; its address."""
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
    """A page's own heading, which holds the state of a run."""
    return page.locator("header.page-heading, .page-heading header, header").first


def open_tab(page: Page, title: str) -> None:
    page.get_by_role("tablist").get_by_text(title, exact=True).click()


def open_artifact(page: Page, run: str, title: str) -> None:
    """Open an artifact of the run whose page has that address."""
    page.goto(run)
    open_tab(page, "Artifacts")
    page.get_by_role("link").filter(has_text=title).first.click()
    expect(page.get_by_role("button", name="Show raw data")).to_be_visible()
