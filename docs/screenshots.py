"""Take the screenshots of docs/get-started/first-retraining.md again, in a real browser.

    python docs/screenshots.py

clones the last commit into a folder that is thrown away, serves it as `make serve` does, starts two runs on
synthetic X-rays from the form, and photographs what a user sees. It takes some minutes, and needs Chromium.
"""

import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from PIL import Image  # noqa: E402
from playwright.sync_api import Page, expect  # noqa: E402

from tests.browser import Form, browsing, heading, open_artifact, open_tab  # noqa: E402
from tests.flows.conftest import Served, eventually, serving  # noqa: E402
from tests.helpers import ROOT, Repository  # noqa: E402

#: The demo, on a third of its images.
PARAMS = {"data.source": "phantom://360?size=128", "report.figures": "[1, 2, 4]"}

#: Milliseconds that a run may take.
RUN = 1_800_000

SIZE = {"width": 1400, "height": 900}


def main() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="screenshots-") as folder,
        serve(Path(folder)) as it,
        browsing() as page,
    ):
        take(page, it)


@contextmanager
def serve(folder: Path) -> Iterator[Served]:
    """A clone with the params of the demo, served."""
    repository = Repository(folder / "repository")
    Repository(folder).run("git", "clone", "--quiet", "--no-tags", str(ROOT), str(repository.folder))
    repository.run("git", "remote", "remove", "origin")  # nothing is pushed from here
    repository.run("git", "switch", "--quiet", "--force-create", "main")
    repository.run("git", "config", "user.name", "Screenshots")
    repository.run("git", "config", "user.email", "screenshots@localhost")
    repository.run("cxr", "params", "--preset", "demo")
    repository.set(*(f"{key}={value}" for key, value in PARAMS.items()))
    repository.commit("Params of the screenshots")
    with serving(repository, folder / "prefect") as it:
        yield it


def take(page: Page, it: Served) -> None:
    served = it.client.read_deployment_by_name("retrain/retrain")
    deployment = f"{it.ui}/deployments/deployment/{served.id}"
    eventually("the worker is there", lambda: it.client.read_deployment(served.id).status == "READY")
    page.goto(deployment)
    expect(page.get_by_text("weekly", exact=True)).to_be_visible()
    shoot(page, "deployment", height=620)

    # What the second run is compared with.
    Form(page, deployment).start("base")
    wait_for_end(page)
    it.repository.run("git", "merge", "--quiet", "--ff-only", "retrain/base")

    form = Form(page, deployment)
    form.name("alpha 0.3")
    form.fill("Alpha", "0.3")
    shoot(page, "form", height=1720)
    run = form.start("alpha 0.3")
    open_tab(page, "Task Runs")
    expect(page.get_by_role("link", name="evaluate@report1_bce-seed0", exact=True)).to_be_visible(timeout=RUN)
    page.reload()  # which fits the graph into its pane
    open_tab(page, "Task Runs")
    expect(page.get_by_role("link", name="evaluate@report1_bce-seed0", exact=True)).to_be_visible()
    shoot(page, "run")
    wait_for_end(page)
    page.reload()
    open_tab(page, "Task Runs")
    expect(page.get_by_role("link", name="publish", exact=True)).to_be_visible()
    shoot(page, "finished")
    open_artifact(page, run, "retrain-metrics")
    shoot(page, "metrics")


def wait_for_end(page: Page) -> None:
    expect(heading(page)).to_contain_text(re.compile("Completed|Failed|Crashed"), timeout=RUN)
    expect(heading(page)).to_contain_text("Completed")


def shoot(page: Page, name: str, height: int = SIZE["height"]) -> None:
    """Write docs/ui-NAME.png, compactly."""
    page.set_viewport_size(SIZE | {"height": height})
    page.mouse.move(0, 0)
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(2_000)  # for what moves to come to rest
    path = DOCS / f"ui-{name}.png"
    page.screenshot(path=path)
    # A palette that keeps what is rare, such as the green of a small dot.
    colours = (
        Image.open(path).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    )
    colours.save(path, optimize=True)
    page.set_viewport_size(SIZE)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} KB", flush=True)


if __name__ == "__main__":
    main()
